"""Training from a YAML configuration."""

from liif_fast.train.config import Config as Config
from liif_fast.train.config import load_config as load_config
from liif_fast.train.trainer import DivergedError as DivergedError
from liif_fast.train.trainer import train as train
