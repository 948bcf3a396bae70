"""Test animations enlarged by the command and by `upscale`."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liif_fast import upscaling
from liif_fast.cli import main
from liif_fast.images import (
    read_image,
)

from .test_animation import moving, read, same


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a tiny model."""
    import torch

    import liif_fast
    from liif_fast.models import make

    torch.manual_seed(0)
    encoder = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
    path = tmp_path_factory.mktemp("model") / "tiny.pth"
    spec = {"encoder_spec": encoder, "imnet_spec": imnet, "residual": "bilinear"}
    liif_fast.save_model(make({"name": "liif", "args": spec}), path)
    return str(path)


@pytest.mark.parametrize("output", ["gif", "png", "webp", "jpg", "tif"])
def test_enlarged(tmp_path: Path, model: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each frame is upscaled as it would be alone. A format without animations gets the first one, with a notice."""
    frames = [np.zeros((9, 12, 4), np.uint8) for _ in range(3)]
    for number, frame in enumerate(frames):
        frame[2:7, number : number + 6] = (200, 100 * number, 10, 255)
    images = [Image.fromarray(frame) for frame in frames]
    source, target = tmp_path / "in.webp", tmp_path / f"out.{output}"
    images[0].save(source, save_all=True, append_images=images[1:], duration=[50, 60, 70], loop=2, lossless=True)
    args = [str(source), str(target), "--scale=2.5", f"--model={model}"]
    args += ["--lossless"] if output == "webp" else ["--background=#00f"] if output == "jpg" else []
    assert main(["upscale", *args]) == 0
    err = capsys.readouterr().err
    if output in ("jpg", "tif"):
        assert f"{source}: only the first of 3 frames is used" in err
        assert read_image(target).size == (30, 22)
        return
    assert err.count("\n") == 1
    made = read(target)
    assert (made.durations, made.plays, made.size) == ([50, 60, 70], 2, (30, 22))
    for frame, small in zip(made.frames, frames, strict=True):
        wanted = upscaling.upscale(small, model, scale=2.5)
        if output == "gif":
            assert np.array_equal(frame[..., 3] == 255, wanted[..., 3] >= 128)
        else:
            assert same(frame, wanted)


def test_options_of_an_animation(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    moving(tmp_path / "in.gif", 3)
    args = ["upscale", str(tmp_path / "in.gif"), "--scale=2", f"--model={model}"]
    assert main([*args, str(tmp_path / "out.gif"), "--region=8x6+2+2", "--self-ensemble"]) == 0
    assert read(tmp_path / "out.gif").size == (8, 6)
    assert capsys.readouterr().err.count("\n") == 2  # its palette, and the result
    for options, message in (
        (["--lossless"], "out.gif: GIF cannot be lossless; write a .png, .tif or .webp file"),
        (["--size=30000x30000"], "the output 3 frames of 30000x30000 has more than 1073741824 pixels, which GIF needs"),
    ):
        base = [*args[:2], *args[3:]] if options[0].startswith("--size") else args
        assert main([*base, str(tmp_path / "out.gif"), *options]) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "in").mkdir()
    moving(tmp_path / "in" / "a.gif", 2)
    Image.new("P", (4, 4)).save(tmp_path / "in" / "still.gif")
    assert main(["upscale", str(tmp_path / "in"), str(tmp_path / "out"), *args[2:]]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.gif", "still.png"]


def test_a_still_gif(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), np.uint8)
    pixels[:, :6, 3], pixels[:, 6:, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "in.png")
    assert main(["upscale", str(tmp_path / "in.png"), str(tmp_path / "out.gif"), "--scale=2", f"--model={model}"]) == 0
    assert "out.gif: its colours are reduced to the 256 of a GIF, and alpha to 1 bit" in capsys.readouterr().err
    made = read_image(tmp_path / "out.gif").pixels
    wanted = upscaling.upscale(pixels, model, scale=2)
    assert np.array_equal(made[..., 3] == 255, wanted[..., 3] >= 128)


def test_an_animation_of_pillow_gives_one_picture(tmp_path: Path, model: str, caplog: pytest.LogCaptureFixture) -> None:
    moving(tmp_path / "in.webp")
    with Image.open(tmp_path / "in.webp") as image:
        image.seek(2)
        made = upscaling.upscale(image, model, scale=2)
    assert np.array_equal(np.asarray(made), upscaling.upscale(read(tmp_path / "in.webp").frames[2], model, scale=2))
    assert caplog.messages == ["image: only its current frame is enlarged; upscale_file makes animations"]


def test_through_pipes(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    moving(tmp_path / "in.webp")
    stdin, stdout = io.BytesIO((tmp_path / "in.webp").read_bytes()), io.BytesIO()
    for name, pipe in (("stdin", stdin), ("stdout", stdout)):
        pipe.buffer = pipe  # type: ignore[attr-defined]
        monkeypatch.setattr(sys, name, pipe)
    assert main(["upscale", "-", "-", "--scale=2", f"--model={model}"]) == 0
    assert len(read(tmp_path / "out.webp", stdout.getvalue()).frames) == 4
