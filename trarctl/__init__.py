"""trarctl trains, evaluates and submits TRAR, a visual question answering Transformer that routes attention spans."""

__version__ = "0.1.0"
