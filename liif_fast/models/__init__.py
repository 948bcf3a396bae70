"""LIIF, MetaSR and their encoders, built from specs, with the parameter names of the original code."""

from liif_fast.models import edsr, liif, mlp
from liif_fast.models.liif import LIIF
from liif_fast.models.registry import make, names, register

__all__ = ["LIIF", "edsr", "liif", "make", "mlp", "names", "register"]
