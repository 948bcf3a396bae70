"""`liif-fast qualify`: examine the GPU kernels, or AMX, on this machine, so that `auto` may take them."""

import argparse
import json
import math

from liif_fast.cli import say

_ABOUT = """Examine the results of the fused GPU kernels on this machine, or of the AMX kernels of its CPU, in three
fresh processes, and their speed. The verdict is stored; from then on `auto` takes the kernels that are correct and
faster. This takes up to five minutes and needs the device for itself. The exit code is 1 if a kernel is wrong or
nothing could be examined."""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "qualify", help="examine the GPU and AMX kernels on this machine", description=_ABOUT
    )
    parser.add_argument(
        "--device", metavar="D", help="cuda, cuda:N, or cpu for AMX (default: the GPU; without one a CPU with AMX)"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=300,
        metavar="S",
        help="stop after this time; kernels not examined stay off (default: 300)",
    )
    parser.add_argument(
        "--report", action="store_true", help="print the verdict as JSON; qualify first if there is none"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Qualify, print the verdict, and return the exit code."""
    import torch

    from liif_fast.backends import cpu, verdict
    from liif_fast.devices import pick_device
    from liif_fast.qualification import Unavailable, qualify

    amx_only = not cpu.AMX_MISSING and not torch.cuda.is_available()
    device = pick_device(("cpu" if amx_only else "cuda") if args.device is None else args.device)
    try:
        found = verdict.read(device.type, device.index) if args.report else None
        found = found or qualify(device, seconds=args.seconds, tell=say)
    except Unavailable as error:
        say(f"error: {error}; nothing was stored")
        return 1
    if args.report:
        print(json.dumps({"made": found.made, "key": found.key, "results": found.results}, indent=1))
    else:
        print(f"{found}\n{found.summary()}; stored in {found.path}")
    wrong = [of for units in found.results.values() for of in units.values() if of.get("correct") is False]
    return 1 if wrong else 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return seconds
