"""Run an instance of the original LIIF or MetaSR class, recognised by its attributes, on our kernels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from liif_fast import functional
from liif_fast.coord import make_cell, make_coord
from liif_fast.layers import chain_of, render_by_query
from liif_fast.models import metasr
from liif_fast.models.base import FeatureModel

SHARED = ("encoder", "imnet", "gen_feat", "query_rgb")
SWITCHES = ("local_ensemble", "feat_unfold", "cell_decode")  # of LIIF; MetaSR has none
TOLERANCE = 1e-4  # relative to the largest output; float32 sums in another order differ by about 1e-6


def accelerate(module: nn.Module) -> nn.Module:
    """Make an instance of the original LIIF or MetaSR class decode through our kernels.

    The module stays the same object with the same parameters, hooks and training. Its class becomes a subclass of its
    own class with our `query_rgb` and a `render`. The module's own `query_rgb` still runs where ours does not apply,
    e.g. after a hook is added to LIIF's network.

    Args:
        module: float32 or float64, with the original's attributes: encoder, imnet (with `layers`: Linear, ReLU, ...,
            Linear), gen_feat, query_rgb, and for LIIF local_ensemble, feat_unfold, cell_decode.

    Returns:
        `module`.

    Raises:
        TypeError: an attribute is missing or of the wrong kind.
        ValueError: its outputs on a small random image differ from ours, or it does not run on this machine; the
            module is unchanged.
    """
    if isinstance(module, FeatureModel | _Accelerated):
        return module
    _check_attributes(module)
    _change_class(module, _AcceleratedLIIF if hasattr(module, SWITCHES[0]) else _AcceleratedMetaSR)
    return module


def _change_class(module: Any, ours: "type[_Accelerated]") -> None:
    """Set the subclass, and keep it if its outputs equal those of the module's own class."""
    own_class = type(module)
    with _undisturbed(module), torch.no_grad():
        image, coord, cell = _probe(next(module.parameters()))
        try:
            feat = module.gen_feat(image)
            own_queries = module.query_rgb(coord, cell)
            own_output = module(image, coord, cell)
        except Exception as error:  # e.g. the original's query_rgb needs a GPU
            raise ValueError(
                f"module does not run here, so its outputs cannot be compared ({error}); "
                "liif_fast.load_model reads its checkpoint on any machine"
            ) from error
        module.__class__ = _accelerated(ours, own_class)
        try:
            module.feat = feat
            _compare(f"query_rgb does not compute {ours.NAME}", module.query_rgb(coord, cell), own_queries)
            _compare(f"forward does not compute {ours.NAME}", module(image, coord, cell), own_output)
        except Exception:
            module.__class__ = own_class
            raise


class _Accelerated:
    """Precedes the original class in the subclass's bases and reads its attributes."""

    NAME: str
    backend = "auto"

    def __reduce__(self) -> tuple[Any, ...]:
        ours, own_class = type(self).__mro__[1], type(self).__mro__[3]
        return _restore, (ours, own_class), {key: value for key, value in vars(self).items() if key != "feat"}

    def render(
        self: Any,
        inp: Tensor,
        size: Sequence[int],
        region: Sequence[int] | None = None,
        cell: Tensor | Sequence[float] | None = None,
    ) -> Tensor:
        """Encode an image and decode a grid; see `liif_fast.LIIF.render`."""
        self.gen_feat(inp)
        return self._render(size, region, cell)


class _AcceleratedLIIF(_Accelerated):
    NAME = "LIIF"

    def query_rgb(self: Any, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        chain = chain_of(self.imnet)
        if chain is None:
            return super().query_rgb(coord, cell)  # type: ignore[misc]
        return functional.liif_decode(self.feat, coord, cell, *chain, backend=self.backend, **_switches(self))

    def _render(self: Any, size: Sequence[int], region: Any, cell: Any) -> Tensor:
        chain = chain_of(self.imnet)
        if chain is None:
            raise ValueError("render needs an imnet of only Linear and ReLU layers, without hooks")
        options = {"region": region, "cell": cell, "backend": self.backend, **_switches(self)}
        return functional.liif_render(self.feat, size, *chain, **options)


class _AcceleratedMetaSR(_Accelerated):
    NAME = "MetaSR"

    def query_rgb(self: Any, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        return metasr.query(self.feat, coord, cell, self.imnet, self.backend)

    def _render(self: Any, size: Sequence[int], region: Any, cell: Any) -> Tensor:
        return render_by_query(self.query_rgb, self.feat, size, region, cell)


_classes: dict[tuple[type, type], type] = {}


def _accelerated(ours: type[_Accelerated], own_class: type) -> type:
    key = ours, own_class
    if key not in _classes:
        _classes[key] = type(own_class.__name__, key, {"__doc__": own_class.__doc__})
    return _classes[key]


def _restore(ours: type[_Accelerated], own_class: type) -> Any:
    """Restore a pickled or copied instance; pickle cannot name a class made at run time."""
    return object.__new__(_accelerated(ours, own_class))


def _switches(module: Any) -> dict[str, Any]:
    return {name: bool(getattr(module, name)) for name in SWITCHES}


def _check_attributes(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an instance of the original LIIF or MetaSR class, got {type(module).__name__}")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TypeError(f"module is a {type(module).__name__}: pass its .module, and wrap that afterwards")
    switches = [name for name in SWITCHES if hasattr(module, name)]
    missing = [name for name in (*SHARED, *(SWITCHES if switches else ())) if not hasattr(module, name)]
    if missing:
        raise TypeError(
            f"module must be an instance of the original LIIF or MetaSR class, but it has no {', '.join(missing)}; for "
            "your own network use liif_fast.LIIFDecoder or register its encoder, see docs/models.md"
        )
    if not isinstance(module.imnet, nn.Module) or chain_of(module.imnet) is None:
        raise TypeError(
            "module.imnet must have 'layers', a Sequential of Linear (with bias), ReLU, ..., Linear, no hooks"
        )
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if not dtypes <= {torch.float32} and not dtypes <= {torch.float64}:
        raise TypeError(
            f"module must be float32 or float64 to be compared, got {sorted(map(str, dtypes))}; convert it afterwards"
        )


@contextmanager
def _undisturbed(module: Any) -> Iterator[None]:
    """Switch to evaluation mode; restore all modes, the features and the random state afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    had, feat = "feat" in vars(module), vars(module).get("feat")
    device = next(module.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            module.eval()
            yield
        finally:
            for part, mode in modes:
                part.training = mode
            vars(module).pop("feat", None)
            if had:
                module.feat = feat


def _probe(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a small image, and coord and cell of all pixels at x3, which include ties, and of random queries."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 9, 11, generator=generator).mul(2).sub(1).to(like)
    size = (3 * image.shape[2], 3 * image.shape[3])
    away = torch.rand(500, 2, generator=generator) * 2.2 - 1.1
    coord = torch.cat((make_coord(size), away)).to(like.device)
    cell = torch.cat((make_cell(size), torch.rand(500, 2, generator=generator) * 0.2)).to(like.device)
    return image, coord.expand(2, -1, 2), cell.expand(2, -1, 2)


def _compare(complaint: str, ours: Tensor, own: Tensor) -> None:
    if ours.shape != own.shape:
        raise ValueError(f"module.{complaint}: its output is {list(own.shape)}, ours {list(ours.shape)}")
    error = (ours - own).abs().max().item()
    largest = own.abs().max().item()
    if not error <= TOLERANCE * largest:
        raise ValueError(f"module.{complaint}: largest difference {error:.3g} at outputs up to {largest:.3g}")
