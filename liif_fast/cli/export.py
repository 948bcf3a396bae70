"""`liif-fast export`: write a LIIF as an ONNX graph for other runtimes."""

import argparse
from os.path import expanduser

from liif_fast.cli import add_plugin, given_path, say

_ABOUT = "Write a LIIF as an ONNX graph of standard operators (opset 18), for any height, width and output size."
_EPILOG = """\
The graph takes an image and the output's corner plan, which 20 lines of numpy make (docs/export.md), so that every
runtime computes the same result. It needs the extra onnx: pip install 'liif-fast[onnx]'.
"""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("export", help="write a model as ONNX", description=_ABOUT, epilog=_EPILOG)
    parser.add_argument(
        "model", type=expanduser, metavar="MODEL", help="a .safetensors or .pth file, or a name; see models"
    )
    parser.add_argument("output", type=given_path, metavar="OUT.onnx", help="the file to write")
    add_plugin(parser)
    parser.add_argument("--half", action="store_true", help="encoder and hidden layers in float16")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--parts",
        dest="form",
        action="store_const",
        const="parts",
        help="write OUT-encoder.onnx and OUT-decoder.onnx, so that strips of an output share one encoding",
    )
    form.add_argument(
        "--onnxruntime-only",
        dest="form",
        action="store_const",
        const="onnxruntime-only",
        help="plan inside, from an input `size`: simpler to call, but wrong in runtimes with other rounding",
    )
    parser.add_argument("--licence", help="licence of the weights, for the metadata (default: a named model's)")
    parser.set_defaults(run=run, form="whole")


def run(args: argparse.Namespace) -> int:
    """Write the graph, print its path, and return the exit code."""
    from liif_fast.config.plugins import import_plugins
    from liif_fast.export import export_onnx
    from liif_fast.models.catalogue import check_family, find_model, licence_of
    from liif_fast.models.checkpoint import load_model

    import_plugins(args.plugin, place="--plugin")
    source = find_model(args.model)
    model = load_model(source)
    check_family(source, model)  # because the licence is that of the name
    licence = args.licence or licence_of(source) or "unknown"
    try:
        written = export_onnx(model, args.output, half=args.half, form=args.form, licence=licence)
    except TypeError as error:
        raise ValueError(f"{source}: {error}") from error
    for path in written:
        say(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    return 0
