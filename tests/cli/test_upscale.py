"""Test `liif-fast upscale` end to end: its output, its failures, and the files it leaves."""

import os
import pickle
import re
import sys
import zipfile
from collections import Counter
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from PIL import Image

import liif_fast
from liif_fast import upscaling
from liif_fast.cli import main
from liif_fast.models import make
from liif_fast.upscaling import features, strips

from .support import assert_one_line, contents, raising, without_result


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    """Return exit code and stderr of `liif-fast upscale`; stdout must stay empty."""
    code = main(["upscale", *map(str, args)])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, without_result(captured.err)


@pytest.mark.parametrize("region", [[], ["--region=9x8+3+2"]])
@pytest.mark.parametrize("folder", [False, True])
def test_each_thing_is_checked_once(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str], model: str, folder: bool, region: list[str]
) -> None:
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and "/liif_fast/" in frame.f_code.co_filename:
            calls[frame.f_code.co_name] += 1

    images = [photo.parent, tmp_path / "out"] if folder else [photo, tmp_path / "out.png"]
    sys.setprofile(count)
    try:
        code = main(["upscale", *map(str, images), "--scale=2", "--model", model, *region])
    finally:
        sys.setprofile(None)
    assert code == 0
    checks = ("check_place", "check_format", "check_content", "output_size", "_check_region", "resolve_model")
    assert {name: calls[name] for name in (*checks, "check_target")} == dict.fromkeys((*checks, "check_target"), 1)


@pytest.mark.parametrize(
    ("mode", "extension", "expected"),
    [
        ("RGB", "png", "RGB"),
        ("RGB", "jpg", "RGB"),
        ("RGBA", "png", "RGBA"),
        ("RGBA", "webp", "RGBA"),
        ("RGBA", "tif", "RGBA"),
        ("LA", "png", "LA"),
        ("L", "jpg", "L"),
        ("L", "pgm", "L"),
        ("1", "png", "L"),
        ("P", "bmp", "RGB"),
        ("I;16", "png", "I;16"),
        ("I;16", "tif", "I;16"),
        ("CMYK", "png", "RGB"),
    ],
)
def test_every_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, mode: str, extension: str, expected: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., :2].copy().view(np.uint16)[..., 0])
    else:
        image = Image.fromarray(pixels).convert("RGB" if mode == "P" else "RGBA").convert(mode)
    source, target = tmp_path / "in.tif", tmp_path / f"out.{extension}"
    image.save(source)
    code, err = run(capsys, source, target, "--scale", 3.7, "--model", model)
    assert code == 0
    notices = {
        "CMYK": "converted to RGB",
        "P": "in.tif: has a palette; the models",
        "1": "in.tif: has 1 bit per pixel; the",
    }
    assert (notices[mode] in err) if mode in notices else (err == "")
    assert err.count("\n") == (mode in notices)
    with Image.open(target) as result:
        assert (result.mode, result.size) == (expected, (52, 37))
        if extension in ("png", "tif", "bmp", "pgm"):
            with Image.open(source) as opened:
                direct = upscaling.upscale(opened, model, scale=3.7)
            assert np.array_equal(np.asarray(result), np.asarray(direct))


def test_one_file_ends_with_a_line(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    target = tmp_path / "out.png"
    for args, size in (((), "42x30"), (("--region", "5x7+1+2"), "5x7")):
        assert main(["upscale", str(photo), str(target), "--scale=3", f"--model={model}", *args]) == 0
        said = capsys.readouterr().err
        assert re.fullmatch(rf"liif-fast: {re.escape(str(target))}: {size}, \d+\.\d s\n", said)
    assert main(["upscale", str(photo), str(target), "--scale=3", f"--model={model}", "--existing=skip"]) == 0
    assert capsys.readouterr().err == "liif-fast: the output exists and is unchanged\n"


@pytest.mark.parametrize(("size", "expected"), [("30x25", (30, 25)), ("28x", (28, 20)), ("x20", (28, 20))])
def test_sizes(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str], model: str, size: str, expected: tuple
) -> None:
    assert run(capsys, photo, tmp_path / "out.png", "--size", size, "--model", model) == (0, "")
    with Image.open(tmp_path / "out.png") as result:
        assert result.size == expected


def test_orientation_and_profile(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photo) as image:
        image.save(tmp_path / "in.jpg", exif=exif, icc_profile=b"a profile")
    code, err = run(capsys, tmp_path / "in.jpg", tmp_path / "out.jpg", "--scale", 2, "--model", model)
    assert (code, err) == (0, "")
    with Image.open(tmp_path / "out.jpg") as result:
        assert result.size == (20, 28)
        assert result.getexif().get(0x0112, 1) == 1
        assert result.info["icc_profile"] == b"a profile"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "one of the arguments --scale --size is required"),
        (["--scale", "2", "--size", "9x9"], "not allowed with argument"),
        *((["--scale", text], "positive, finite") for text in ("0", "-2", "nan", "inf", "1e999")),
        (["--scale", "0.5"], "0.5 is below 1"),
        (["--scale", "two"], "expected a number"),
        (["--scale", "2", "--region", "5x5"], "expected WxH+X+Y"),
        (["--scale", "2", "--region", "0x5+1+1"], "expected WxH+X+Y"),
        (["--scale", "2", "--tile", "0"], "expected a positive whole number"),
        (["--scale", "2", "--suffix", "a/b"], "expected a part of a file name"),
        (["--scale", "2", "--precision", "int4"], "invalid choice: 'int4'"),
        *(
            ([f"--size={text}"], "expected WxH, Wx or xH")
            for text in ("x", "12", "0x5", "-3x4", "1x2x3", "axb", "٣x", "9999999999x")
        ),
        (["--scale", "2", "--frobnicate"], "unrecognized arguments: --frobnicate (see"),
        *(
            (["--scale", "2", "--quality", text], "expected a whole number from 1 to 100")
            for text in ("0", "101", "9.5")
        ),
        (["--scale", "2", "--quality", "9", "--lossless"], "--lossless: not allowed with argument --quality"),
    ],
)
def test_usage_errors(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    code, err = run(capsys, photo, tmp_path / "out.png", *args)
    assert_one_line(err, message)
    assert code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png"]


@pytest.mark.parametrize(
    ("source", "target", "args", "message"),
    [
        ("missing.png", "out.png", ["--scale=2"], "missing.png: No such file"),
        (".", "out.png", ["--scale=2"], "is a folder"),
        ("truncated.png", "out.png", ["--scale=2"], "truncated.png: cannot be read"),
        ("text.png", "out.png", ["--scale=2"], "text.png: not an image"),
        ("in.png", "out.xyz", ["--scale=2"], "unknown output format"),
        ("in.png", "out", ["--scale=2"], "out: has no extension to name the output's format; add one of .png, "),
        ("in.png", "no/out.png", ["--scale=2"], "does not exist"),
        ("in.png", ".", ["--scale=2"], "is the input itself"),
        ("in.png", "out.png", ["--scale=2", "--suffix=_x2"], "name the files in a folder"),
        ("in.png", "out.png", ["--scale=2", "--region=5x5+26+0"], "region must lie in the output, 28x20"),
        ("in.png", "out.png", ["--scale=2", "--tile=31"], "tile must be at least 32"),
        ("in.png", "out.png", ["--scale=2", "--max-input-pixels=100"], "decompression bomb"),
        ("in.png", "out.bmp", ["--size=40000x30000"], "more than 1073741824 pixels, which BMP needs in memory"),
        ("in.png", "out.png", ["--scale=2", "--model=nothing"], "nothing: no such file, and no such model"),
        (
            "in.png",
            "out.png",
            ["--scale=2", "--model=edsr-baseline"],
            "did you mean edsr-baseline-liif or edsr-baseline-lte or edsr-baseline-lte-fast"
            " or edsr-baseline-metasr? `liif-fast models` lists",
        ),
        ("in.png", "out.png", ["--scale=2", "--model=edsr-smal-liff"], "did you mean edsr-small-liif"),
        ("in.png", "alpha.png", ["--scale=2", "--existing=error"], "alpha.png: exists; give --existing"),
        ("in.png", "in.png", ["--scale=2"], "is the input itself"),
        ("in.png", "link.png", ["--scale=2"], "is the input itself"),
        ("in.png", "out.png", ["--scale=1e7"], "too many pixels"),
        ("in.png", "out.png", ["--scale=1e200"], "too many pixels"),
        ("in.png", "out.png", ["--size=5x"], "smaller than the input"),
        ("in.png", "out.jpg", ["--size=70000x10"], "JPEG holds at most 65535"),
        ("in.png", "out.webp", ["--size=20x17000"], "WEBP holds at most 16383"),
        ("alpha.png", "out.jpg", ["--scale=2"], "cannot hold an alpha channel"),
        ("in.png", "out.jpg", ["--scale=2", "--lossless"], "out.jpg: JPEG cannot be lossless; write a .png"),
        ("in.png", "out.avif", ["--scale=2", "--lossless"], "out.avif: AVIF cannot be lossless; write a .png"),
        ("in.png", "out.png", ["--scale=2", "--device=cuda:99"], "device 'cuda:99' is not available"),
        ("in.png", "out.png", ["--scale=2", "--device=toaster"], "device must be auto, cpu"),
        ("in.png", "out.png", ["--scale=2", "--backend=magic"], "backend must be one of"),
        ("in.png", "out.png", ["--scale=2", "--backend=cuda"], "backend 'cuda' cannot run this render: "),
        ("in.png", "out.png", ["--scale=2", "--model=none.pth"], "none.pth: No such file"),
        ("in.png", "out.png", ["--scale=2", "--model=."], ".: not a regular file"),
        ("in.png", "out.png", ["--scale=2", "--model=text.png"], "text.png: "),
        ("in.png", "out.png", ["--scale=2", "--model=empty.safetensors"], "empty.safetensors: "),
        ("in.png", "out.png", ["--scale=2", "--model=malicious.pth"], "malicious.pth: "),
        ("in.png", "out.png", ["--scale=2", "--model=encoder.safetensors"], "expected a model of images"),
    ],
)
def test_failures(
    tmp_path: Path,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    source: str,
    target: str,
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("truncated.png").write_bytes(photo.read_bytes()[:200])
    Path("text.png").write_text("not a picture")
    Path("empty.safetensors").touch()
    Path("link.png").symlink_to("in.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 4)).save("alpha.png")
    make_malicious(Path("malicious.pth"))
    liif_fast.save_model(
        make({"name": "mlp", "args": {"in_dim": 2, "out_dim": 3, "hidden_list": []}}), "encoder.safetensors"
    )
    if not any(arg.startswith("--model") for arg in args):
        args = [*args, f"--model={model}"]
    before = contents(tmp_path)
    code, err = run(capsys, source, target, *args)
    assert_one_line(err, message)
    assert code == 1
    assert contents(tmp_path) == before


class Malice:
    """Create a file when unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("owned",)


def make_malicious(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"model": Malice()}))
        archive.writestr("a/version", "3")


@pytest.mark.parametrize("strip", [0, 3])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, RuntimeError("out of memory\nTried to allocate")])
def test_interruption_leaves_nothing(
    tmp_path: Path,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    strip: int,
    failure: BaseException | type[BaseException],
) -> None:
    left = strip
    whole = features.Features.render

    def render(self: features.Features, *args: object) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise failure
        return whole(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(strips, "STRIP_QUERIES", 30)
    monkeypatch.setattr(features.Features, "render", render)
    (tmp_path / "out.png").write_bytes(b"the old file")
    before = contents(tmp_path)
    code, err = run(capsys, photo, tmp_path / "out.png", "--scale", 2, "--model", model)
    assert code == (130 if failure is KeyboardInterrupt else 1)
    assert err.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("channels", [1, 4])
def test_a_model_that_gives_no_rgb(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str], channels: int
) -> None:
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": channels, "hidden_list": [8]}}
    liif_fast.save_model(
        make({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}), tmp_path / "odd.pth"
    )
    before = contents(tmp_path)
    args = ("--scale", 2, "--model", tmp_path / "odd.pth")
    code, err = run(capsys, photo, tmp_path / "out.png", *args)
    assert code == 1
    assert_one_line(err, f"odd.pth: the model gives {channels} channels, expected 3 (RGB)")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("failure", ["scale", "model", "render", "folder"])
def test_a_failure_leaves_no_output(
    tmp_path: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    failure: str,
) -> None:
    """The error is the same whether it shows before or during the work."""
    args = ["--scale", "1e7" if failure == "scale" else "2", "--model", "none.pth" if failure == "model" else model]
    if failure == "render":
        monkeypatch.setattr(features.Features, "render", raising(MemoryError))
    if failure == "folder":
        monkeypatch.setattr(Path, "mkdir", raising(PermissionError(13, "Permission denied", "new")))
    code, err = run(capsys, photo, f"{tmp_path}/new/deep/", *args)
    assert code == 1
    assert err.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [photo]


def test_a_line_says_which_model_and_why(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line names a single file. A folder prints one line per reason, and --model prints none."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with Image.open(photo) as image:
        for name in ("a.jpg", "b.jpg", "c.png"):
            image.save(folder / name)
    by_photo, by_clean = (
        "by edsr-small-liif-photo: JPEG compresses with loss\n",
        "by edsr-small-liif: PNG is taken as clean\n",
    )
    one = folder / "a.jpg"
    assert run(capsys, one, tmp_path / "a.png", "--size=20x") == (0, f"liif-fast: {one}: {by_photo}")
    assert run(capsys, one, tmp_path / "b.png", "--size=20x", "--model=edsr-small-liif-photo") == (0, "")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    code, err = run(capsys, folder, tmp_path / "out", "--size=20x", "--format=png")
    assert (code, err) == (0, f"liif-fast: {by_photo}liif-fast: {by_clean}liif-fast: 3 written\n")
    assert (tmp_path / "out" / "a.png").read_bytes() == (tmp_path / "a.png").read_bytes()
