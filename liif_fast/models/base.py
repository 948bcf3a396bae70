"""The common base of LIIF, MetaSR and their relatives: an encoder, kept features and queries.

Upscaling, evaluation, verification, training and the benchmarks rely on this contract alone. A model of your own
overrides the defaults that do not fit by a class attribute or a property.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from liif_fast import functional
from liif_fast.checks import check_extent, check_grid
from liif_fast.coord import grid_axes
from liif_fast.family import STRIP_QUERIES, render_by_query
from liif_fast.models.interpolation import bilinear, bilinear_grid, interpolate_part
from liif_fast.models.norm import DATA_NORM, DataNorm, Norm
from liif_fast.models.tiles import encode
from liif_fast.window import Extent

PREDICT_QUERIES = 1 << 20  # output pixels decoded at a time; bounds the memory of `predict` beside its output
_NO_INPUT = "no input image to interpolate: call gen_feat(inp) first"


class FeatureModel(nn.Module):
    """An encoder whose features are kept between `gen_feat` and the queries.

    The encoder is a module from `[B, C, H, W]` to `[B, out_dim, s*H, s*W]`. It has the attribute `out_dim`, and if they
    differ from the defaults, `channels_in` (3), `enlargement` (s = 1) and `receptive_radius` (None).

    Copies and pickles drop the features and their image, because these are results, not state, and a tensor with a
    graph cannot be copied.

    Attributes:
        data_norm: `{'inp': {'sub': [...], 'div': [...]}, 'gt': {...}}`, 0.5 everywhere unless a file says otherwise.
        backend: the backend that decodes, if the model uses one; initially "auto".
        feat: features of the last image, `[B, C, H, W]`; None before `gen_feat`.
        inp: the last image, if `reads_input`.
        inp_place: (top, left, H, W) of `inp` in the whole image, if it is a part of one.
        clips_cell_above: the largest scale of training, if `predict`, `upscale` and `eval` keep the cell of that scale
            beyond it, as the authors of LTE do; None gives the network the true cell at every scale.
    """

    encoder: Any
    spec: dict[str, Any]
    data_norm: DataNorm = DATA_NORM
    backend = "auto"
    feat: Tensor | None = None
    inp: Tensor | None = None
    inp_place: Sequence[int] | None = None
    clips_cell_above: float | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Reset the attributes that depend on `render_rgb` in a class that overrides it."""
        super().__init_subclass__(**options)
        if "render_rgb" in cls.__dict__:
            for name, unknown in (("channels_out", None), ("renders_parts", False)):
                if name not in cls.__dict__:
                    setattr(cls, name, unknown)

    @property
    def channels_in(self) -> int:
        """Return the number of input channels."""
        return getattr(self.encoder, "channels_in", 3)

    @property
    def channels_out(self) -> int | None:
        """Return the number of output channels; None if only a run of the model shows it."""
        return None

    @property
    def receptive_radius(self) -> int | None:
        """Return how many pixels beyond its own a feature depends on at most; None means the whole image."""
        return getattr(self.encoder, "receptive_radius", None)

    @property
    def enlargement(self) -> int:
        """Return the number of features per input pixel along each side."""
        return getattr(self.encoder, "enlargement", 1)

    @property
    def reads_input(self) -> bool:
        """Return whether queries read `inp` in addition to the features."""
        return False

    @property
    def renders_parts(self) -> bool:
        """Return whether `render_rgb` takes `place` (`functional.liif_render`) and gives the bits of the whole map.

        LTE and LM-LIIF give them to rounding, because their convolutions run on the part. Such a model reads no pixel
        of its input outside `functional.latents_read`, and respects `inp_place`.
        """
        return False

    def norm(self) -> Norm:
        """Return the normalisation on the model's device."""
        return Norm(self.data_norm).to(next(self.parameters()).device)

    @torch.inference_mode()
    def predict(
        self,
        image: Tensor,
        size: Sequence[int],
        *,
        cell: Tensor | Sequence[float] | None = None,
        tile: int | None = None,
        norm: Norm | None = None,
    ) -> Tensor:
        """Enlarge images that fit into memory; for larger ones, alpha and files use `liif_fast.upscale`.

        Args:
            image: `[B, channels_in, H, W]` in [0, 1], on any device.
            size: (H_out, W_out).
            cell: as for `render`; None keeps it from shrinking beyond the scale `clips_cell_above`.
            tile: side of the encoder's tiles in pixels; None encodes the image as a whole.
            norm: replaces the model's own normalisation.

        Returns:
            float32 `[B, channels_out, H_out, W_out]` on the model's device, nominally in [0, 1] but not clamped.

        Raises:
            ValueError, TypeError: an argument is wrong.
        """
        parameter = next(self.parameters())
        norm = self.norm() if norm is None else norm.to(parameter.device)
        inp = norm.inp(image.to(parameter.device)).to(parameter.dtype)
        self.keep(self.encoder(inp) if tile is None else encode(self.encoder, inp, tile), inp)
        cell = self.cell_for(size, inp.shape[2:]) if cell is None else cell
        rows = max(1, PREDICT_QUERIES // size[1])
        strips = [
            self.render_rgb(size, (top, 0, min(rows, size[0] - top), size[1]), cell) for top in range(0, size[0], rows)
        ]
        self.feat = self.inp = None
        return norm.image(torch.cat(strips, 2).float())

    def cell_for(
        self, size: Sequence[int], shape: Sequence[int], extent: Extent | None = None
    ) -> tuple[float, float] | None:
        """Return the cell for enlarging an image of `shape`, or its part `extent`, to `size`; None is the true cell.

        On each axis it is the true cell times max(scale / clips_cell_above, 1).
        """
        limit = self.clips_cell_above
        return None if limit is None else clipped_cell(size, shape, limit, extent)

    def gen_feat(self, inp: Tensor) -> Tensor:
        """Encode an image and keep its features for `query_rgb`.

        Args:
            inp: `[B, channels_in, H, W]`, normalised as in training.

        Returns:
            The features `[B, C, H, W]`, also kept as `self.feat`.
        """
        feat: Tensor = self.encoder(inp)
        self.keep(feat, inp)
        return feat

    def keep(self, feat: Tensor, inp: Tensor) -> None:
        """Keep features encoded elsewhere, and their input, for `query_rgb`."""
        self.feat, self.inp = feat, inp if self.reads_input else None

    def query_rgb(self, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        """Decode the features kept by `gen_feat` at any coordinates.

        Args:
            coord: float32 `[B, Q, 2]`, (row, column) in [-1, 1].
            cell: float32 `[B, Q, 2]`, (2 / H_out, 2 / W_out).

        Returns:
            `[B, Q, out]`, normalised and not clamped.

        Raises:
            ValueError, TypeError: a shape or dtype is wrong.
            RuntimeError: no features are kept yet.
        """
        raise NotImplementedError

    def render_rgb(
        self,
        size: Sequence[int],
        region: Sequence[int] | None = None,
        cell: Tensor | Sequence[float] | None = None,
        *,
        extent: Sequence[float] | None = None,
    ) -> Tensor:
        """Decode the features kept by `gen_feat` on a regular grid; arguments and result as `render`."""
        feat = self.features()
        return render_by_query(self.query_rgb, feat, size, region, cell, self._in_latents(extent))

    def forward(self, inp: Tensor, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        """Run `gen_feat` and `query_rgb`; afterwards `self.feat` holds the features without their graph.

        Args:
            inp: `[B, channels_in, H, W]`, normalised as in training.
            coord: float32 `[B, Q, 2]`, (row, column) in [-1, 1].
            cell: float32 `[B, Q, 2]`, (2 / H_out, 2 / W_out).

        Returns:
            `[B, Q, out]`, normalised and not clamped.

        Raises:
            ValueError, TypeError: a shape or dtype is wrong.
        """
        self.gen_feat(inp)
        pred = self.query_rgb(coord, cell)
        self._drop_graph()
        return pred

    def render(
        self,
        inp: Tensor,
        size: Sequence[int],
        region: Sequence[int] | None = None,
        cell: Tensor | Sequence[float] | None = None,
        *,
        extent: Sequence[float] | None = None,
    ) -> Tensor:
        """Encode an image and decode a regular grid; equals `forward` on its make_coord and make_cell.

        Args:
            inp: `[B, channels_in, H, W]`, normalised as in training.
            size: (H_out, W_out) of the whole grid.
            region: (top, left, height, width) of a window of the grid; None means all of it.
            cell: (row, column) for the whole image, a pair or float32 `[2]` or `[B, 2]`; None means 2 / size.
            extent: (top, left, height, width) in pixels of the input, fractions allowed: the part of it that the grid
                covers. None is all of it.

        Returns:
            `[B, out, height, width]`, normalised and not clamped.

        Raises:
            ValueError, TypeError: an argument is wrong.
        """
        self.gen_feat(inp)
        further: Any = {} if extent is None else {"extent": extent}  # a user's model may not take it
        pred = self.render_rgb(size, region, cell, **further)
        self._drop_graph()
        return pred

    def _in_latents(self, extent: Sequence[float] | None) -> Extent | None:
        if extent is None:
            return None
        top, left, height, width = (each * self.enlargement for each in extent)
        return top, left, height, width

    def features(self) -> Tensor:
        """Return the kept features; raise RuntimeError before `gen_feat`."""
        if self.feat is None:
            raise RuntimeError("no features to query: call gen_feat(inp) first")
        return self.feat

    def interpolate(self, coord: Tensor) -> Tensor:
        """Return the bilinear interpolation of `inp` at `coord` [B, Q, 2], as far as its border; [B, Q, C].

        Raises:
            RuntimeError: there is no input image.
        """
        if self.inp is None:
            raise RuntimeError(_NO_INPUT)
        return bilinear(self.inp, coord, self.inp_place)

    def interpolate_grid(
        self,
        size: Sequence[int],
        region: Sequence[int] | None,
        extent: Extent | None,
        shape: Sequence[int],
    ) -> Tensor:
        """Return `interpolate` on a window of a grid, `[B, C, h, w]`; of a part of `inp` with the bits of the whole.

        `extent` is in latents of the whole map, of size `shape`; the other arguments are those of `render`.
        """
        if self.inp is None:
            raise RuntimeError(_NO_INPUT)
        height, width, window = check_grid(size, region)
        part = None if extent is None else check_extent(extent, shape)
        rows, columns = grid_axes((height, width), window, part, shape, device=self.features().device)
        if self.inp_place is not None:
            return interpolate_part(self.inp, self.inp_place, rows, columns)
        strips = rows.split(max(1, STRIP_QUERIES // max(1, len(columns)))) if len(rows) else (rows,)
        return torch.cat([bilinear_grid(self.inp, strip, columns) for strip in strips], 2)

    def _drop_graph(self) -> None:
        self.feat = None if self.feat is None else self.feat.detach()
        self.inp = None if self.inp is None else self.inp.detach()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("feat", None)
        state.pop("inp", None)
        return state


def clipped_cell(
    size: Sequence[int], shape: Sequence[int], scale: float, extent: Extent | None = None
) -> tuple[float, float]:
    """Return the cell of a grid over an image of `shape`, or its part; on each axis at least that of `scale`."""
    lengths = shape if extent is None else extent[2:]
    row, column = (
        2 / out * (length / n) * max(out / length / scale, 1.0)
        for out, length, n in zip(size, lengths, shape, strict=True)
    )
    return row, column


def render_in_strips(
    strip: Callable[[Tensor, Sequence[int], Sequence[int]], Tensor],
    feat: Tensor,
    size: tuple[int, int],
    window: Sequence[int],
    place: Sequence[int] | None,
    extent: Sequence[float] | None,
    out: int,
) -> Tensor:
    """Render a window by a function that first makes larger maps of the features, a strip of its rows at a time.

    Args:
        strip: gets the latents that a strip reads, with a margin of one, the strip's window and the latents' place, as
            `functional.liif_render` takes it; returns `[B, out, h, w]`.
        feat, size, window: the features, the grid's size, and its window.
        place, extent: where in a map feat lies, and the part of that map that the grid covers.
        out: channels of the output.

    Raises:
        ValueError: feat does not hold all latents that the window reads.
    """
    first, start, *whole = place or (0, 0, *feat.shape[2:])
    top, left, rows, columns = window
    if not rows * columns:
        return feat.new_zeros(len(feat), out, rows, columns)
    step, strips = max(1, STRIP_QUERIES // columns), []
    for begin in range(top, top + rows, step):
        part = (begin, left, min(step, top + rows - begin), columns)
        row, column, height, width = functional.latents_read(size, part, whole, extent=extent)
        y, x = row - first, column - start
        if min(y, x) < 0 or y + height > feat.shape[2] or x + width > feat.shape[3]:
            raise ValueError(
                f"feat must hold the latents that the region reads, {height}x{width} at ({row}, {column}), "
                f"got {feat.shape[2]}x{feat.shape[3]} at ({first}, {start})"
            )
        strips.append(strip(feat[:, :, y : y + height, x : x + width], part, (row, column, *whole)))
    return torch.cat(strips, 2)
