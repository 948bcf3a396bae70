"""`liif-fast plot`: draw a training's loss, PSNR and learning rate."""

import argparse

from liif_fast.cli import given_path

_ABOUT = "Draw a training's loss, validation PSNR and learning rate as a PNG."


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("plot", help="draw the curves of a training", description=_ABOUT)
    parser.add_argument(
        "run_folder", type=given_path, metavar="RUN", help="the run's folder, such as save/_my-config, or a log.csv"
    )
    parser.add_argument(
        "out", type=given_path, nargs="?", metavar="OUT.png", help="the picture (default: curves.png in the folder)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from liif_fast.train.plot import plot

    print(plot(args.run_folder, args.out))
    return 0
