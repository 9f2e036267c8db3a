"""Attention, dropout and norms made for one kind of device."""
