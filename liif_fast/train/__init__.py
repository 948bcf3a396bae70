"""Train a model from a YAML configuration."""

from liif_fast.train.config import Config, load_config
from liif_fast.train.trainer import DivergedError, train
