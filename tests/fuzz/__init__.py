"""Damaged, odd and hostile input through the program's own commands: ``python -m tests.fuzz --help``."""
