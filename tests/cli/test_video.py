"""Video through pipes: y4m in, y4m out."""

import io
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from liif_fast import upscaling
from liif_fast.cli import main
from liif_fast.images import ImageFileError
from liif_fast.images.y4m import MAGIC, Y4m, read_frames, read_header, to_frame

from .support import ROOT, without_result

# 8 bits of limited range (BT.709-6): Y, Cb, Cr of each colour
COLOURS = {
    (0, 0, 0): (16, 128, 128),
    (255, 255, 255): (235, 128, 128),
    (255, 0, 0): (63, 102, 240),
    (0, 255, 0): (173, 42, 26),
}
HEADER = b"W6 H4 F30000:1001 Ip A1:1 C444 XYSCSS=444 XCOLORRANGE=LIMITED\n"


def stream(count: int = 3, header: bytes = HEADER, seed: int = 0) -> bytes:
    """Return frames of moderate colours, all of which RGB holds."""
    rng = np.random.default_rng(seed)
    frames = [np.stack([rng.integers(90, 160, (4, 6)), *rng.integers(112, 144, (2, 4, 6))]) for _ in range(count)]
    return MAGIC + header + b"".join(b"FRAME\n" + frame.astype(np.uint8).tobytes() for frame in frames)


def frames_of(data: bytes) -> tuple[Y4m, list[NDArray[np.uint16]]]:
    file = io.BytesIO(data)
    assert file.read(len(MAGIC)) == MAGIC
    video = read_header(file)
    return video, list(read_frames(file, video))


Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str) -> Run:
    """Run `liif-fast upscale - - --scale 2` on standard input; return exit code, standard output and messages."""

    def run(data: bytes, *args: str, stdout: io.BytesIO | None = None) -> tuple[int, bytes, str]:
        pipes = io.BytesIO(data), stdout or io.BytesIO()
        with monkeypatch.context() as patch:
            for name, pipe in zip(("stdin", "stdout"), pipes, strict=True):
                pipe.buffer = pipe  # type: ignore[attr-defined]
                patch.setattr(sys, name, pipe)
            code = main(["upscale", *(args or ("-", "-")), "--scale=2", f"--model={model}"])
        return code, pipes[1].getvalue(), without_result(capsys.readouterr().err)

    return run


@pytest.mark.parametrize(("rgb", "samples"), COLOURS.items())
def test_colours(rgb: tuple[int, ...], samples: tuple[int, ...]) -> None:
    header = b"W1 H1 F25:1 C444\n"
    video, (frame,) = frames_of(MAGIC + header + b"FRAME\n" + bytes(samples))
    assert frame.shape == (1, 1, 3)
    assert np.abs(frame[0, 0] / 257 - rgb).max() <= 1.5  # 8 bits of luma and chroma are no finer
    assert to_frame(np.array([[rgb]], np.uint16) * 257, video) == b"FRAME\n" + bytes(samples)


@pytest.mark.parametrize("kind", ["444", "444p10", "444p16", "mono", "mono12"])
@pytest.mark.parametrize("colours", ["", " XCOLORRANGE=LIMITED", " XCOLORRANGE=FULL"])
def test_what_comes_in_goes_out(kind: str, colours: str) -> None:
    """The samples are equal where RGB can hold them."""
    depth = int(kind[4:] or 8)
    planes = 1 if "mono" in kind else 3
    rng = np.random.default_rng(0)
    low, high = (90, 112) if planes == 3 else (16, 16)
    luma = rng.integers(low << depth - 8, 160 << depth - 8, (1, 4, 6))
    chroma = rng.integers(high << depth - 8, 144 << depth - 8, (planes - 1, 4, 6))
    data = np.concatenate([luma, chroma]).astype("u1" if depth == 8 else "<u2").tobytes()
    video, frames = frames_of(MAGIC + f"W6 H4 F25:1 C{kind}{colours}\n".encode() + b"FRAME Ip\n" + data)
    assert video.header((12, 8)) == MAGIC + f"W12 H8 F25:1 C{kind}{colours}\n".encode()
    again = np.frombuffer(to_frame(frames[0], video)[6:], "u1" if depth == 8 else "<u2").astype(int)
    assert np.abs(again - np.concatenate([luma, chroma]).ravel()).max() <= (1 if depth == 16 else 0)


def test_frames_are_enlarged_as_pictures(run: Run, model: str) -> None:
    data = stream()
    code, out, err = run(data)
    assert (code, err) == (0, "liif-fast: -: 12x8, 3 frames, " + err.rpartition(", ")[2])
    video, frames = frames_of(data)
    made = MAGIC + HEADER.replace(b"W6 H4", b"W12 H8")
    made += b"".join(to_frame(upscaling.upscale(frame, model, scale=2), video) for frame in frames)
    assert out == made


def test_a_region_and_one_frame(run: Run) -> None:
    code, out, _ = run(stream(1), "-", "-", "--region=5x3+2+1", "--self-ensemble", "--lossless")
    assert (code, out[: len(MAGIC) + 5]) == (0, MAGIC + b"W5 H3")


@pytest.mark.parametrize("cut", [1, 40, 72, 77])
def test_a_pipe_that_ends_early(run: Run, cut: int) -> None:
    """It ends within a frame or its mark; the frames before it are written."""
    code, out, err = run(stream()[:-cut])
    assert code == 1
    assert err == "liif-fast: error: -: the y4m video breaks off in frame 3\n"
    assert len(frames_of(out)[1]) == 2


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            b"W6 H4 F25:1 C420jpeg\n",
            "is a y4m video with chroma 420jpeg, expected 444 or mono; give ffmpeg -pix_fmt yuv444p",
        ),
        (b"W6 H4 F25:1\n", "is a y4m video with chroma 420jpeg, expected"),
        (b"W6 H4 F25:1 C444alpha\n", "is a y4m video with chroma 444alpha, expected"),
        (b"W6 H4 F25:1 It C444\n", "is an interlaced y4m video; give ffmpeg -vf yadif"),
        (b"W6 F25:1 C444\n", "the header of the y4m video is damaged"),
        (b"W6 H-4 F25:1 C444\n", "the header of the y4m video is damaged"),
        (b"W6 H4 F25", "the header of the y4m video is damaged"),
        (b"", "the header of the y4m video is damaged"),
        (b"W99999 H99999 F25:1 C444\n", "refused as a possible decompression bomb"),
        (b"W6 H4 F25:1 C444\n", "the y4m video has no frames"),
        (b"W6 H4 F25:1 C444\nFRAMES\n", "the y4m video breaks off in frame 1"),
    ],
)
def test_videos_that_are_refused(run: Run, header: bytes, message: str) -> None:
    code, out, err = run(MAGIC + header)
    assert (code, out) == (1, b"")
    assert err.startswith(f"liif-fast: error: -: {message}")
    assert err.count("\n") == 1


def test_outputs_that_a_video_cannot_have(run: Run, tmp_path: Path) -> None:
    for args, message in (
        (("-", str(tmp_path / "out.png")), "out.png: a y4m video becomes another one; give - as OUT"),
        (("-", "-", "--format=png"), "-: a y4m video becomes another one; leave --format out"),
    ):
        code, out, err = run(stream(), *args)
        assert (code, out, message in err, err.count("\n")) == (1, b"", True, 1)
    message = "-: the quality has no effect, because y4m has no such setting\n"
    assert message in run(stream(1), "-", "-", "--quality=9")[2]
    assert not list(tmp_path.glob("out*"))


def test_nobody_takes_the_frames(run: Run) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    class Left(io.BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    error = "liif-fast: error: -: cannot be written: No space left on device\n"
    assert run(stream(), stdout=Full()) == (1, b"", error)
    assert run(stream(), stdout=Left()) == (141, b"", "")


def test_a_large_frame_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 11)
    with pytest.raises(ImageFileError, match="possible decompression bomb"):
        read_header(io.BytesIO(HEADER))


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg")
def test_the_recipe_of_the_documentation(tmp_path: Path, model: str) -> None:
    """Run it unchanged on a film of three frames with sound."""
    made = (
        "-f lavfi -i testsrc2=size=32x24:rate=25:duration=0.12 -f lavfi -i sine=duration=0.12 -pix_fmt yuv420p in.mp4"
    )
    subprocess.run(["ffmpeg", "-v", "error", *made.split()], cwd=tmp_path, check=True)
    lines = (ROOT / "docs" / "upscaling.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("    ffmpeg"))
    recipe = "\n".join(itertools.takewhile(str.strip, lines[first:])).replace("--scale 2", f"--scale 2 --model {model}")
    recipe = recipe.replace("liif-fast", f"{sys.executable} -m liif_fast")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", recipe],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    entries = "stream=codec_type,width,height,nb_frames"
    probe = ["ffprobe", "-v", "error", "-of", "csv=p=0", "-show_entries", entries, "out.mp4"]
    video, audio = subprocess.run(probe, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert video == "video,64,48,3"
    assert audio.startswith("audio")
