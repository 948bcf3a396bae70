"""`liif-fast verify`: compare a checkpoint's plain formula with every available backend."""

import argparse
from os.path import expanduser
from typing import TYPE_CHECKING

from liif_fast.cli import add_device, add_plugin, given_path, say

if TYPE_CHECKING:
    from liif_fast.models.base import FeatureModel
    from liif_fast.verification import Report, Row

_ABOUT = "Compare a model's plain formula with every available backend on an image."
_EPILOG = """\
The image is reduced by Pillow's bicubic filter and enlarged again; a large image is cropped to its middle. The decoder
rows compare outputs on the same features. The whole-model rows compare `upscale` with the plain model run on the whole
image. Errors are relative to the largest output. Exit codes: 0 all agree, 1 a backend disagrees or something failed, 2
wrong usage.
"""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("verify", help="check a model's backends", description=_ABOUT, epilog=_EPILOG)
    parser.add_argument(
        "model", type=expanduser, metavar="MODEL", help="a .safetensors or .pth file, or a name; see models"
    )
    parser.add_argument(
        "image", type=given_path, nargs="?", metavar="IMAGE", help="an image file (default: the bundled photograph)"
    )
    add_plugin(parser)
    parser.add_argument("--scale", type=float, default=4.0, metavar="S", help="factor of the reduction (default: 4)")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="timed rounds; medians (default: 5)")
    add_device(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.turns < 1:
        raise ValueError(f"turns must be at least 1, got {args.turns}")

    from liif_fast.config.plugins import import_plugins
    from liif_fast.models.catalogue import find_model, resolve_model, shipped_model
    from liif_fast.verification import verify

    image = args.image or shipped_model().parent / "chelsea.png"
    import_plugins(args.plugin, place="--plugin")
    model = resolve_model(args.model, args.device)
    report = verify(model, image, args.scale, args.turns)
    print(render(report, find_model(args.model).name, str(image).rsplit("/", 1)[-1], args.scale, model))
    wrong = report.disagreements()
    for line in wrong:
        say(f"error: {line}")
    return 1 if wrong else 0


def render(report: "Report", model_name: str, image_name: str, scale: float, model: "FeatureModel") -> str:
    """Format the report as text."""
    import torch

    import liif_fast
    from liif_fast.devices import cpu_name
    from liif_fast.models.catalogue import title

    device = next(model.parameters()).device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    count = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        f"model    {model_name}: {title(model)}, {count:,} parameters",
        f"image    {image_name}: {_size(report.size_out)} from {_size(report.size_in)}, x{scale:g}, "
        f"{report.plain('whole model').psnr:.2f} dB",
        f"machine  {where}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        f"version  liif_fast {liif_fast.__version__}",
    ]
    for part in dict.fromkeys(row.part for row in report.rows):
        lines += ["", f"{part:<12}{'largest error':>14}{'PSNR change':>15}{'time':>11}{'memory':>11}{'ratio':>8}"]
        lines += [_line(row, report.plain(part)) for row in report.rows if row.part == part]
    return "\n".join([*lines, "", _verdict(report)])


def _line(row: "Row", plain: "Row") -> str:
    if row.refused:
        return f"  {row.name:<10}not here: {row.refused}"
    time = f"{row.seconds:.3f} s"
    memory = "-" if row.memory is None else f"{row.memory / 2**20:.0f} MiB"
    if row is plain:
        return f"  {row.name:<10}{'':>14}{'':>15}{time:>11}{memory:>11}"
    change = f"{round(row.psnr - plain.psnr, 5) + 0.0:+.5f} dB"  # + 0.0: no -0.00000
    return f"  {row.name:<10}{row.error:>14.1e}{change:>15}{time:>11}{memory:>11}{row.ratio:>7.1f}x"


def _verdict(report: "Report") -> str:
    from liif_fast.verification import PSNR_TOLERANCE, TOLERANCE

    wrong = len(report.disagreements())
    if wrong:
        return f"DISAGREE: {wrong} of the above, see the error lines"
    return f"agree: errors within {TOLERANCE:.0e} of the largest output, PSNR within {PSNR_TOLERANCE} dB"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
