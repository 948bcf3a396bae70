"""LIIF as OpenMMLab publishes it (mmagic, formerly mmediting): other names of the same tensors, another data_norm."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from liif_fast.models.blocks import RGB_MEAN, MeanShift
from liif_fast.models.rdn import CONFIGS

PREFIX = "generator."
# (pattern of their names after PREFIX, the name here)
EDSR = (
    (r"conv_first\.(\w+)", r"encoder.head.0.\1"),
    (r"body\.(\d+)\.conv1\.(\w+)", r"encoder.body.\1.body.0.\2"),
    (r"body\.(\d+)\.conv2\.(\w+)", r"encoder.body.\1.body.2.\2"),
    (r"conv_after_body\.(\w+)", r"encoder.body.{blocks}.\1"),
)
RDN = (
    (r"sfe([12])\.(\w+)", r"encoder.SFENet\1.\2"),
    (r"rdbs\.(\d+)\.layers\.(\d+)\.conv\.(\w+)", r"encoder.RDBs.\1.convs.\2.conv.0.\3"),
    (r"rdbs\.(\d+)\.lff\.(\w+)", r"encoder.RDBs.\1.LFF.\2"),
    (r"gff\.([01])\.(\w+)", r"encoder.GFF.\1.\2"),
)
IMNET = ((r"imnet\.(layers\.\d+\.\w+)", r"imnet.\1"),)
NORM = {"sub": list(RGB_MEAN), "div": [1.0, 1.0, 1.0]}


def translate(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a checkpoint of mmagic's LIIF as `{'model': {'name', 'args', 'sd'}, 'data_norm'}`, any other as it is.

    The file holds no arguments; they are read off the tensors' names and shapes.

    Raises:
        ValueError: the file is mmagic's, but its model is not a LIIF on EDSR or RDN.
    """
    state = content.get("state_dict")
    if "model" in content or not isinstance(state, Mapping) or not any(str(key).startswith(PREFIX) for key in state):
        return content
    theirs = {key.removeprefix(PREFIX): value for key, value in state.items() if str(key).startswith(PREFIX)}
    if not all(isinstance(value, Tensor) for value in theirs.values()):
        raise ValueError(f"state_dict must map names to tensors under {PREFIX!r}")
    table = RDN if "sfe1.weight" in theirs else EDSR
    blocks = _count(theirs, r"(?:body|rdbs)\.(\d+)\.")
    sd, unknown = {}, []
    for key, value in theirs.items():
        name = _renamed(key, (*table, *IMNET))
        if name is None:
            unknown.append(key)
        else:
            sd[name.replace("{blocks}", str(blocks))] = value
    if unknown:
        raise ValueError(f"a file of mmagic whose model is not a LIIF on EDSR or RDN: it has {PREFIX}{unknown[0]}")
    shapes = {key: value.shape for key, value in theirs.items()}
    encoder, features = _rdn(shapes, blocks) if table is RDN else _edsr(shapes, blocks)
    if table is EDSR:
        for name, sign in (("sub_mean", -1), ("add_mean", 1)):  # nothing uses them, and mmagic lacks them
            sd |= {f"encoder.{name}.{key}": value for key, value in MeanShift(1, sign).state_dict().items()}
    args = {"encoder_spec": encoder, **_decoder(shapes, features)}
    return {"model": {"name": "liif", "args": args, "sd": sd}, "data_norm": {"inp": NORM, "gt": NORM}}


def _renamed(key: str, table: tuple[tuple[str, str], ...]) -> str | None:
    return next((match.expand(name) for pattern, name in table if (match := re.fullmatch(pattern, key))), None)


def _count(names: Mapping[str, Any], pattern: str) -> int:
    """Return one more than the largest number that the pattern finds at the beginning of a name."""
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)


def _shape(shapes: Mapping[str, torch.Size], key: str, dims: int) -> torch.Size:
    if len(shapes.get(key, ())) != dims:
        raise ValueError(f"a file of mmagic without its LIIF on EDSR or RDN: {PREFIX}{key} is missing or no weight")
    return shapes[key]


def _edsr(shapes: Mapping[str, torch.Size], blocks: int) -> tuple[dict[str, Any], int]:
    """Return the encoder's spec and the channels of its features."""
    feats, colours = _shape(shapes, "conv_first.weight", 4)[:2]
    args = {"n_resblocks": blocks, "n_feats": feats, "n_colors": colours, "no_upsampling": True}
    return {"name": "edsr-baseline", "args": args}, feats


def _rdn(shapes: Mapping[str, torch.Size], blocks: int) -> tuple[dict[str, Any], int]:
    """Return the encoder's spec and the channels of its features."""
    layers = _count(shapes, r"rdbs\.0\.layers\.(\d+)\.")
    growth = _shape(shapes, "rdbs.0.layers.0.conv.weight", 4)[0]
    config = next((name for name, each in CONFIGS.items() if each == (blocks, layers, growth)), None)
    if config is None:
        known = ", ".join(f"{name} {each}" for name, each in CONFIGS.items())
        raise ValueError(f"RDN must have (blocks, layers, growth) of {known}, got {(blocks, layers, growth)}")
    feats, colours, side, _ = _shape(shapes, "sfe1.weight", 4)
    args = {"G0": feats, "RDNkSize": side, "RDNconfig": config, "n_colors": colours, "no_upsampling": True}
    return {"name": "rdn", "args": args}, feats


def _decoder(shapes: Mapping[str, torch.Size], features: int) -> dict[str, Any]:
    """Return LIIF's arguments beside the encoder."""
    count = _count(shapes, r"imnet\.layers\.(\d+)\.")
    weights = [_shape(shapes, f"imnet.layers.{number}.weight", 2) for number in range(0, max(count, 1), 2)]
    # local_ensemble leaves no trace; every configuration of mmagic has it.
    switches = {9 * features + 4: (True, True), 9 * features + 2: (True, False), features + 4: (False, True)}
    unfold, cell = switches.get(weights[0][1], (False, False))
    hidden, out = [outs for outs, _ in weights[:-1]], weights[-1][0]
    imnet = {"name": "mlp", "args": {"out_dim": out, "hidden_list": hidden}}
    return {"imnet_spec": imnet, "feat_unfold": unfold, "cell_decode": cell}
