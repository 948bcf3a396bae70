"""ILN's decoder, `attend_corners`, against the form in which its authors compute it; and whole scans a second.

The plain form looks each of the four corners up by grid_sample, and puts the tokens [B, Q, 4, D] of 100,000 queries at
a time through transformer blocks made of Linear, LayerNorm and products of small matrices, one a query and head.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import eager
from benchmarks.common import EAGER
from liif_fast import functional, make_coord, models
from liif_fast.attention import CornerTransformer

CHUNK = 100_000
BACKEND_TORCH = "backend torch"


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def plain(feat: Tensor, values: Tensor, coord: Tensor, net: CornerTransformer) -> Tensor:
    """Return the values [B, Q, V] blended at queries [B, Q, 2]."""
    centres = eager.centres_of((feat.shape[2], feat.shape[3]), feat.device)
    latents, width = torch.cat((feat, values), 1), feat.shape[1]
    found, rels, _ = zip(*eager.corners(latents, centres, coord), strict=True)
    token = torch.stack(found, 2)
    x = token[..., :width] + F.linear(torch.stack(rels, 2), net.position_weight, net.position_bias)
    for block in net.blocks:
        qkv = F.linear(_norm(x, block.norm_weight, block.norm_bias), block.qkv).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (net.heads, -1)).transpose(2, 3) for part in qkv)
        attention = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        mixed = (attention @ v).transpose(2, 3).flatten(3)
        if block.out_weight is not None:
            mixed = F.linear(mixed, block.out_weight, block.out_bias)
        x = x + mixed
        hidden = F.linear(_norm(x, block.mlp_norm_weight, block.mlp_norm_bias), block.up_weight, block.up_bias)
        x = x + F.linear(F.gelu(hidden), block.down_weight, block.down_bias)
    logits = F.linear(_norm(x, net.norm_weight, net.norm_bias), net.head_weight, net.head_bias)
    return (logits.softmax(2) * token[..., width:]).sum(2)


def plain_chunks(feat: Tensor, values: Tensor, coord: Tensor, net: CornerTransformer) -> Tensor:
    """As `plain`, so many queries at a time as the authors take."""
    return torch.cat([plain(feat, values, part, net) for part in coord.split(CHUNK, 1)], 1)


def _model(depth: int, device: torch.device, small: bool) -> models.ILN:
    torch.manual_seed(0)
    encoder = {"name": "edsr-lidar", "args": {"n_resblocks": 1, "n_feats": 16}} if small else None
    model: Any = models.make({"name": "iln", "args": {"d": depth, "h": 8, "encoder_spec": encoder}})
    return model.to(device).eval()


@pytest.mark.parametrize("depth", [0, 1, 2])
@torch.no_grad()
def test_attend(
    depth: int, half: bool, device: torch.device, race: Callable[..., Any], pick: Callable[..., Any]
) -> None:
    """A scan of 16 lines to one of 64."""
    columns = pick(1024, 256, 16)
    model = _model(depth, device, pick(False, False, True))
    net, width = model.attention.transformer_of(), model.encoder.out_dim
    feat, values = torch.randn(1, width, 16, columns, device=device), torch.rand(1, 1, 16, columns, device=device)
    coord = make_coord((64, columns), device=device).unsqueeze(0)
    race(
        f"attend-d{depth}",
        f"attend_corners, d = {depth}, 16x{columns} to 64x{columns}",
        lambda: functional.attend_corners(feat, values, coord, net)[0],
        {
            EAGER: lambda: plain_chunks(feat, values, coord, net),
            BACKEND_TORCH: lambda: functional.attend_corners(feat, values, coord, net, backend="torch")[0],
        },
        functional.attend_corners(feat, values, coord, net, backend="reference")[0],
        rounds=9,
        half=half,
    )


def test_attend_backward(half: bool, device: torch.device, race: Callable[..., Any], pick: Callable[..., Any]) -> None:
    columns, count = pick(1024, 256, 16), pick(16_384, 4096, 60)
    model = _model(1, device, pick(False, False, True))
    net, width = model.attention.transformer_of(), model.encoder.out_dim
    feat = torch.randn(2, width, 16, columns, device=device, requires_grad=True)
    values = torch.rand(2, 1, 16, columns, device=device, requires_grad=True)
    coord = torch.rand(2, count, 2, device=device) * 2 - 1
    grad = torch.randn(2, count, 1, device=device)
    shifts = ("norm_bias", "head_bias")  # move all logits alike: no gradient
    leaves = (feat, values, *(tensor for name, tensor in net.tensors() if name not in shifts))

    def step(form: Callable[..., Tensor]) -> list[Tensor]:
        out = form(feat, values, coord, net)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    def ours(backend: str) -> Callable[[], list[Tensor]]:
        return lambda: step(lambda *call: functional.attend_corners(*call, backend=backend)[0])

    race(
        "attend-backward",
        f"attend_corners, forward + backward, d = 1, 2 scans 16x{columns}, Q = {count:,}",
        ours("auto"),
        {EAGER: lambda: step(plain), BACKEND_TORCH: ours("torch")},
        ours("reference")(),
        rounds=9,
        half=half,
    )


@torch.no_grad()
def test_scan(half: bool, device: torch.device, race: Callable[..., Any], pick: Callable[..., Any]) -> None:
    """Encoder included: the rate at which a stream of scans can be had."""
    columns = pick(1024, 256, 16)
    model = _model(1, device, pick(False, False, True))
    inp, coord = torch.rand(1, 1, 16, columns, device=device), make_coord((64, columns), device=device).unsqueeze(0)
    net = model.attention.transformer_of()
    race(
        "scan",
        f"ILN, d = 1, a scan 16x{columns} to 64x{columns}",
        lambda: model(inp, coord),
        {EAGER: lambda: plain_chunks(model.encoder(inp), inp, coord, net)},
        functional.attend_corners(model.encoder(inp), inp, coord, net, backend="reference")[0],
        rounds=9,
        half=half,
    )
