"""The `mlp` of specs."""

from liif_fast.layers import MLP as MLP
from liif_fast.models.registry import register

register("mlp")(MLP)
