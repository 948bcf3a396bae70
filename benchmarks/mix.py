"""Mix the weights of two models of the same network.

    python -m benchmarks.mix FIRST SECOND SHARE OUT.safetensors [--base MODEL]

OUT holds (1 - SHARE) of the first model's weights plus SHARE of the second's. Such a mixture of a model and its
fine-tuned form keeps most of both (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).

With --base, the second model was trained further from that model. OUT then holds the first model's weights plus SHARE
of the changes by that training (Ilharco et al., "Editing models with task arithmetic", ICLR 2023). The first model may
be deeper if it began as `benchmarks.deepen` of the base.
"""

import argparse
from typing import Any

from benchmarks.deepen import deepened
from liif_fast import save_model
from liif_fast.models.catalogue import resolve_model


def mixed(first: Any, second: Any, share: float, base: Any = None) -> Any:
    """Return the first model with its weights moved by `share` of the way from the base (or from itself) to the second.

    Raises:
        ValueError: the networks or their data_norm differ.
    """
    if base is not None:
        blocks = first.spec["args"]["encoder_spec"]["args"]["n_resblocks"]
        second, base = (deepened(each, blocks) for each in (second, base))
    ends = (second, first if base is None else base)
    if any(each.spec != first.spec or each.data_norm != first.data_norm for each in ends):
        raise ValueError("models: expected the same network and data_norm, got different ones")
    goal, start = (each.state_dict() for each in ends)
    first.load_state_dict({key: value + share * (goal[key] - start[key]) for key, value in first.state_dict().items()})
    return first


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mix", description=__doc__.splitlines()[0])
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("share", type=float)
    parser.add_argument("out")
    parser.add_argument("--base", help="the model from which the second one was trained further (default: the first)")
    args = parser.parse_args()
    first, second = (resolve_model(each, "cpu") for each in (args.first, args.second))
    save_model(mixed(first, second, args.share, args.base and resolve_model(args.base, "cpu")), args.out)


if __name__ == "__main__":
    main()
