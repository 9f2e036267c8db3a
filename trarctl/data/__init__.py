"""Prepared data: raw files to arrays, arrays to batches, answers to metrics and submissions."""
