"""Define the kinds of call to examine, and their inputs, which are small for interpreted or emulated kernels."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from liif_fast import backends, functional, make_cell, make_coord
from liif_fast.backends import cpu, verdict
from liif_fast.backends.verdict import AMX
from liif_fast.call import Call, Switches
from liif_fast.qualification import transformer

OPS = ("gather_corners", "decode", "render", "fused_mlp", "fourier_decode", "attend_corners")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
PRECISIONS = {"cuda": tuple(DTYPES), "cpu": ("float32",), AMX: ("bfloat16",)}
# (H, W) of the map, queries per image, and images of most checks.
USUAL = {"large": ((13, 17), 301, 2), "small": ((3, 4), 7, 1)}
HEADS = 8  # of a transformer
GUARD = 64  # NaN elements on either side of each input


class Unit(NamedTuple):
    """Name a kind of call on a backend."""

    backend: str
    op: str
    precision: str
    training: bool

    @property
    def name(self) -> str:
        """Return the unit's name in a verdict."""
        return verdict.unit(self.op, self.precision, self.training)

    def __str__(self) -> str:
        return f"{self.backend}: {self.name}"


class Network(NamedTuple):
    """Describe a decoder: the widths of its hidden layers, its outputs, the channels of the map, and its switches.

    The transformer for `attend_corners` has one or two blocks, of the next width that the kernels support.
    """

    hidden: tuple[int, ...]
    out: int
    channels: int
    switches: Switches = Switches()

    @property
    def width(self) -> int:
        """Return the channels of the latents that attend."""
        return next(width for width in (16, 32, 64) if width >= min(self.channels, 64))

    @property
    def depth(self) -> int:
        """Return the number of blocks."""
        return 2 if len(self.hidden) == 2 else 1


NETWORKS = {
    "large": (
        Network((256,) * 4, 3, 64),
        Network((100, 70), 1, 5, Switches(local_ensemble=False, cell_decode=False)),
        Network((32, 24), 64, 64, Switches(feat_unfold=False)),
    ),
    "small": (Network((20,), 3, 2), Network((33, 24), 1, 3, Switches(False, False, False))),
}


def interprets() -> bool:
    """Return whether Triton's interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def extent(device: torch.device) -> str:
    """Return the size of the problems for a device, "large" or "small"."""
    slow = interprets() or cpu.AMX_MISSING or os.environ.get("LIIF_FAST_CPU_ISA") == "amx-emulated"
    return "small" if device.type == "cpu" and slow else "large"


class Problem:
    """Hold the inputs of one call, made on the CPU from a seed and then moved to a device.

    For `modulated_decode`, every layer is as wide as the network's first, and latents include the modulations. For
    `fourier_decode`, a latent has four values per channel of the network, and the call always has four corners and a
    cell. For `attend_corners`, x holds the values to blend, a map per output, and `weights` are the transformer's.

    Args:
        network: the decoder.
        unit: the kind of call, which sets the dtype; in training, half precision comes from autocast.
        device: the device to run the call on.
        seed: seed of all numbers.
        shape: (H, W) of the feature map; None, here and below, takes the device's usual value.
        queries: queries per image; rows of `fused_mlp`, or about as many pixels of `render`.
        batch: number of images.
    """

    def __init__(
        self,
        network: Network,
        unit: Unit,
        device: torch.device,
        seed: int,
        shape: tuple[int, int] | None = None,
        queries: int | None = None,
        batch: int | None = None,
    ) -> None:
        usual = USUAL[extent(device)]
        shape, queries, batch = shape or usual[0], queries or usual[1], batch or usual[2]
        generator = torch.Generator().manual_seed(seed)
        waves, modulated = unit.op == "fourier_decode", unit.op == "modulated_decode"
        if waves:
            network = network._replace(switches=Switches(feat_unfold=False))
        if modulated:
            switches = network.switches._replace(feat_unfold=False)
            network = network._replace(hidden=network.hidden[:1] * len(network.hidden), switches=switches)
        self.network, self.unit, self.device = network, unit, device
        self.low = DTYPES[unit.precision]
        self.autocast = unit.training and self.low != torch.float32
        dtype = torch.float32 if self.autocast else self.low
        unfolded = network.channels * (9 if network.switches.feat_unfold else 1)
        self.terms = 4 if network.switches.cell_decode else 2
        widths = (2 * network.channels if waves else unfolded + self.terms, *network.hidden, network.out)

        def uniform(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.rand(shape, generator=generator) * 2 - 1) * scale

        attends = unit.op == "attend_corners"
        channels = network.width if attends else network.channels * (4 if waves else 1)
        channels += 2 * sum(network.hidden) if modulated else 0
        self.feat = torch.randn(batch, channels, *shape, generator=generator).to(dtype)
        rows = queries if unit.op == "fused_mlp" else 1
        self.x = torch.randn(batch, rows, widths[0], generator=generator).to(dtype)
        self.weights = [uniform(outs, ins, scale=ins**-0.5).to(dtype) for ins, outs in pairwise(widths)]
        self.biases = [uniform(outs, scale=ins**-0.5).to(dtype) for ins, outs in pairwise(widths)]
        if attends:
            hidden = min(network.width, *network.hidden)
            made = transformer.make(network.width, network.depth, HEADS, hidden, uniform)
            self.x = torch.randn(batch, network.out, *shape, generator=generator).to(dtype)
            self.weights, self.biases = [each.to(dtype) for _, each in made.tensors()], []
        self.coord = uniform(batch, queries, 2, scale=1.1)
        for axis, n in enumerate(shape):  # every second query lies on a border between two latents
            at = torch.randint(0, n + 1, (batch, queries), generator=generator) * 2 / n - 1
            self.coord[:, ::2, axis] = at[:, ::2]
        self.cell = torch.rand(batch, queries, 2, generator=generator) * 0.2
        self.phase = uniform(network.channels if waves else 0, 2).to(dtype)
        side = max(2, math.isqrt(queries))
        self.size = (side, side + 1)

    @property
    def leaves(self) -> list[Tensor]:
        """Return the inputs that training differentiates: the map or x, weights, biases, and phase, if there is one."""
        first = self.x if self.unit.op == "fused_mlp" else self.feat
        if self.unit.op == "gather_corners":
            return [first]
        if self.unit.op == "attend_corners":
            weights = [each for number, each in enumerate(self.weights) if number not in transformer.SHARED]
            return [first, self.x, *weights]
        return [first, *self.weights, *self.biases, *([self.phase] if len(self.phase) else [])]

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Problem:
        """Return a copy on a device, each input between two bands of NaN; coord and cell keep their dtype."""
        other = object.__new__(Problem)
        other.__dict__.update(self.__dict__, device=device, autocast=self.autocast and dtype is None)
        for name in ("feat", "x", "phase"):
            setattr(other, name, _guarded(getattr(self, name), device, dtype))
        for name in ("coord", "cell"):
            setattr(other, name, _guarded(getattr(self, name), device, None))
        for name in ("weights", "biases"):
            setattr(other, name, [_guarded(each, device, dtype) for each in getattr(self, name)])
        if self.unit.training:
            for leaf in other.leaves:
                leaf.requires_grad_()
        return other

    def run(self, backend: str, recompute: bool | None = None, part: slice = slice(None)) -> Tensor:
        """Return a backend's output for all queries or for a part of them; for `render`, a part of the rows."""
        backend = _runs(backend)
        with self.mode():
            if self.unit.op == "fused_mlp":
                x = self.x[:, part]
                return functional.fused_mlp(x, self.weights, self.biases, backend=backend, recompute=recompute)
            options: dict[str, Any] = {**self.network.switches._asdict(), "backend": backend}
            if self.unit.op == "gather_corners":
                x, weight = functional.gather_corners(self.feat, self.coord[:, part], self.cell[:, part], **options)
                return x if self.unit.training else torch.cat([x, weight.unsqueeze(-1).to(x.dtype)], -1)
            layers = (self.weights, self.biases)
            if self.unit.op == "render":
                top, bottom, _ = part.indices(self.size[0])
                options["region"] = (top, 0, bottom - top, self.size[1])
                return functional.liif_render(self.feat, self.size, *layers, recompute=recompute, **options)
            coord, cell = self.coord[:, part], self.cell[:, part]
            if self.unit.op == "attend_corners":
                return self._attended(coord, backend=backend)
            if self.unit.op == "modulated_decode":
                del options["feat_unfold"]
                return functional.modulated_decode(self.feat, coord, cell, *layers, recompute=recompute, **options)
            if self.unit.op == "fourier_decode":
                return functional.fourier_decode(
                    self.feat, coord, cell, self.phase, *layers, backend=backend, recompute=recompute
                )
            return functional.liif_decode(self.feat, coord, cell, *layers, recompute=recompute, **options)

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        """Set autocast, TF32 and gradient recording as the unit requires."""
        kind = self.device.type
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.unit.precision == "tf32"
        try:
            with torch.set_grad_enabled(self.unit.training), torch.autocast(kind, self.low, enabled=self.autocast):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    def refusal(self) -> str:
        """Return why the unit's backend refuses the problem; "" if it does not."""
        op = self.unit.op
        widths = () if op == "gather_corners" else tuple(len(weight) for weight in self.weights)
        if op == "attend_corners":
            widths = tuple(len(block.up_weight) for block in transformer.remake(self.weights, HEADS).blocks)
        call = Call(
            op=op,
            device=self.device,
            dtype=self.feat.dtype,
            shape=tuple(self.x.shape if op == "fused_mlp" else self.feat.shape),
            queries=self.coord.shape[1],
            widths=widths,
            switches=self.network.switches,
            coord_dtype=self.coord.dtype,
            autocast=self.low if self.autocast else None,
            requires_grad=self.unit.training,
            coord_requires_grad=False,
        )
        can, reason = backends.ask(_runs(self.unit.backend), call)
        return "" if can else reason

    def formula(self, hidden: list[Tensor]) -> Tensor:
        """Return the plain formula's output; `hidden` collects the inputs of the ReLUs, [B, Q, ..., width]."""
        if self.unit.op == "fused_mlp":
            return self._network(self.x, hidden)
        if self.unit.op == "attend_corners":
            return self._attended(self.coord, backend="reference")
        coord, cell = self.coord, self.cell
        if self.unit.op == "render":
            coord, cell = (make(self.size).expand(len(coord), -1, -1) for make in (make_coord, make_cell))
        options = self.network.switches._asdict()
        x, weight = functional.gather_corners(self.feat, coord, cell, backend="reference", **options)
        if self.unit.op == "gather_corners":
            return x if self.unit.training else torch.cat([x, weight.unsqueeze(-1).to(x.dtype)], -1)
        if self.unit.op == "fourier_decode":
            x = functional.fourier_features(x, self.phase)
        form = self._modulated if self.unit.op == "modulated_decode" else self._network
        out = (form(x, hidden) * weight.unsqueeze(-1)).sum(2)
        return out.transpose(1, 2).unflatten(2, self.size) if self.unit.op == "render" else out

    def _attended(self, coord: Tensor, backend: str) -> Tensor:
        """Return the blended values and the weights beside them, [B, Q, out + 4]."""
        made = transformer.remake(self.weights, HEADS)
        return torch.cat(functional.attend_corners(self.feat, self.x, coord, made, backend=backend), -1)

    def _network(self, x: Tensor, hidden: list[Tensor]) -> Tensor:
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                hidden.append(x.detach())
            x = F.linear(F.relu(x) if layer else x, weight, bias)
        return x

    def _modulated(self, x: Tensor, hidden: list[Tensor]) -> Tensor:
        depth, neurons = len(self.weights) - 1, len(self.weights[0])
        latent, x = x.tensor_split([2 * depth * neurons], -1)
        scales, shifts = latent.unflatten(-1, (2, depth, neurons)).unbind(-3)
        for layer in range(depth):
            x = F.linear(x, self.weights[layer], self.biases[layer])
            x = x * (1 + scales[..., layer, :]) + shifts[..., layer, :]
            hidden.append(x.detach())
            x = F.relu(x)
        return F.linear(x, self.weights[-1], self.biases[-1])


def _runs(backend: str) -> str:
    return cpu.NAME if backend == AMX else backend


def _guarded(tensor: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    band = torch.full((tensor.numel() + 2 * GUARD,), math.nan, dtype=dtype or tensor.dtype, device=device)
    inside = band[GUARD : GUARD + tensor.numel()]
    return inside.copy_(tensor.flatten()).view(tensor.shape).detach()
