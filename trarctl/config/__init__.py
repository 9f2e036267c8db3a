"""Validated settings, the recipes, and the places that settings come from."""
