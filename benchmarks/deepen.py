"""Start a deeper network from a trained one: write a checkpoint that training resumes from (`resume`).

    python -m benchmarks.deepen OUT.pth --blocks 16 [--model edsr-small-liif]

New residual blocks, whose last convolution is 0, follow each residual block of the encoder. So the deeper network
computes at first what the trained one does.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from liif_fast import models
from liif_fast.models.catalogue import SHIPPED, resolve_model
from liif_fast.models.checkpoint import write_checkpoint


def deepened(model: Any, blocks: int) -> Any:
    """Return a LIIF on EDSR that computes the same with more residual blocks.

    Raises:
        ValueError: the number of blocks is not a multiple of the model's.
    """
    args = model.spec["args"]
    encoder = args["encoder_spec"]
    old = encoder["args"]["n_resblocks"]
    if blocks % old:
        raise ValueError(f"blocks: must be a multiple of the model's {old}, got {blocks}")
    spec = {**encoder, "args": {**encoder["args"], "n_resblocks": blocks}}
    torch.manual_seed(0)
    deep = models.make({"name": model.spec["name"], "args": {**args, "encoder_spec": spec}})
    weights = deep.state_dict()
    for block in range(blocks):
        for part in ("weight", "bias"):
            weights[f"encoder.body.{block}.body.2.{part}"].zero_()
    for key, value in model.state_dict().items():
        # The convolution after the blocks has the number of a next block.
        weights[re.sub(r"(?<=encoder\.body\.)\d+", lambda found: str(int(found[0]) * blocks // old), key)].copy_(value)
    return deep


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deepen", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--model", default=SHIPPED)
    args = parser.parse_args()
    model = deepened(resolve_model(args.model, "cpu"), args.blocks)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    content = {
        "model": {**model.spec, "sd": model.state_dict()},
        "optimizer": {"name": "adam", "args": {"lr": 1e-4}, "sd": optimizer.state_dict()},
        "epoch": 0,
        "data_norm": model.data_norm,
    }
    write_checkpoint(content, args.out)


if __name__ == "__main__":
    main()
