"""The operator as functions: validation, autocast and the choice of backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from liif_fast import backends
from liif_fast.backends import Call, Explanation, Switches, autocast_dtype
from liif_fast.coord import plan_corners

__all__ = ["corner_plan", "explain", "fused_mlp", "gather_corners", "liif_decode", "liif_render"]

backends.load()

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def liif_decode(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    feat_unfold: bool = True,
    local_ensemble: bool = True,
    cell_decode: bool = True,
    backend: str = "auto",
    recompute: bool | None = None,
) -> Tensor:
    """Decode queries of a feature map: LIIF's local implicit image function.

    Args:
        feat: [B, C, H, W] floating point, the latents; any memory layout.
        coord: [B, Q, 2] float32, (row, column) of each query in [-1, 1], pixel centres; beyond is clamped to the
            border latents. float64 (the plan then too) on the backends `reference` and `torch`.
        cell: [B, Q, 2] of coord's dtype, (2/H_out, 2/W_out) of a regular grid; None if not cell_decode.
        weights: the MLP's weights [out_i, in_i], as nn.Linear's; in_0 = C (times 9 with feat_unfold) + 2 (+ 2 with
            cell_decode). dtype of feat, or any under autocast.
        biases: the MLP's biases [out_i].
        feat_unfold: concatenate the 3x3 neighbourhood of each latent.
        local_ensemble: blend the predictions from the four nearest latents by area; else the nearest one's.
        cell_decode: give the network the size of the query's pixel.
        backend: "auto" (the fastest that can run the call) or a name; see `explain`.
        recompute: in training, compute hidden activations again in the backward pass instead of keeping them; None
            keeps them when they are few.

    Returns:
        [B, Q, out], not clamped; dtype of feat, float32 under autocast.

    Raises:
        TypeError: an argument is no tensor or has a dtype that cannot be used.
        ValueError: a shape, device or backend name does not fit.
        RuntimeError: the backend named cannot run this call.

    Source: LIIF (arXiv 2012.09161), equations 1 to 4 and section 3.
    """
    switches = Switches(feat_unfold, local_ensemble, cell_decode)
    weights, biases = tuple(weights), tuple(biases)
    _check_feat(feat)
    cell = _check_queries(feat, coord, cell, cell_decode)
    _check_layers(feat, weights, biases, switches)
    call = _call("decode", feat, coord.shape[1], weights, biases, switches, coord, cell)
    return backends.choose(call, backend).decode(feat, coord, cell, weights, biases, switches, recompute)


def liif_render(
    feat: Tensor,
    size: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    region: Sequence[int] | None = None,
    cell: Tensor | Sequence[float] | None = None,
    feat_unfold: bool = True,
    local_ensemble: bool = True,
    cell_decode: bool = True,
    backend: str = "auto",
    recompute: bool | None = None,
) -> Tensor:
    """Decode a regular grid, or a window of it, without any coordinate tensor.

    Equal to `liif_decode` on make_coord(size) and make_cell(size), and differentiable like it.

    Args:
        feat: [B, C, H, W] floating point, the latents.
        size: (H_out, W_out) of the whole grid.
        weights, biases: as for `liif_decode`.
        region: (top, left, height, width), the window of the grid to decode, in pixels; None is all of it.
        cell: pixel size given to the network: a pair of floats, or float32 [2] or [B, 2]; None is
            (2/H_out, 2/W_out).
        feat_unfold, local_ensemble, cell_decode, backend, recompute: as for `liif_decode`.

    Returns:
        [B, out, height, width], in any memory layout; dtype of feat, float32 under autocast.

    Raises:
        TypeError, ValueError, RuntimeError: as `liif_decode`.

    Source: LIIF (arXiv 2012.09161), section 3.
    """
    switches = Switches(feat_unfold, local_ensemble, cell_decode)
    weights, biases = tuple(weights), tuple(biases)
    _check_feat(feat)
    _check_layers(feat, weights, biases, switches)
    height, width, window = _check_grid(size, region)
    cells = _grid_cell(feat, height, width, cell) if cell_decode else None
    call = _call("render", feat, window[2] * window[3], weights, biases, switches, None, cells)
    chosen = backends.choose(call, backend)
    return chosen.render(feat, (height, width), window, cells, weights, biases, switches, recompute)


def corner_plan(coord: Tensor, shape: Sequence[int], *, local_ensemble: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Say which latents each query reads, where it lies from them, and how much each counts.

    Args:
        coord: [B, Q, 2] float32 or float64, (row, column) in [-1, 1].
        shape: (H, W) of the feature map.
        local_ensemble: plan the K = 4 nearest latents, in the order 00, 01, 10, 11; else the K = 1 nearest.

    Returns:
        index [B, Q, K, 2] int64 (row, column); rel [B, Q, K, 2], the distance from the latent's centre in units of
        half a latent; weight [B, Q, K], each corner's share (the diagonal swap is done). dtype of coord; the same
        bits on every backend. rel and weight are differentiable with respect to coord.

    Raises:
        TypeError, ValueError: coord or shape cannot be used.

    Source: LIIF (arXiv 2012.09161), section 3.2 (local ensemble); order of operations of the authors' code.
    """
    _check_coord("coord", coord)
    if len(shape) != 2 or not (shape[0] > 0 and shape[1] > 0):
        raise ValueError(f"shape must be (H, W), both at least 1, got {tuple(shape)}")
    return plan_corners(coord, shape[0], shape[1], local_ensemble)


def gather_corners(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    *,
    feat_unfold: bool = True,
    local_ensemble: bool = True,
    cell_decode: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Gather the network's input for every corner of every query, for a network of one's own.

    With (x, weight) returned, (weight[..., None] * net(x)).sum(2) is LIIF's output for the network `net`.

    Args:
        feat, coord, cell, feat_unfold, local_ensemble, cell_decode, backend: as for `liif_decode`.

    Returns:
        x [B, Q, K, in_dim]: latent (unfolded: channel c*9 + ki*3 + kj), rel and scaled cell; dtype of feat, float32
        under autocast. weight [B, Q, K] of coord's dtype.

    Raises:
        TypeError, ValueError, RuntimeError: as `liif_decode`.

    Source: LIIF (arXiv 2012.09161), section 3.
    """
    switches = Switches(feat_unfold, local_ensemble, cell_decode)
    _check_feat(feat)
    cell = _check_queries(feat, coord, cell, cell_decode)
    call = _call("gather_corners", feat, coord.shape[1], (), (), switches, coord, cell)
    return backends.choose(call, backend).gather_corners(feat, coord, cell, switches)


def fused_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    backend: str = "auto",
    recompute: bool | None = None,
) -> Tensor:
    """Apply a multilayer perceptron, Linear and ReLU in turn with a Linear at the end, to the last dimension.

    Args:
        x: [..., in] floating point.
        weights, biases, backend, recompute: as for `liif_decode`.

    Returns:
        [..., out]; dtype of x, float32 under autocast.

    Raises:
        TypeError, ValueError, RuntimeError: as `liif_decode`.

    Source: LIIF (arXiv 2012.09161), section 4.1 (the decoding function f_theta).
    """
    weights, biases = tuple(weights), tuple(biases)
    _check_tensor("x", x)
    if x.ndim < 1:
        raise ValueError("x must have shape [..., in], got []")
    _check_layers(x, weights, biases, None)
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    call = _call("fused_mlp", x, rows, weights, biases, Switches(), None, None)
    return backends.choose(call, backend).fused_mlp(x, weights, biases, recompute)


def explain(
    feat: Tensor,
    coord: Tensor,
    cell: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    feat_unfold: bool = True,
    local_ensemble: bool = True,
    cell_decode: bool = True,
    backend: str = "auto",
) -> Explanation:
    """Say what every backend answers to a call of `liif_decode`: chosen, or refused and why.

    Args:
        feat, coord, cell, weights, biases, feat_unfold, local_ensemble, cell_decode, backend: as for `liif_decode`.

    Returns:
        An Explanation: `chosen` (a name, "" if none can), `answers` (name, can run, reason); prints as a table.

    Raises:
        TypeError, ValueError: as `liif_decode`.
    """
    switches = Switches(feat_unfold, local_ensemble, cell_decode)
    weights, biases = tuple(weights), tuple(biases)
    _check_feat(feat)
    cell = _check_queries(feat, coord, cell, cell_decode)
    _check_layers(feat, weights, biases, switches)
    return backends.explain(_call("decode", feat, coord.shape[1], weights, biases, switches, coord, cell), backend)


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")


def _check_feat(feat: Tensor) -> None:
    _check_tensor("feat", feat)
    if feat.ndim != 4 or 0 in feat.shape[1:]:
        raise ValueError(f"feat must have shape [B, C, H, W] with C, H and W at least 1, got {list(feat.shape)}")


def _check_coord(name: str, coord: Tensor) -> None:
    if not isinstance(coord, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(coord).__name__}")
    if coord.dtype != torch.float32 and coord.dtype != torch.float64:
        raise TypeError(
            f"{name} must be float32 (half precision would pick wrong neighbours) or float64, got {coord.dtype}"
        )
    if coord.ndim != 3 or coord.shape[2] != 2:
        raise ValueError(f"{name} must have shape [B, Q, 2], got {list(coord.shape)}")


def _check_queries(feat: Tensor, coord: Tensor, cell: Tensor | None, cell_decode: bool) -> Tensor | None:
    """Check coord and cell against feat, and return the cell to use: None where it is not decoded."""
    _check_coord("coord", coord)
    shape, device = coord.shape, feat.device
    if shape[0] != feat.shape[0]:
        raise ValueError(f"coord must have shape [B, Q, 2] with B = {feat.shape[0]}, got {list(shape)}")
    if coord.device != device:
        raise ValueError(f"coord must be on the device of feat, {device}, got {coord.device}")
    if not cell_decode:
        return None
    if cell is None:
        raise ValueError("cell must be a tensor [B, Q, 2] with cell_decode=True, got None")
    _check_coord("cell", cell)
    if cell.shape != shape:
        raise ValueError(f"cell must have the shape of coord, {list(shape)}, got {list(cell.shape)}")
    if cell.dtype != coord.dtype:
        raise TypeError(f"cell must have the dtype of coord, {coord.dtype}, got {cell.dtype}")
    if cell.device != device:
        raise ValueError(f"cell must be on the device of feat, {device}, got {cell.device}")
    return cell


def _in_dim_text(feat: Tensor, switches: Switches | None) -> str:
    if switches is None:
        return "the last dimension of x"
    latent = f"C = {feat.shape[1]}" + (" times 9 for feat_unfold" if switches.feat_unfold else "")
    return f"{latent}, + 2 for rel" + (", + 2 for cell_decode" if switches.cell_decode else "")


def _check_layers(
    x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...], switches: Switches | None
) -> None:
    """Check an MLP's weights and biases against feat and the switches, or against its input x without switches."""
    if not weights or len(weights) != len(biases):
        raise ValueError(f"weights and biases must be as many, at least one each, got {len(weights)} and {len(biases)}")
    name, dtype, device = "x" if switches is None else "feat", x.dtype, x.device
    width = x.shape[-1]
    if switches is not None:
        width = x.shape[1] * (9 if switches.feat_unfold else 1) + (4 if switches.cell_decode else 2)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if not (isinstance(weight, Tensor) and isinstance(bias, Tensor)):
            raise TypeError(
                f"weights[{layer}] and biases[{layer}] must be torch.Tensors, "
                f"got {type(weight).__name__} and {type(bias).__name__}"
            )
        shape = weight.shape
        if len(shape) != 2 or shape[1] != width or shape[0] == 0:
            origin = f"the outputs of weights[{layer - 1}]" if layer else _in_dim_text(x, switches)
            raise ValueError(f"weights[{layer}] must have shape [out, {width}] ({origin}), got {list(shape)}")
        width = shape[0]
        if bias.shape != (width,):
            raise ValueError(f"biases[{layer}] must have shape [{width}], got {list(bias.shape)}")
        if weight.device != device or bias.device != device:
            raise ValueError(
                f"weights[{layer}] and biases[{layer}] must be on the device of {name}, {device}, "
                f"got {weight.device} and {bias.device}"
            )
        if weight.dtype != dtype or bias.dtype != dtype:
            mixed = autocast_dtype(x) is not None  # then every dtype will do that autocast would cast
            for each, tensor in (("weights", weight), ("biases", bias)):
                fits = tensor.dtype in _FLOATS and tensor.dtype != torch.float64 if mixed else tensor.dtype == dtype
                if not fits:
                    raise TypeError(f"{each}[{layer}] must have the dtype of {name}, {dtype}, got {tensor.dtype}")


def _check_grid(size: Sequence[int], region: Sequence[int] | None) -> tuple[int, int, tuple[int, int, int, int]]:
    for name, numbers in (("size", size), ("region", region or ())):
        if any(isinstance(number, float) for number in numbers):
            raise TypeError(f"{name} must hold integers, got {tuple(numbers)}")
    if len(size) != 2 or not (size[0] > 0 and size[1] > 0):
        raise ValueError(f"size must be (H_out, W_out), both at least 1, got {tuple(size)}")
    height, width = size
    if region is None:
        return height, width, (0, 0, height, width)
    if len(region) != 4:
        raise ValueError(f"region must be (top, left, height, width), got {tuple(region)}")
    top, left, rows, columns = region
    if min(top, left, rows, columns) < 0 or top + rows > height or left + columns > width:
        raise ValueError(
            f"region must be (top, left, height, width) inside the grid of size {(height, width)}, got {tuple(region)}"
        )
    return height, width, (top, left, rows, columns)


def _grid_cell(feat: Tensor, height: int, width: int, cell: Tensor | Sequence[float] | None) -> Tensor:
    """Return a render's cell as float32 [B, 2]."""
    batch = feat.shape[0]
    if isinstance(cell, Tensor):
        if cell.dtype != torch.float32:
            raise TypeError(f"cell must be float32, got {cell.dtype}")
        if cell.shape != (2,) and cell.shape != (batch, 2):
            raise ValueError(f"cell must have shape [2] or [B, 2] with B = {batch}, got {list(cell.shape)}")
        if cell.device != feat.device:
            raise ValueError(f"cell must be on the device of feat, {feat.device}, got {cell.device}")
        return cell.expand(batch, 2)
    if cell is None:
        cell = (2 / height, 2 / width)
    elif len(cell) != 2:
        raise ValueError(f"cell must be a pair of floats or a float32 tensor [2] or [B, 2], got {tuple(cell)}")
    # Filled, not copied from the host: a copy could not be captured in a CUDA graph.
    return torch.stack([torch.full((batch,), each, dtype=torch.float32, device=feat.device) for each in cell], -1)


def _call(
    op: str,
    x: Tensor,
    queries: int,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor, ...],
    switches: Switches,
    coord: Tensor | None,
    cell: Tensor | None,
) -> Call:
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
