"""Test several inputs, standard input and output, and the options of writing."""

import io
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liif_fast import upscaling
from liif_fast.cli import main
from liif_fast.images import parse_colour, read_image, write_strips

from .support import without_result


class Pipe(io.BytesIO):
    """Simulate standard input or output as a pipe or a terminal."""

    def __init__(self, data: bytes = b"", terminal: bool = False) -> None:
        super().__init__(data)
        self.buffer, self.terminal = self, terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str):
    """Run `liif-fast upscale --scale 2` with this standard input; return exit code, standard output and messages."""

    def run(*args: object, stdin: Pipe | bytes = b"", stdout: Pipe | None = None) -> tuple[int, bytes, str]:
        out = stdout or Pipe()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", Pipe(stdin) if isinstance(stdin, bytes) else stdin)
            patch.setattr(sys, "stdout", out)
            code = main(["upscale", *map(str, args), "--scale=2", f"--model={model}"])
        return code, out.getvalue(), without_result(capsys.readouterr().err)

    return run


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_several_inputs(run, photo: Path, tmp_path: Path) -> None:
    """Files and folders may have an option among them; a bad one is named, and the others are written."""
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "folder" / "one.jpg")
    (tmp_path / "bad.png").write_bytes(photo.read_bytes()[:200])
    out = tmp_path / "out"
    code, _, err = run(photo, tmp_path / "bad.png", "--tile=64", tmp_path / "no.png", tmp_path / "folder", out)
    assert code == 1
    bad, missing, count = err.splitlines()
    assert "bad.png: cannot be read" in bad
    assert missing.endswith("no.png: No such file or directory")
    assert count == "liif-fast: 2 written, 2 failed"
    assert sorted(path.name for path in out.iterdir()) == ["in.png", "one.jpg"]


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["a/in.png", "b/in.png"], "out", "in.png: is the output of both a/in.png and b/in.png; rename one of them"),
        (["a", "b"], "out", "in.png: is the output of both a/in.png and b/in.png; rename one of them"),
        (["a/in.png", "a/in.png"], "out", "a/in.png: is given twice"),
        (["a/in.png", "a"], "out", "a/in.png: is given twice"),
        (["a/in.png", "b/in.png"], "out.png", "out.png: names a file, but there are 2 inputs; give a folder as OUT"),
        (["a/in.png", "b/in.png"], "-", "- is standard output, which takes one image; give a folder as OUT"),
        (["a/in.png", "-"], "out", "- is one image from standard input; give it as the only IN"),
        (["-"], "a", "a: is a folder, and - has no name; give a file as OUT"),
        (["a/in.png", ""], "out", "IN is empty; give a file or a folder"),
        (["a/in.png"], "-", "-: JPEG cannot be lossless; write a .png, .tif or .webp file"),
    ],
)
def test_inputs_that_make_no_outputs(
    run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], output: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "in.png").write_bytes(photo.read_bytes())
    options = ["--format=jpg", "--lossless"] if "cannot be lossless" in message else []
    code, out, err = run(*inputs, output, *options, stdin=photo.read_bytes())
    assert (code, out) == (1, b"")
    assert err.startswith("liif-fast: error: ")
    assert err.endswith(f"{message}\n")
    assert err.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("mode", "format", "args", "expected"),
    [
        ("RGB", "PNG", [], "PNG"),
        ("RGB", "JPEG", [], "JPEG"),
        ("RGB", "GIF", [], "PNG"),
        ("RGB", "BMP", [], "BMP"),
        ("I;16", "TIFF", [], "TIFF"),
        ("RGBA", "PNG", ["--format=webp"], "WEBP"),
        ("RGB", "PNG", ["--region=8x6+4+2"], "PNG"),
    ],
)
def test_from_standard_input_to_standard_output(
    run, mode: str, format: str, args: list[str], expected: str, model: str
) -> None:
    """The output has the input's format, or PNG if that is not written or cannot hold the picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 4), np.uint8)
    image = (
        Image.fromarray(pixels).convert(mode)
        if mode != "I;16"
        else Image.fromarray(pixels[..., :2].copy().view("<u2")[..., 0])
    )
    data = saved(image, format)
    code, out, err = run("-", "-", *args, stdin=data)
    assert code == 0
    assert "palette" in err or not err
    region = (2, 4, 6, 8) if "--region=8x6+4+2" in args else None
    with Image.open(io.BytesIO(out)) as made:
        assert made.format == expected
        if expected in ("PNG", "TIFF"):
            whole = upscaling.upscale(Image.open(io.BytesIO(data)), model, scale=2, region=region)
            assert np.array_equal(np.asarray(made), np.asarray(whole))


def test_a_file_to_or_from_a_pipe(run, photo: Path, tmp_path: Path) -> None:
    assert run(photo, tmp_path / "out.png")[0] == 0
    expected = (tmp_path / "out.png").read_bytes()
    assert run(photo, "-")[1:] == (expected, "")
    assert run("-", tmp_path / "piped.png", stdin=photo.read_bytes())[1:] == (b"", "")
    assert (tmp_path / "piped.png").read_bytes() == expected
    code, _, err = run("-", tmp_path / "piped.png", "--existing=error", stdin=photo.read_bytes())
    assert (code, "piped.png: exists; give --existing" in err) == (1, True)


def test_a_folder_without_images_among_several_inputs_is_named(run, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run(photo, tmp_path / "empty", tmp_path / "out")
    assert (code, err.splitlines()) == (
        0,
        [f"liif-fast: {tmp_path / 'empty'}: no image files in it (--recursive looks deeper)", "liif-fast: 1 written"],
    )


def test_a_gray_region_of_colour_from_a_pipe(run) -> None:
    """The whole picture decides whether it is gray, though the copy of the pipe's data is gone by then."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 1), np.uint8).repeat(3, 2)
    pixels[-1, -1] = 200, 30, 30
    code, out, err = run("-", "-", "--region=10x8+0+0", "--tile=32", stdin=saved(Image.fromarray(pixels)))
    assert (code, err) == (0, "")
    with Image.open(io.BytesIO(out)) as made:
        assert made.size == (10, 8)


@pytest.mark.parametrize(("format", "cut"), [("TIFF", 0), ("GIF", 1)])
def test_notices_call_a_pipe_by_its_name(run, tmp_path: Path, format: str, cut: int) -> None:
    frames = [Image.new("L", (9, 8), shade) for shade in (30, 90)]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:])
    code, _, err = run("-", tmp_path / f"out.{'gif' if cut else 'png'}", stdin=data[: len(data) - cut])
    assert code == 0
    assert "only the first of 2 frames" in err if format == "TIFF" else "without its end mark" in err
    assert all(line.startswith("liif-fast: -: ") for line in err.splitlines())


def test_a_file_whose_name_is_a_dash(run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photo.parent)
    photo.rename("-")
    assert run("./-", "out.png")[0] == 0
    assert Path("out.png").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "-: is empty"),
        (b"\0" * 10_000, "-: not an image in a known format"),
        (b"<svg></svg>", "-: is an SVG drawing: render it to a PNG first"),
        ("cut", "-: cannot be read: "),
    ],
)
def test_a_pipe_that_brings_no_whole_image(run, photo: Path, tmp_path: Path, data: bytes, message: str) -> None:
    for output in ("-", tmp_path / "out.png"):
        code, out, err = run("-", output, stdin=photo.read_bytes()[:200] if data == "cut" else data)
        assert (code, out) == (1, b"")
        assert err.startswith(f"liif-fast: error: {message}")
        assert err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_what_is_no_image_is_not_read_to_its_end(run) -> None:
    """An endless stream such as /dev/zero is refused by its first bytes."""
    stdin = Pipe(b"\0" * 100_000)
    assert run("-", "-", stdin=stdin)[0] == 1
    assert stdin.tell() < 10_000


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("-", "out.png"), "IN is -, but standard input is a terminal; pipe an image into it, or give a file"),
        (("in.png", "-"), "OUT is -, but standard output is a terminal; redirect it, or give a file"),
    ],
)
def test_a_terminal_is_no_place_for_images(
    run, photo: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, str], message: str
) -> None:
    monkeypatch.chdir(photo.parent)
    code, out, err = run(*args, stdin=Pipe(terminal=True), stdout=Pipe(terminal=True))
    assert (code, out, err) == (1, b"", f"liif-fast: error: {message}\n")


def test_standard_output_that_takes_nothing(run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Pipe):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    class Left(Pipe):
        def write(self, data: object) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    assert run(photo, "-", stdout=Full()) == (
        1,
        b"",
        "liif-fast: error: -: cannot be written: No space left on device\n",
    )
    assert run(photo, "-", stdout=Left()) == (141, b"", "")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run(photo, "-")
    assert (code, "OUT is -, which the processes of torchrun cannot share" in err) == (1, True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk(run, photo: Path, tmp_path: Path) -> None:
    """A full temporary folder gives a one-line error."""
    with open("/dev/full", "wb", buffering=0) as full:
        stdout = Pipe()
        stdout.buffer = full  # type: ignore[assignment]
        code, _, err = run(photo, "-", stdout=stdout)
    assert (code, err) == (1, "liif-fast: error: -: cannot be written: No space left on device\n")


def test_no_room_for_the_copy_of_what_a_pipe_brings(run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    code, out, err = run("-", "-", stdin=photo.read_bytes())
    assert (code, out) == (1, b"")
    assert re.fullmatch(r"liif-fast: error: -: cannot be copied into .*: No space left on device\n", err)


@pytest.mark.parametrize("format", ["jpg", "webp", "avif"])
def test_quality(run, photo: Path, format: str) -> None:
    sizes = [len(run(photo, "-", f"--format={format}", *args)[1]) for args in (["--quality=5"], [], ["--quality=100"])]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_lossless_webp(run, tmp_path: Path, mode: str) -> None:
    """Every pixel equals the PNG's, even where nothing is visible."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 4), np.uint8)
    pixels[2:8, 3:9, 3] = 0
    data = saved(Image.fromarray(pixels).convert(mode))
    png, webp = (run("-", "-", *args, stdin=data)[1] for args in ([], ["--format=webp", "--lossless"]))
    wanted = "RGB" if mode == "L" else mode
    made = [np.asarray(Image.open(io.BytesIO(each)).convert(wanted)) for each in (png, webp)]
    assert np.array_equal(*made)


def test_a_quality_that_a_format_has_not_is_said(run, photo: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    assert (
        run(photo, target, "--quality=9")[2]
        == f"liif-fast: {target}: the quality has no effect, because PNG has no such setting\n"
    )
    assert run(photo, target, "--lossless") == (0, b"", "")


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("RGBA", "#10a0ff", (16, 160, 255)), ("LA", "gray", (128,)), ("LA", "rgb(1, 2, 3)", (1, 2, 3))],
)
def test_background(run, mode: str, colour: str, expected: tuple[int, ...]) -> None:
    """Alpha blends with the background after the enlargement, in every format."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 4), np.uint8)
    pixels[:, :7, 3], pixels[:, 7:, 3] = 0, 255
    data = saved(Image.fromarray(pixels).convert(mode))
    alpha = np.asarray(Image.open(io.BytesIO(run("-", "-", stdin=data)[1]))).astype(float)
    code, out, err = run("-", "-", f"--background={colour}", stdin=data)
    assert (code, err) == (0, "")
    made = Image.open(io.BytesIO(out))
    assert made.mode == ("L" if len(expected) == 1 else "RGB")
    share = alpha[..., -1:] / 255
    blend = alpha[..., :-1] * share + np.array(expected) * (1 - share)
    assert np.abs(np.asarray(made).reshape(20, 28, -1) - blend).max() <= 0.5
    code, out, err = run("-", "-", f"--background={colour}", "--format=jpg", stdin=data)
    assert (code, err, out[:2]) == (0, "", b"\xff\xd8")


def test_background_in_16_bits_and_in_a_folder(run, photo: Path, tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), 65535, np.uint16)
    pixels[..., 3] = 0
    write_strips(tmp_path / "deep.png", [pixels], (4, 4, 4), 16, {})
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "alpha.webp")
    assert run(tmp_path, tmp_path / "out", "--background=#010203")[0] == 0
    made = read_image(tmp_path / "out" / "deep.png").pixels
    assert made.shape == (8, 8, 3) and (made == [257, 514, 771]).all()
    assert Image.open(tmp_path / "out" / "alpha.webp").mode == "RGB"
    code, _, err = run(tmp_path / "alpha.webp", tmp_path / "out.jpg")
    assert (code, err.endswith("write a .png or .tif file, or give a background\n")) == (1, True)


@pytest.mark.parametrize("colour", ["nothing", "#ff", "", "#ffffff80", "rgb(300,0,0)"])
def test_no_background(run, photo: Path, tmp_path: Path, colour: str) -> None:
    code, _, err = run(photo, tmp_path / "out.png", f"--background={colour}")
    assert code == 2
    assert "argument --background: background must be an opaque colour: white, #fff" in err


@pytest.mark.parametrize("colour", [(1.9, 2, 3), (float("inf"), 0, 0), ("1", "2", "3"), (1, 2), (256, 0, 0), 7])
def test_what_is_no_colour_in_python(colour: object) -> None:
    with pytest.raises(ValueError, match="background must be an opaque colour"):
        parse_colour(colour)  # type: ignore[arg-type]


def test_background_and_quality_in_python(tmp_path: Path, model: str) -> None:
    source = tmp_path / "in.png"
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(source)
    upscaling.upscale_file(source, tmp_path / "out.jpg", model, scale=2, background=(250, 0, 0), quality=90)
    assert np.abs(read_image(tmp_path / "out.jpg").pixels.astype(int) - [250, 0, 0]).max() <= 3
    for options, message in (
        ({"background": (1, 2)}, "background must be an opaque colour"),
        ({"background": "sky"}, "background must be an opaque colour"),
        ({"quality": 0}, "quality must be a whole number from 1 to 100, got 0"),
        ({"quality": True, "lossless": True}, "quality and lossless exclude each other"),
        ({"lossless": True}, "out.jpg: JPEG cannot be lossless"),
    ):
        with pytest.raises(ValueError, match=message):
            upscaling.upscale_file(source, tmp_path / "out.jpg", model, scale=2, **options)  # type: ignore[arg-type]
