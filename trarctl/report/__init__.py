"""Pages and pictures from a run."""
