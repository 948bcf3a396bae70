"""`liif-fast upscale`: one image file in, a larger one out."""

import argparse
import os
import re
import sys
from typing import Any

from liif_fast.imageio import WHY_NOT_SMALLER, ImageFileError, check_input, check_output, read_image

_ABOUT = "Upscale one image file to any larger size."
_EPILOG = """\
The image keeps its alpha channel and bit depth of 8 (or 16, in gray), and is turned upright. PNG, JPEG and WebP files
keep its ICC profile and EXIF data, TIFF files its ICC profile; a notice says what is lost.
The models are trained on clean, bicubically reduced images: they restore detail, not noise or compression damage.
"""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("upscale", help="upscale an image", description=_ABOUT, epilog=_EPILOG)
    parser.add_argument("input", metavar="IN", help="the image file")
    parser.add_argument("output", metavar="OUT", help="the file to write; its extension names the format")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--scale", type=_scale, metavar="S", help="output over input size: any number from 1, as 3.7")
    target.add_argument("--size", type=_size, metavar="WxH", help="output size in pixels; Wx or xH keeps the aspect")
    parser.add_argument("--model", metavar="FILE", help=".safetensors or .pth (default: the model of the package)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")
    parser.add_argument("--backend", metavar="NAME", help="what decodes (default: the fastest that can; see info)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Upscale one file; returns the exit code."""
    check_input(args.input)
    check_output(args.output)
    if os.path.exists(args.output) and os.path.samefile(args.input, args.output):
        raise ImageFileError(f"{args.output}: is the input itself; choose another name")
    picture = read_image(args.input)

    from liif_fast import upscaling

    try:
        with _Bar() as bar:
            upscaling.upscale_file(
                args.input,
                args.output,
                args.model,
                scale=args.scale,
                size=args.size,
                device=args.device,
                backend=args.backend,
                progress=bar.update,
                picture=picture,
            )
    except RuntimeError as error:  # PyTorch's way to say out of memory, among others
        if args.traceback:
            raise
        raise ValueError(str(error)) from error
    return 0


class _Bar:
    """A progress bar with the time left, on a terminal; nothing otherwise."""

    def __init__(self) -> None:
        self.stage = ""
        self.bar: Any = None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, stage: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        from tqdm import tqdm

        if stage != self.stage or done == 0:
            self.__exit__()
            self.stage, unit = stage, " tiles" if stage == "encode" else " rows"
            self.bar = tqdm(total=total, desc=stage, unit=unit, leave=False)
        self.bar.update(done - self.bar.n)


def _scale(text: str) -> float:
    """A scale as argparse wants it, refused with the reason before anything is loaded."""
    try:
        scale = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
    if not 0 < scale < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive, finite number, got {text!r}")
    if scale < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1: {WHY_NOT_SMALLER}")
    return scale


def _size(text: str) -> tuple[int | None, int | None]:
    """WxH, Wx or xH."""
    match = re.fullmatch(r"(\d{0,9})x(\d{0,9})", text, re.ASCII | re.IGNORECASE)
    sides = [int(side) if side else None for side in match.groups()] if match else []
    if not any(sides) or 0 in sides:
        raise argparse.ArgumentTypeError(f"expected WxH, Wx or xH in pixels, as 3840x2160, got {text!r}")
    return sides[0], sides[1]
