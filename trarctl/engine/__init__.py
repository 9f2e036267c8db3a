"""Training and scoring: everything that runs the model on data."""
