"""One thin module per command: parse, call once, render."""
