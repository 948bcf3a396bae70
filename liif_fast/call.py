"""Describe a call: its options, its position in a larger map, and the modes of PyTorch that it runs in.

Operators, backends and the public functions import this module; it imports none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from liif_fast.window import Extent as Extent
from liif_fast.window import Window as Window

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Switches(NamedTuple):
    """Hold the three options of LIIF's decoder."""

    feat_unfold: bool = True
    local_ensemble: bool = True
    cell_decode: bool = True

    @property
    def corners(self) -> int:
        """Return K, the number of latents that a query reads."""
        return 4 if self.local_ensemble else 1


Place = tuple[int, int, int, int]  # top and left in a whole map, height and width of that map


class Call(NamedTuple):
    """Describe a call, so that a backend can say whether it can run it."""

    op: str  # "decode", "render", "gather_corners", "attend_corners" or "fused_mlp"
    device: torch.device
    dtype: torch.dtype  # of feat (of x for fused_mlp)
    shape: tuple[int, ...]  # of feat [B, C, H, W] (of x for fused_mlp)
    queries: int  # Q, per image; rows of x for fused_mlp
    widths: tuple[
        int, ...
    ]  # outputs of each layer, for attend_corners of each block's hidden one; () for gather_corners
    switches: Switches
    coord_dtype: torch.dtype  # of coord and cell
    autocast: torch.dtype | None  # the autocast dtype, if autocast applies
    requires_grad: bool  # any gradient is wanted
    coord_requires_grad: bool  # a gradient for coord or cell is wanted
    grid: tuple[int, int] | None = None  # in a render: the size of the whole grid
    place: Place | None = None  # in a render: the position of feat in a larger map
    extent: Extent | None = None  # in a render: the part of the map that the grid covers, if not all of it
    dropout: float = 0.0  # of attend_corners
    values: int = 0  # of attend_corners: channels of the values


class Kernels(NamedTuple):
    """Say how a backend runs the operators of `liif_fast.ops`."""

    backend: str | None  # the operators' last argument
    # The dtype of products, from that of feat (or x) and the autocast dtype.
    computes_in: Callable[[torch.dtype, torch.dtype | None], torch.dtype]
    # The shape of the saved activations, from the MLP's weights, the first layer to save (1 where P replaces layer 0),
    # the number of queries, the rows of each, the dtype of products, whether a backward pass follows, and `recompute`.
    saves: Callable[[Sequence[Tensor], int, int, int, torch.dtype, bool, bool | None], tuple[int, ...]]

    def dtype(self, tensor: Tensor) -> torch.dtype:
        """Return the dtype of products for feat (or x)."""
        return self.computes_in(tensor.dtype, autocast_dtype(tensor))

    def bind(self, function: Callable[Concatenate[Kernels, Arguments], Result]) -> Callable[Arguments, Result]:
        """Return an operator's function without its first argument, these kernels; torch.compile reads no `partial`."""

        def run(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
            return function(self, *args, **options)

        return run


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the dtype in which autocast would compute with `tensor`; None if it does not apply (as for float64)."""
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def result_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of an operator's result for `tensor`: the tensor's, or float32 under autocast."""
    return tensor.dtype if autocast_dtype(tensor) is None else torch.float32


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves operations on `tensor` alone."""
    if autocast_dtype(tensor) is None:
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def hidden_from() -> str:
    """Return the reason why our operators cannot run here, a tracer or transform that does not know them; else ""."""
    if torch.compiler.is_compiling():
        return ""
    if torch.jit.is_tracing():
        return "is not recorded by torch.jit.trace, which would fix the sizes of this call"
    if torch._C._functorch.peek_interpreter_stack() is not None:  # grad, vmap, ...
        return "runs under no torch.func transform"
    return ""


def vmapped() -> bool:
    """Say whether the call runs under torch.func.vmap, as in jacfwd, jacrev and hessian, outside of a compiler."""
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    return any(each.key() == functorch.TransformType.Vmap for each in functorch.get_interpreter_stack() or ())


def exporting() -> bool:
    """Say whether torch.export traces the call.

    This reads the flag behind `torch.compiler.is_exporting`, because in PyTorch 2.11 that function is also true within
    torch.compile. Training would then be taken for inference and have no gradients.
    """
    return bool(torch.compiler._is_exporting_flag)


def exporting_onnx() -> bool:
    """Say whether torch.onnx.export traces the call through torch.export.

    This reads the flag behind `torch.onnx.is_in_onnx_export`, which torch.compile takes for a constant False. Its
    module is not imported before an export.
    """
    flags = sys.modules.get("torch.onnx._internal.exporter._flags") if exporting() else None
    return bool(getattr(flags, "_is_onnx_exporting", False))


def tf32_allowed() -> bool:
    """Say whether float32 matrix products on a GPU may round their operands to TF32."""
    try:
        return torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # the two interfaces of PyTorch have been mixed
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


def trains(*tensors: Tensor | None) -> bool:
    """Say whether a backward pass will follow; an exported program is for inference and keeps nothing for one."""
    return (
        not exporting()
        and torch.is_grad_enabled()
        and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    )


class Fast(TorchFunctionMode):
    """A context that allows the rounding of Winograd's algorithm; `convolution.fast_convolutions` opens it."""


def fast_allowed() -> bool:
    """Say whether such a context is open; a compiler cannot read the modes."""
    return not torch.compiler.is_compiling() and any(
        isinstance(mode, Fast) for mode in _get_current_function_mode_stack()
    )


def describe(
    op: str,
    x: Tensor,
    queries: int,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor, ...],
    switches: Switches,
    coord: Tensor | None,
    cell: Tensor | None,
) -> Call:
    """Describe a call from its arguments; x is feat, or fused_mlp's input."""
    coord_grad = grad = False
    if torch.is_grad_enabled():
        coord_grad = (coord is not None and coord.requires_grad) or (cell is not None and cell.requires_grad)
        grad = coord_grad or x.requires_grad or any(tensor.requires_grad for tensor in (*weights, *biases))
    return Call(
        op=op,
        device=x.device,
        dtype=x.dtype,
        shape=tuple(x.shape),
        queries=queries,
        widths=tuple([weight.shape[0] for weight in weights]),
        switches=switches,
        coord_dtype=torch.float32 if coord is None else coord.dtype,
        autocast=autocast_dtype(x),
        requires_grad=grad,
        coord_requires_grad=coord_grad,
    )
