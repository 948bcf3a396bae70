"""Mix two models of one network: their weights, where one was trained on from the other.

    python -m benchmarks.mix FIRST SECOND SHARE OUT.safetensors

OUT holds (1 - SHARE) of the first one's weights and SHARE of the second one's. Between a model and what it became by
further training, the mixture keeps most of both (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
"""

import argparse
from typing import Any

import torch

from liif_fast import save_model
from liif_fast.models.catalogue import resolve_model


def mixed(first: Any, second: Any, share: float) -> Any:
    """Return the first model with weights between its own and the second one's.

    Raises:
        ValueError: they are different networks, or differ in the normalisation of their data.
    """
    if first.spec != second.spec or first.data_norm != second.data_norm:
        raise ValueError("models: must be of one network and data_norm")
    others = second.state_dict()
    first.load_state_dict({key: torch.lerp(value, others[key], share) for key, value in first.state_dict().items()})
    return first


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mix", description=__doc__.splitlines()[0])
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("share", type=float)
    parser.add_argument("out")
    args = parser.parse_args()
    save_model(mixed(*(resolve_model(each, "cpu") for each in (args.first, args.second)), args.share), args.out)


if __name__ == "__main__":
    main()
