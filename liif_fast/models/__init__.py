"""LIIF, MetaSR, ILN and their encoders, built from specs, with the parameter names of the original code."""

from liif_fast.models import edsr, rcan, rdn
from liif_fast.models.accelerate import accelerate
from liif_fast.models.checkpoint import ModelFileError, load_model, save_model
from liif_fast.models.iln import ILN, LidarLIIF
from liif_fast.models.liif import LIIF
from liif_fast.models.metasr import MetaSR
from liif_fast.models.registry import make, names, register
