"""`liif-fast upscale - -` for a video: y4m in and out, frame by frame."""

import argparse
import sys
import time
from typing import Any

from liif_fast.cli import say
from liif_fast.cli.progress import Bar
from liif_fast.files import STANDARD, reason
from liif_fast.images import ImageFileError
from liif_fast.images.y4m import Y4m, read_frames, to_frame


def check_video(args: argparse.Namespace, output: str) -> None:
    """Raise ImageFileError for an output or a format that a video cannot be written to."""
    if output != str(STANDARD):
        raise ImageFileError(f"{output}: a y4m video becomes another one; give - as OUT, and pipe it into ffmpeg")
    if args.format:
        raise ImageFileError(f"{STANDARD}: a y4m video becomes another one; leave --format out")
    if args.quality:
        say(f"{STANDARD}: the quality has no effect, because y4m has no such setting")


def upscale_video(video: Y4m, model: Any, args: argparse.Namespace) -> int:
    """Upscale the rest of standard input to standard output, and return the exit code.

    Every frame is written when it is done, so what has been written stays if the input breaks off.
    """
    from liif_fast import upscaling

    start, number, size = time.perf_counter(), 0, (0, 0)
    for number, pixels in enumerate(read_frames(sys.stdin.buffer, video), 1):
        with Bar(f"frame {number} ") as bar:
            frame = upscaling.upscale(
                pixels,
                model,
                scale=args.scale,
                size=args.size,
                region=args.region,
                backend=args.backend,
                precision=args.precision,
                tile=args.tile,
                progress=bar.update,
                self_ensemble=args.self_ensemble,
            )
        size = frame.shape[1], frame.shape[0]
        try:
            sys.stdout.buffer.write((video.header(size) if number == 1 else b"") + to_frame(frame, video))
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ImageFileError(f"{STANDARD}: cannot be written: {reason(error)}") from None
    if number == 0:
        raise ImageFileError(f"{STANDARD}: the y4m video has no frames")
    say(f"{STANDARD}: {size[0]}x{size[1]}, {number} frames, {time.perf_counter() - start:.1f} s")
    return 0
