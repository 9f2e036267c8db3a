"""TRAR itself: from tensors to tensors."""
