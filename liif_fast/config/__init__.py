"""What configurations, model files and command lines share: YAML, checks, names and modules of the user's."""
