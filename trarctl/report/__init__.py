"""Pages and drawings from a run."""
