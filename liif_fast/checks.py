"""Check arguments; every message names the argument, the expected value and the value given."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from liif_fast.attention import Corners, CornerTransformer
from liif_fast.call import Extent, Place, Switches, autocast_dtype
from liif_fast.coord import latent_window

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")


def check_feat(feat: Tensor, name: str = "feat") -> None:
    check_tensor(name, feat)
    if feat.ndim != 4 or 0 in feat.shape[1:]:
        raise ValueError(f"{name} must have shape [B, C, H, W] with C, H and W at least 1, got {list(feat.shape)}")


def check_coord(name: str, coord: Tensor) -> None:
    if not isinstance(coord, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(coord).__name__}")
    if coord.dtype != torch.float32 and coord.dtype != torch.float64:
        raise TypeError(
            f"{name} must be float32 (half precision would pick wrong neighbours) or float64, got {coord.dtype}"
        )
    if coord.ndim != 3 or coord.shape[2] != 2:
        raise ValueError(f"{name} must have shape [B, Q, 2], got {list(coord.shape)}")


def check_queries(feat: Tensor, coord: Tensor, cell: Tensor | None, cell_decode: bool) -> Tensor | None:
    """Check coord and cell against feat, and return the cell to use, or None if it is not decoded."""
    check_coord("coord", coord)
    shape, device = coord.shape, feat.device
    if shape[0] != feat.shape[0]:
        raise ValueError(f"coord must have shape [B, Q, 2] with B = {feat.shape[0]}, got {list(shape)}")
    if coord.device != device:
        raise ValueError(f"coord must be on the device of feat, {device}, got {coord.device}")
    if not cell_decode:
        return None
    if cell is None:
        raise ValueError("cell must be a tensor [B, Q, 2] with cell_decode=True, got None")
    check_coord("cell", cell)
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


def check_layers(x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...], switches: Switches | None) -> None:
    """Check an MLP's weights and biases against feat and the switches, or against its input x without switches."""
    width = x.shape[-1]
    if switches is not None:
        width = x.shape[1] * (9 if switches.feat_unfold else 1) + (4 if switches.cell_decode else 2)
    check_chain("x" if switches is None else "feat", x, width, _in_dim_text(x, switches), weights, biases)


def check_chain(
    name: str, x: Tensor, width: int, source: str, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...]
) -> None:
    """Check an MLP's weights and biases against the tensor `name`, from which `source` makes rows of `width`."""
    if not weights or len(weights) != len(biases):
        raise ValueError(
            f"weights and biases must have the same length, at least 1, got {len(weights)} and {len(biases)}"
        )
    dtype, device = x.dtype, x.device
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if not (isinstance(weight, Tensor) and isinstance(bias, Tensor)):
            raise TypeError(
                f"weights[{layer}] and biases[{layer}] must be torch.Tensors, "
                f"got {type(weight).__name__} and {type(bias).__name__}"
            )
        shape = weight.shape
        if len(shape) != 2 or shape[1] != width or shape[0] == 0:
            origin = f"the outputs of weights[{layer - 1}]" if layer else source
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
            mixed = autocast_dtype(x) is not None  # then any dtype fits that autocast would cast
            for each, tensor in (("weights", weight), ("biases", bias)):
                fits = tensor.dtype in FLOATS and tensor.dtype != torch.float64 if mixed else tensor.dtype == dtype
                if not fits:
                    raise TypeError(f"{each}[{layer}] must have the dtype of {name}, {dtype}, got {tensor.dtype}")


def check_corners(feat: Tensor, corners: Corners) -> None:
    """Check that a plan is one for maps of feat's number, size and device; at and rel may each be for 1 or for B."""
    batch, shape = feat.shape[0], tuple(feat.shape[2:])
    if corners.shape != shape:
        raise ValueError(f"coord must be planned for maps of feat's size, {shape}, got a plan for {corners.shape}")
    if corners.at.dtype != torch.int64:
        raise TypeError(f"coord.at must be int64, got {corners.at.dtype}")
    queries = corners.at.shape[1] if corners.at.ndim == 3 else "Q"
    for name, tensor, each in (("at", corners.at, (4,)), ("rel", corners.rel, (4, 2))):
        if list(tensor.shape[1:]) != [queries, *each]:
            form = ", ".join(map(str, ("B or 1", queries, *each)))
            raise ValueError(f"coord.{name} must have shape [{form}], got {list(tensor.shape)}")
        if tensor.shape[0] not in (1, batch):
            raise ValueError(f"coord.{name} must be planned for 1 or B = {batch} maps, got {tensor.shape[0]}")
        if tensor.device != feat.device:
            raise ValueError(f"coord.{name} must be on the device of feat, {feat.device}, got {tensor.device}")


def check_attention(feat: Tensor, values: Tensor, transformer: CornerTransformer, dropout: float) -> None:
    """Check the values that are blended and the transformer's parameters against feat."""
    check_tensor("values", values)
    batch, width, *size = feat.shape
    if values.ndim != 4 or values.shape[1] < 1 or [values.shape[0], *values.shape[2:]] != [batch, *size]:
        raise ValueError(f"values must have shape [{batch}, V, {size[0]}, {size[1]}], got {list(values.shape)}")
    if transformer.position_weight.shape[:1] != (width,):
        shape = list(transformer.position_weight.shape)
        raise ValueError(f"transformer.position_weight must have shape [{width}, 2] (D of feat), got {shape}")
    if transformer.heads < 1 or width % transformer.heads:
        raise ValueError(f"transformer.heads must divide D = {width}, got {transformer.heads}")
    shapes = transformer.shapes()
    for name, tensor in (("values", values), *((f"transformer.{key}", value) for key, value in transformer.tensors())):
        expected = shapes.get(name.removeprefix("transformer."))
        if expected is not None and tensor.shape != expected:
            raise ValueError(f"{name} must have shape {list(expected)}, got {list(tensor.shape)}")
        if tensor.device != feat.device:
            raise ValueError(f"{name} must be on the device of feat, {feat.device}, got {tensor.device}")
        if tensor.dtype != feat.dtype and autocast_dtype(feat) is None:
            raise TypeError(f"{name} must have the dtype of feat, {feat.dtype}, got {tensor.dtype}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")


def check_integers(name: str, values: Sequence[int], form: str) -> tuple[int, ...]:
    """Return an argument's integers, keeping a compiler's symbols; error messages state the expected `form`."""
    try:
        values = tuple(values)
    except TypeError:
        raise TypeError(f"{name} must be {form}, got {values!r:.80}") from None
    try:
        return tuple([value if isinstance(value, int | torch.SymInt) else operator.index(value) for value in values])
    except TypeError:  # NumPy's integers have an index, floats do not
        raise TypeError(f"{name} must hold integers, got {values!r:.80}") from None


def check_shape(name: str, shape: Sequence[int], form: str) -> tuple[int, int]:
    """Return the height and the width, both at least 1."""
    numbers = check_integers(name, shape, form)
    if len(numbers) != 2 or not (numbers[0] > 0 and numbers[1] > 0):
        raise ValueError(f"{name} must be {form}, both at least 1, got {numbers}")
    return numbers[0], numbers[1]


def check_grid(size: Sequence[int], region: Sequence[int] | None) -> tuple[int, int, tuple[int, int, int, int]]:
    """Return the height and the width of a grid, and its window (top, left, height, width)."""
    height, width = check_shape("size", size, "(H_out, W_out)")
    if region is None:
        return height, width, (0, 0, height, width)
    window = check_integers("region", region, "(top, left, height, width)")
    if len(window) != 4:
        raise ValueError(f"region must be (top, left, height, width), got {window}")
    top, left, rows, columns = window
    if min(top, left, rows, columns) < 0 or top + rows > height or left + columns > width:
        raise ValueError(
            f"region must be (top, left, height, width) inside the grid of size {(height, width)}, got {window}"
        )
    return height, width, (top, left, rows, columns)


def check_extent(extent: Sequence[float], shape: Sequence[int]) -> Extent:
    """Return a part (top, left, height, width) of a map (H, W) as floats; it is not empty and lies inside."""
    form = "(top, left, height, width), numbers"
    try:
        top, left, height, width = (float(each) for each in extent)
    except (TypeError, ValueError):
        raise TypeError(f"extent must be {form}, got {extent!r:.80}") from None
    inside = all(
        0 <= first < n and 0 < length <= n and first + length <= n * (1 + 1e-12)  # the sum may be rounded up
        for first, length, n in zip((top, left), (height, width), shape, strict=True)
    )
    if not inside:
        raise ValueError(
            f"extent must be {form} inside the map of {shape[0]}x{shape[1]}, got {(top, left, height, width)}"
        )
    return top, left, height, width


def grid_cell(feat: Tensor, height: int, width: int, cell: Tensor | Sequence[float] | None) -> Tensor:
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
    else:
        form = "a pair of floats or a float32 tensor [2] or [B, 2]"
        try:
            cell = tuple(cell)
        except TypeError:
            raise TypeError(f"cell must be {form}, got {cell!r:.80}") from None
        if not all(isinstance(each, float | int | torch.SymFloat | torch.SymInt | Real) for each in cell):
            raise TypeError(f"cell must be {form}, got {cell!r:.80}")
        if len(cell) != 2:
            raise ValueError(f"cell must be {form}, got {cell}")
    # Filled, not copied from the host: a copy could not be captured in a CUDA graph.
    return torch.stack([torch.full((batch,), each, dtype=torch.float32, device=feat.device) for each in cell], -1)


def latents_read(
    size: Sequence[int],
    region: Sequence[int],
    shape: Sequence[int],
    *,
    feat_unfold: bool = True,
    extent: Sequence[float] | None = None,
) -> tuple[int, int, int, int]:
    """Return the part of a feature map that a render reads, which feat must hold if `place` makes it a part.

    Args:
        size: (H_out, W_out) of the whole grid.
        region: (top, left, height, width) of the window to render.
        shape: (H, W) of the whole feature map.
        feat_unfold: as for `liif_decode`.
        extent: as for `liif_render`.

    Returns:
        (top, left, height, width) inside the map, with a margin of a few latents on each side.

    Raises:
        TypeError, ValueError: an argument cannot be used.
    """
    height, width, window = check_grid(size, region)
    shape = check_shape("shape", shape, "(H, W)")
    part = None if extent is None else check_extent(extent, shape)
    top, left, rows, columns = latent_window((height, width), window, shape, part)
    reach = 1 if feat_unfold else 0
    first = (max(top - reach, 0), max(left - reach, 0))
    last = (min(top + rows + reach, shape[0]), min(left + columns + reach, shape[1]))
    return *first, last[0] - first[0], last[1] - first[1]


def check_place(
    place: Sequence[int],
    feat: Tensor,
    size: tuple[int, int],
    region: Sequence[int],
    feat_unfold: bool,
    extent: Extent | None,
) -> Place:
    """Return the position of feat, a part that holds all latents a render's region reads, in its map."""
    form = "(top, left, map_height, map_width)"
    values = check_integers("place", place, form)
    height, width = feat.shape[2:]
    if len(values) != 4 or min(values[:2]) < 0 or values[0] + height > values[2] or values[1] + width > values[3]:
        raise ValueError(f"place must be {form} of a map that holds feat, {height}x{width}, got {values}")
    top, left, rows, columns = latents_read(size, region, values[2:], feat_unfold=feat_unfold, extent=extent)
    if region[2] * region[3] and not (
        values[0] <= top
        and top + rows <= values[0] + height
        and values[1] <= left
        and left + columns <= values[1] + width
    ):
        raise ValueError(
            f"feat must hold the latents that the region reads, {rows}x{columns} at ({top}, {left}), "
            f"got {height}x{width} at ({values[0]}, {values[1]})"
        )
    return values[0], values[1], values[2], values[3]
