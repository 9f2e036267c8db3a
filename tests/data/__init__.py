"""Raw files to arrays, answers to figures and files."""
