"""Run an instance of an original class (LIIF, MetaSR, LTE, LM-LIIF), recognised by its attributes, on our kernels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from liif_fast import functional
from liif_fast.checks import grid_cell
from liif_fast.coord import make_cell, make_coord
from liif_fast.family import render_by_query
from liif_fast.layers import Chain, chain_of, linear_chain
from liif_fast.models import metasr
from liif_fast.models.base import FeatureModel
from liif_fast.models.interpolation import bilinear
from liif_fast.models.lte import by_pairs

SWITCHES = ("local_ensemble", "feat_unfold", "cell_decode")  # of LIIF
WAVES = ("coef", "freq", "phase")  # of LTE and LTE+
TOLERANCE = 1e-4  # relative to the largest output; float32 sums in another order differ by about 1e-6


def accelerate(module: nn.Module) -> nn.Module:
    """Make an instance of the original LIIF, MetaSR, LTE, LTE+ or LM-LIIF class decode through our kernels.

    The module stays the same object with the same parameters, hooks and training. Its class becomes a subclass of its
    own class with our `query_rgb` and a `render`. The module's own `query_rgb` still runs where ours does not apply,
    e.g. after a hook is added to LIIF's network. The cell is the caller's, also for LTE.

    Args:
        module: float32 or float64, with the original's attributes: encoder, imnet (with `layers`: Linear, ReLU, ...,
            Linear), gen_feat, query_rgb; for LIIF local_ensemble, feat_unfold, cell_decode; for LTE coef, freq, phase.
            LTE+ has layers (1x1 convolutions) instead of imnet, LM-LIIF hypernet and gen_feats.

    Returns:
        `module`.

    Raises:
        TypeError: an attribute is missing or of the wrong kind.
        ValueError: its outputs on a small random image differ from ours, or it does not run on this machine; the
            module is unchanged.
    """
    if isinstance(module, FeatureModel | _Accelerated):
        return module
    ours = _kind(module)
    _check_attributes(module, ours)
    _change_class(module, ours)
    return module


def _kind(module: Any) -> "type[_Accelerated]":
    if all(hasattr(module, name) for name in WAVES):
        return _AcceleratedLTE if hasattr(module, "imnet") else _AcceleratedLTEPlus
    if hasattr(module, "hypernet"):
        return _AcceleratedLMLIIF
    return _AcceleratedLIIF if any(hasattr(module, name) for name in SWITCHES) else _AcceleratedMetaSR


def _change_class(module: Any, ours: "type[_Accelerated]") -> None:
    """Set the subclass, and keep it if its outputs equal those of the module's own class."""
    own_class = type(module)
    with _undisturbed(module), torch.no_grad():
        probe = ours.probe(*_probe(next(module.parameters())))
        try:
            expected = ours.outputs(module, *probe)
        except Exception as error:  # e.g. the original's query_rgb needs a GPU
            raise ValueError(
                f"module does not run here, so its outputs cannot be compared ({error}); "
                "liif_fast.load_model reads its checkpoint on any machine"
            ) from error
        module.__class__ = _accelerated(ours, own_class)
        try:
            for name, out in ours.outputs(module, *probe).items():
                _compare(f"{name} does not compute {ours.NAME}", out, expected[name])
        except Exception:
            module.__class__ = own_class
            raise


class _Accelerated:
    """Precedes the original class in the subclass's bases and reads its attributes."""

    NAME: str
    NEEDS: tuple[str, ...] = ("encoder", "imnet", "gen_feat", "query_rgb")  # attributes
    NETWORK = "imnet"  # the attribute that decodes
    RESULTS: tuple[str, ...] = ("feat",)  # what gen_feat leaves for query_rgb
    backend = "auto"

    def __reduce__(self) -> tuple[Any, ...]:
        ours, own_class = cast(Any, type(self).__bases__)
        return _restore, (ours, own_class), {key: value for key, value in vars(self).items() if key not in ours.RESULTS}

    @classmethod
    def probe(cls, image: Tensor, coord: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return an image and queries of it, [B, Q, 2], as the class takes them."""
        return image, coord, cell

    @classmethod
    def outputs(cls, module: Any, image: Tensor, coord: Tensor, cell: Tensor) -> dict[str, Tensor]:
        """Return the outputs to compare, by the name of the method that computes them."""
        module.gen_feat(image)
        return {"query_rgb": module.query_rgb(coord, cell), "forward": module(image, coord, cell)}

    @staticmethod
    def chain(module: Any) -> Chain | None:
        """Return the weights of the module's network, if it can run fused."""
        return chain_of(module.imnet)

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
    NEEDS = (*_Accelerated.NEEDS, *SWITCHES)

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


class _AcceleratedLTE(_Accelerated):
    NAME = "LTE"
    NEEDS = (*_Accelerated.NEEDS, *WAVES)
    RESULTS: tuple[str, ...] = ("feat", "inp", "coeff", "freqq")

    def query_rgb(self: Any, coord: Tensor, cell: Tensor) -> Tensor:
        chain = self.chain(self)
        if chain is None:
            return super().query_rgb(coord, cell)  # type: ignore[misc]
        pred = functional.fourier_decode(self.waves(), coord, cell, self.phase.weight, *chain, backend=self.backend)
        return pred + bilinear(self.inp, coord)

    def waves(self: Any) -> Tensor:
        """Return amplitudes and frequencies from the two maps that gen_feat of LTE's class has left."""
        return torch.cat((self.coeff, self.freqq), 1)

    def _render(self: Any, size: Sequence[int], region: Any, cell: Any) -> Tensor:
        return render_by_query(self.query_rgb, self.feat, size, region, cell)


class _AcceleratedLTEPlus(_AcceleratedLTE):
    """Run LTE+, whose queries are grids, coord [B, h, w, 2] and cell [B, 2], and whose output is [B, out, h, w]."""

    NAME = "LTE+"
    NEEDS = ("encoder", "layers", "gen_feat", "query_rgb", *WAVES)
    NETWORK = "layers"
    RESULTS = ("feat", "inp")

    @classmethod
    def probe(cls, image: Tensor, coord: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return image, coord.unsqueeze(2), cell[:, 0]

    @staticmethod
    def chain(module: Any) -> Chain | None:
        return linear_chain(module.layers, nn.Conv2d)

    def query_rgb(self: Any, coord: Tensor, cell: Tensor) -> Tensor:
        if self.chain(self) is None:
            return super(_AcceleratedLTE, self).query_rgb(coord, cell)  # type: ignore[misc]
        flat = coord.flatten(1, 2)
        out = super().query_rgb(flat, cell.unsqueeze(1).expand(flat.shape))
        return out.transpose(1, 2).unflatten(2, coord.shape[1:3])

    def waves(self: Any) -> Tensor:
        return torch.cat((self.coef(self.feat), by_pairs(self.freq(self.feat))), 1)

    def _render(self: Any, size: Sequence[int], region: Any, cell: Any) -> Tensor:
        def query(coord: Tensor, cell: Tensor) -> Tensor:
            return self.query_rgb(coord.unsqueeze(2), cell[:, 0]).flatten(2).transpose(1, 2)

        return render_by_query(query, self.feat, size, region, cell)


class _AcceleratedLMLIIF(_Accelerated):
    """Run LM-LIIF, whose queries get the features and the modulations from forward."""

    NAME = "LM-LIIF"
    NEEDS = ("encoder", "imnet", "hypernet", "gen_feats", "gen_modulations", "query_rgb", "query_rgb_fast", "mod_dim")
    RESULTS = ("inp", "feat_coord")

    @classmethod
    def outputs(cls, module: Any, image: Tensor, coord: Tensor, cell: Tensor) -> dict[str, Tensor]:
        return {"forward": module(image, coord, cell)}

    def query_rgb(self: Any, feat: Tensor, mod: Tensor, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        return self._modulated(super().query_rgb, feat, mod, coord, cell)  # type: ignore[misc]

    def query_rgb_fast(self: Any, feat: Tensor, mod: Tensor, coord: Tensor, cell: Tensor | None = None) -> Tensor:
        return self._modulated(super().query_rgb_fast, feat, mod, coord, cell)  # type: ignore[misc]

    def _modulated(self: Any, own: Any, feat: Tensor, mod: Tensor, coord: Tensor, cell: Tensor | None) -> Tensor:
        chain = self.chain(self)
        if chain is None or not (self.imnet.mod_scale and self.imnet.mod_shift):
            return own(feat, mod, coord, cell)
        options: dict[str, Any] = {name: bool(getattr(self, name)) for name in ("local_ensemble", "cell_decode")}
        maps = torch.cat((mod[:, : self.mod_dim], feat), 1)
        return functional.modulated_decode(maps, coord, cell, *chain, backend=self.backend, **options)

    def render(
        self: Any,
        inp: Tensor,
        size: Sequence[int],
        region: Sequence[int] | None = None,
        cell: Tensor | Sequence[float] | None = None,
    ) -> Tensor:
        """Render a grid as `render` of `liif_fast.LMLIIF`."""
        feat, rich = self.gen_feats(inp)
        cells = grid_cell(feat, size[0], size[1], cell).unsqueeze(1).expand(-1, feat.shape[2] * feat.shape[3], 2)
        mod = self.gen_modulations(rich, cells)
        feat = mod[:, self.mod_dim :] if self.mod_input else feat

        def query(coord: Tensor, cell: Tensor) -> Tensor:
            return self.query_rgb_fast(feat, mod, coord, cell)

        return render_by_query(query, feat, size, region, cell)


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


def _check_attributes(module: Any, ours: type[_Accelerated]) -> None:
    original = "an instance of the original LIIF, MetaSR, LTE, LTE+ or LM-LIIF class"
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be {original}, got {type(module).__name__}")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TypeError(f"module is a {type(module).__name__}: pass its .module, and wrap that afterwards")
    missing = [name for name in ours.NEEDS if not hasattr(module, name)]
    if missing:
        raise TypeError(
            f"module must be {original}, but it has no {', '.join(missing)}; for your own network use "
            "liif_fast.LIIFDecoder or register its encoder, see docs/models.md"
        )
    if not isinstance(getattr(module, ours.NETWORK), nn.Module) or ours.chain(module) is None:
        holds, layer = ("have 'layers',", "Linear") if ours.NETWORK == "imnet" else ("be", "1x1 Conv2d")
        raise TypeError(
            f"module.{ours.NETWORK} must {holds} a Sequential of {layer} (with bias), ReLU, ..., {layer}, no hooks"
        )
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if not dtypes <= {torch.float32} and not dtypes <= {torch.float64}:
        raise TypeError(
            f"module must be float32 or float64 to be compared, got {sorted(map(str, dtypes))}; convert it afterwards"
        )


@contextmanager
def _undisturbed(module: Any) -> Iterator[None]:
    """Switch to evaluation mode; restore all modes, the module's attributes and the random state afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    attributes = dict(vars(module))
    device = next(module.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            module.eval()
            yield
        finally:
            vars(module).clear()
            vars(module).update(attributes)
            for part, mode in modes:
                part.training = mode


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
