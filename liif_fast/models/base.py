"""What LIIF and MetaSR share: an encoder, features that are kept, and queries of them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from liif_fast.layers import render_by_query


class FeatureModel(nn.Module):
    """An encoder whose features are kept between `gen_feat` and the queries.

    Copies and pickles leave the features (and the image they came from) behind: they are results, not state,
    and a tensor with a graph cannot be copied.

    Attributes:
        feat: features of the last image, `[B, C, H, W]`; None before `gen_feat`.
    """

    encoder: Any  # an nn.Module with out_dim
    spec: dict[str, Any]
    feat: Tensor | None = None
    inp: Tensor | None = None  # the last image, where a subclass needs it

    def output_channels(self) -> int | None:
        """How many channels the output has; None where only running the model tells."""
        return None

    def gen_feat(self, inp: Tensor) -> Tensor:
        """Encode an image and keep its features for `query_rgb`.

        Args:
            inp: `[B, 3, H, W]`, normalised as in training.

        Returns:
            The features `[B, C, H, W]`, also kept as `self.feat`.
        """
        self.feat = self.encoder(inp)
        return self.feat

    def query_rgb(self, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        """Decode the features kept by `gen_feat` at any coordinates.

        Args:
            coord: float32 `[B, Q, 2]`, (row, column) in [-1, 1].
            cell: float32 `[B, Q, 2]`, (2 / H_out, 2 / W_out).

        Returns:
            `[B, Q, out]`, normalised and not clamped.

        Raises:
            ValueError, TypeError: a shape or dtype is wrong.
            RuntimeError: there are no features yet.
        """
        raise NotImplementedError

    def render_rgb(
        self,
        size: Sequence[int],
        region: Sequence[int] | None = None,
        cell: Tensor | Sequence[float] | None = None,
    ) -> Tensor:
        """Decode the features kept by `gen_feat` on a regular grid; arguments and result as `render`."""
        feat = self._encoded()
        return render_by_query(self.query_rgb, feat, size, region, cell)

    def forward(self, inp: Tensor, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        """`gen_feat` and `query_rgb` in one; afterwards `self.feat` holds the features without their graph.

        Args:
            inp: `[B, 3, H, W]`, normalised as in training.
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
    ) -> Tensor:
        """Encode an image and decode a regular grid, equal to `forward` on make_coord and make_cell of it.

        Args:
            inp: `[B, 3, H, W]`, normalised as in training.
            size: (H_out, W_out) of the whole grid.
            region: (top, left, height, width): only this window of the grid.
            cell: (row, column) for the whole image, a pair or float32 `[2]` or `[B, 2]`; None means 2 / size.

        Returns:
            `[B, out, height, width]`, normalised and not clamped.

        Raises:
            ValueError, TypeError: an argument is wrong.
        """
        self.gen_feat(inp)
        pred = self.render_rgb(size, region, cell)
        self._drop_graph()
        return pred

    def _encoded(self) -> Tensor:
        if self.feat is None:
            raise RuntimeError("no features to query: call gen_feat(inp) first")
        return self.feat

    def _drop_graph(self) -> None:
        self.feat = None if self.feat is None else self.feat.detach()
        self.inp = None if self.inp is None else self.inp.detach()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("feat", None)
        state.pop("inp", None)
        return state
