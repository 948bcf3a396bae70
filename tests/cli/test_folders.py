"""Test `liif-fast upscale` on folders: which files, under which names, and how one failure affects the others."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import liif_fast
from liif_fast.cli import main
from liif_fast.images import read_image, write_strips

from .support import without_notices

ROOT = Path(liif_fast.__file__).parents[1]
PASSED = "liif-fast: passed over: a text file (1)"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Make a typical folder: images of every kind, a broken one, other files, folders."""
    folder = tmp_path / "in"
    (folder / "deeper" / "still").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 4), np.uint8)
    image = Image.fromarray(pixels)
    image.convert("RGB").save(folder / "photo.jpg")
    image.save(folder / "alpha.png")
    image.convert("L").save(folder / "gray.tif")
    image.convert("RGB").quantize(8).save(folder / "palette.gif")
    write_strips(folder / "deep.png", [pixels[..., :3].astype(np.uint16) * 257], (6, 8, 3), 16, {})
    (folder / "broken.png").write_bytes((folder / "alpha.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"")
    image.convert("RGB").save(folder / "deeper" / "one.webp")
    image.convert("RGB").save(folder / "deeper" / "still" / "two.BMP")
    return folder


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, list[str]]:
    code = main(["upscale", *map(str, args)])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, without_notices(captured.err).splitlines()


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_mixed_folder(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    """The broken file is named, the others are written, and the exit code is 1."""
    out = tmp_path / "new" / "out"
    code, err = run(capsys, mixed, out, "--scale", 2, "--model", model)
    assert code == 1
    assert err[-1] == "liif-fast: 5 written, 1 failed"
    assert next(line for line in err if "error" in line).startswith(f"liif-fast: error: {mixed / 'broken.png'}: ")
    assert err[1:-1] == [PASSED]
    assert names(out) == ["alpha.png", "deep.png", "gray.tif", "palette.png", "photo.jpg"]
    kinds = {name: (read_image(out / name).pixels.shape, read_image(out / name).depth) for name in names(out)}
    assert kinds == {
        "alpha.png": ((12, 16, 4), 8),
        "deep.png": ((12, 16, 3), 16),
        "gray.tif": ((12, 16, 1), 8),
        "palette.png": ((12, 16, 3), 8),
        "photo.jpg": ((12, 16, 3), 8),
    }
    alone = tmp_path / "alone.png"
    assert run(capsys, mixed / "deep.png", alone, "--scale", 2, "--model", model) == (0, [])
    assert alone.read_bytes() == (out / "deep.png").read_bytes()


def test_what_systems_leave_in_a_folder_is_no_input(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    (mixed / "broken.png").unlink()
    for name in ("@eaDir", "__MACOSX", ".thumbnails"):
        (mixed / name).mkdir()
        (mixed / name / "photo.jpg").write_bytes((mixed / "photo.jpg").read_bytes())
    code, _ = run(capsys, mixed, tmp_path / "out", "--scale", 2, "--model", model, "--recursive")
    assert code == 0
    assert [name for name in names(tmp_path / "out") if name.endswith("photo.jpg")] == ["photo.jpg"]


def test_recursive_keeps_the_layout(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    (mixed / "broken.png").unlink()
    out = mixed / "out"  # inside the input; its files are not inputs of the next run
    args = (mixed, out, "--size", "20x", "--model", model, "--recursive", "--suffix", "_big")
    for _ in range(2):
        code, err = run(capsys, *args)
        assert (code, err) == (0, [PASSED, "liif-fast: 7 written"])
    assert names(out) == [
        "alpha_big.png", "deep_big.png", "deeper/one_big.webp", "deeper/still/two_big.BMP", "gray_big.tif",
        "palette_big.png", "photo_big.jpg",
    ]  # fmt: skip
    assert all(read_image(out / name).size == (20, 15) for name in names(out))


def test_into_the_same_folder(mixed: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    (mixed / "broken.png").unlink()
    before = names(mixed)
    code, err = run(capsys, mixed, mixed, "--scale", 2, "--model", model)
    assert code == 1
    assert "is the input itself" in err[0]
    assert names(mixed) == before
    code, err = run(capsys, mixed, mixed, "--scale", 2, "--model", model, "--suffix", "@2x")
    assert (code, err) == (0, [PASSED, "liif-fast: 5 written"])
    assert set(names(mixed)) - set(before) == {
        "alpha@2x.png", "deep@2x.png", "gray@2x.tif", "palette@2x.png", "photo@2x.jpg"
    }  # fmt: skip

    (mixed / "gray@2x.tif").unlink()  # left by an interruption
    after = {path: path.read_bytes() for path in mixed.glob("*@2x.*")}
    code, err = run(capsys, mixed, mixed, "--scale", 2, "--model", model, "--suffix", "@2x")
    assert code == 1
    assert "is also an input" in err[0]
    code, err = run(capsys, mixed, mixed, "--scale", 2, "--model", model, "--suffix", "@2x", "--existing", "skip")
    assert (code, err) == (0, [PASSED, "liif-fast: 1 written, 4 left unchanged"])
    assert set(mixed.glob("*@2x*")) - set(after) == {mixed / "gray@2x.tif"}
    assert all(path.read_bytes() == old for path, old in after.items())


def test_existing_outputs(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    (mixed / "broken.png").unlink()
    out = tmp_path / "out"
    out.mkdir()
    (out / "photo.jpg").write_bytes(b"old")
    args = (mixed, out, "--scale", 2, "--model", model, "--existing")
    code, err = run(capsys, *args, "error")
    assert code == 1
    assert "photo.jpg: exists" in err[0]
    assert names(out) == ["photo.jpg"]
    assert run(capsys, *args, "skip") == (0, [PASSED, "liif-fast: 4 written, 1 left unchanged"])
    assert (out / "photo.jpg").read_bytes() == b"old"
    assert run(capsys, *args, "skip") == (0, [PASSED, "liif-fast: 0 written, 5 left unchanged"])
    assert run(capsys, *args, "replace") == (0, [PASSED, "liif-fast: 5 written"])
    assert read_image(out / "photo.jpg").size == (16, 12)


def test_format_and_its_limits(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    """An image that the format cannot hold fails alone and leaves no file."""
    (mixed / "broken.png").unlink()
    code, err = run(capsys, mixed, tmp_path / "out", "--scale", 2, "--model", model, "--format", "jpg")
    assert code == 1
    assert err[-1] == "liif-fast: 3 written, 2 failed"
    assert any("alpha.jpg: JPEG cannot hold an alpha channel" in line for line in err)
    assert any("deep.jpg: JPEG cannot hold 16 bits per channel" in line for line in err)
    assert names(tmp_path / "out") == ["gray.jpg", "palette.jpg", "photo.jpg"]


def test_odd_names_and_links(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    """Names with any characters are kept; links to files are followed, and dangling links are named."""
    (mixed / "broken.png").unlink()
    odd = ["\u597d \U0001f431.png", " - .png", "-x.png", "new\nline.png", os.fsdecode(b"no utf-8 \xff.png")]
    for name in odd:
        (mixed / name).write_bytes((mixed / "alpha.png").read_bytes())
    (mixed / "link.png").symlink_to("alpha.png")
    (mixed / "loop.png").symlink_to("loop.png")
    (mixed / "nowhere.png").symlink_to("missing.png")
    (mixed / "deeper" / "up").symlink_to(mixed)
    args = (mixed, tmp_path / "out", "--scale", 2, "--model", model, "--recursive")
    code, err = run(capsys, *args)
    assert code == 1
    assert err[-1] == "liif-fast: 13 written, 2 failed"
    assert [line.split(": ")[2:] for line in err[:-2]] == [
        [f"{mixed / 'loop.png'}", "Too many levels of symbolic links"],
        [f"{mixed / 'nowhere.png'}", "No such file or directory"],
    ]
    assert {*odd, "link.png"} <= set(names(tmp_path / "out"))


def test_two_inputs_for_one_output(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    Image.new("RGB", (3, 3)).save(mixed / "photo.png")
    code, err = run(capsys, mixed, tmp_path / "out", "--scale", 2, "--model", model, "--format", "png")
    assert code == 1
    assert "photo.png: is the output of both" in err[0]
    assert err[0].endswith("; rename one of them")
    assert not (tmp_path / "out").exists()
    Image.new("RGB", (3, 3)).save(mixed / "palette.bmp")
    code, err = run(capsys, mixed, tmp_path / "out", "--scale", 2, "--model", model, "--format", "png")
    assert (code, len(err)) == (1, 1)
    assert "palette.png: is the output of both" in err[0]
    assert err[0].endswith("; rename one of them (and 1 more like these)")


def test_capitals_that_the_file_system_does_not_tell_apart(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    """Simulate a case-insensitive file system by a hard link: another name, the same file, the same folder."""
    before = photo.read_bytes()
    os.link(photo, photo.with_name("IN.PNG"))
    code, err = run(capsys, photo, photo.with_name("IN.PNG"), "--scale", 2, "--model", model)
    assert code == 1
    assert "IN.PNG: is the input itself" in err[0]
    assert photo.read_bytes() == before
    os.link(photo, photo.with_name("other.png"))  # only a hard link, so the input stays
    assert run(capsys, photo, photo.with_name("other.png"), "--scale", 2, "--model", model) == (0, [])
    assert photo.read_bytes() == before


def test_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").touch()
    code, err = run(capsys, tmp_path / "in", tmp_path / "out", "--scale", 2, "--model", model)
    assert code == 1
    assert "no image files in it" in err[0]


@pytest.mark.parametrize("paths", [("", "out"), ("in.png", "")])
def test_an_empty_path_is_not_the_current_folder(
    photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str, paths: tuple[str, str]
) -> None:
    monkeypatch.chdir(photo.parent)
    code, err = run(capsys, *paths, "--scale", 2, "--model", model)
    assert (code, err) == (1, [f"liif-fast: error: {'OUT' if paths[0] else 'IN'} is empty; give a file or a folder"])
    assert names(photo.parent) == ["in.png"]


def test_one_file_into_a_folder(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    out = tmp_path / "out"
    args = ("--scale", 2, "--model", model)
    assert run(capsys, photo, f"{out}/", *args) == (0, [])
    assert run(capsys, photo, out, *args, "--suffix", "_x2", "--format", "tif") == (0, [])
    assert names(out) == ["in.png", "in_x2.tif"]


def test_region_and_tile_and_precision(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    run(capsys, photo, tmp_path / "whole.png", "--scale", 3, "--model", model)
    args = ("--scale", 3, "--model", model, "--region", "20x7+11+19", "--tile", 32)
    assert run(capsys, photo, tmp_path / "part.png", *args) == (0, [])
    whole, part = read_image(tmp_path / "whole.png").pixels, read_image(tmp_path / "part.png").pixels
    assert np.array_equal(part, whole[19:26, 11:31])
    assert run(capsys, photo, tmp_path / "half.png", *args, "--precision", "bf16") == (0, [])
    half = read_image(tmp_path / "half.png").pixels.astype(int)
    assert np.abs(half - part).max() <= 4


def test_other_files_are_counted_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom")
    (folder / "b.mov").write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  ")
    (folder / ".hidden.svg").write_text("<svg/>")
    Image.new("RGB", (5, 5)).save(folder / "image.dat", "PNG")
    counted = "PNG with another extension (1), a video (2), an SVG drawing (1)"
    args = (folder, tmp_path / "out", "--scale", 2, "--model", model)
    code, err = run(capsys, *args)
    assert code == 1
    assert err[-1].endswith(f"no image files in it (--recursive looks deeper); passed over: {counted}")
    Image.new("RGB", (5, 5)).save(folder / "a.png")
    assert run(capsys, *args) == (0, [f"liif-fast: passed over: {counted}", "liif-fast: 1 written"])


def test_what_its_own_format_cannot_hold_becomes_a_png(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    """A BMP with alpha, and PNG with alpha or 16 bits under foreign names, become .png; others keep their extension."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 4), np.uint8))
    header = struct.pack("<IiiHHIIiiII4I", 108, 8, -6, 1, 32, 3, 0, 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    data = header.ljust(108, b"\0") + rgba.tobytes("raw", "BGRA")
    (folder / "alpha.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 14 + len(data), 0, 0, 14 + 108) + data)
    rgba.convert("RGB").save(folder / "plain.bmp")
    rgba.save(folder / "alpha2.jpg", "PNG")
    write_strips(folder / "deep.png", [np.zeros((6, 8, 3), np.uint16)], (6, 8, 3), 16, {})
    (folder / "deep.png").rename(folder / "deep.webp")
    rgba.save(folder / "alpha3.avif")
    assert run(capsys, folder, out, "--scale", 2, "--model", model) == (0, ["liif-fast: 5 written"])
    assert names(out) == ["alpha.png", "alpha2.png", "alpha3.avif", "deep.png", "plain.bmp"]
    assert read_image(out / "alpha.png").shape == (12, 16, 4)
    assert read_image(out / "deep.png").depth == 16


def test_processes_of_torchrun_share_the_images(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """Run the processes one after the other, because they only share torchrun's variables."""
    (mixed / "broken.png").unlink()
    out = tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in enumerate(([PASSED, "liif-fast: 3 written"], ["liif-fast: 2 written"])):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert run(capsys, mixed, out, "--scale", 2, "--model", model) == (0, said)
    assert len(names(out)) == 5


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bits_in_colour_and_with_alpha(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, channels: int, extension: str
) -> None:
    """A 16-bit file keeps its profile, is turned upright, and is within one level of the untiled float render."""
    y, x = np.mgrid[:14, :10]
    waves = np.stack([0.5 + 0.4 * np.sin(0.3 * x + 0.2 * y + c) for c in range(channels)], -1)
    pixels = (waves * 65535).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3  # half a turn
    source, target = tmp_path / "in.png", tmp_path / f"out.{extension}"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if pixels.shape[2] == 2:
        profile = profile[:16] + b"GRAY" + profile[20:]
    info = {"icc_profile": profile, "exif": exif.tobytes()}
    write_strips(source, [pixels[::-1, ::-1]], pixels.shape, 16, info)
    assert run(capsys, source, target, "--scale", 2.3, "--model", model) == (0, [])
    result = read_image(target)
    assert (result.depth, result.size) == (16, (23, 32))
    assert result.info["icc_profile"] == profile
    net = liif_fast.load_model(model)
    net.backend = "reference"
    colour = np.repeat(pixels[..., :1], 3, 2) if channels == 2 else pixels[..., :3]
    inp = torch.from_numpy(colour / 32767.5 - 1).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = net.render(inp, (32, 23))[0].permute(1, 2, 0).numpy() * 0.5 + 0.5
    expected = expected.mean(2, keepdims=True) if channels == 2 else expected
    got = result.pixels[..., :-1] if channels in (2, 4) else result.pixels
    assert np.abs(got - np.clip(expected, 0, 1) * 65535.0).max() <= 1
