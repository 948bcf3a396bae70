"""The `mlp` of specs, and the recognition of a plain Linear-ReLU chain in any module."""

from torch import nn

from liif_fast import layers
from liif_fast.layers import Chain
from liif_fast.models.registry import register

MLP = layers.MLP


register("mlp")(MLP)


def fusable(imnet: nn.Module | None) -> Chain | None:
    """`chain_of` an `MLP` whose call is nothing but that chain, else None."""
    return chain_of(imnet) if isinstance(imnet, MLP) and type(imnet).forward is MLP.forward else None


def chain_of(module: nn.Module) -> Chain | None:
    """Weights and biases of `module.layers` where it and the module are as `layers.linear_chain` wants them."""
    return None if layers.altered(module) else layers.linear_chain(getattr(module, "layers", None))
