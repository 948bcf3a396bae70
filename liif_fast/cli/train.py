"""`liif-fast train`: train a model from a YAML file in the original's format."""

import argparse

from liif_fast.cli import add_device, given_path

_ABOUT = "Train a model from a YAML file in the original's format."


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("train", help="train a model from a YAML file", description=_ABOUT)
    parser.add_argument("--config", type=given_path, required=True, metavar="FILE", help="the YAML file")
    parser.add_argument("--name", help="name of the run's folder under save/ (default: _<config>[_<tag>])")
    parser.add_argument("--tag", help="a suffix for the default name")
    parser.add_argument("--resume", action="store_true", help="continue from the run's epoch-last.pth")
    add_device(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from liif_fast.train import train

    train(args.config, name=args.name, tag=args.tag, resume=args.resume, device=args.device)
    return 0
