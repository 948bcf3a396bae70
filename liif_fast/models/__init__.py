"""LIIF, its relatives and their encoders, built from specs, with the original code's parameter names."""

from liif_fast.models import edsr, rcan, rdn, swinir
from liif_fast.models.accelerate import accelerate
from liif_fast.models.checkpoint import ModelFileError, load_model, save_model
from liif_fast.models.iln import ILN, LidarLIIF
from liif_fast.models.jiif import JIIF
from liif_fast.models.liif import LIIF
from liif_fast.models.lmliif import LMLIIF
from liif_fast.models.lte import LTE, LTEPlus
from liif_fast.models.metasr import MetaSR
from liif_fast.models.registry import make, names, register
