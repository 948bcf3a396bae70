"""YAML reading, value checks, registries and plugins, shared by configurations, model files and the command line."""
