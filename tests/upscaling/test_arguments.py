"""Test the arguments of liif_fast.upscale: sizes, images, models, and refusals."""

import copy
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import liif_fast
from liif_fast import upscaling
from liif_fast.devices import pick_device
from liif_fast.models import LIIF, make
from liif_fast.upscaling import output_size

from .test_upscale import assert_within_one_level, photo, upscale, whole_render

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_the_callers_model_is_left_alone(model: nn.Module) -> None:
    model.train()
    model.feat = model.inp = None
    upscale(photo(), model, scale=2, backend="torch")
    assert model.training
    assert model.feat is None
    assert model.inp is None
    assert model.backend == "auto"
    model.eval()


def test_model_files_and_norm(model: nn.Module, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    liif_fast.save_model(model, path)
    expected = upscale(photo(), model, scale=2)
    assert np.array_equal(upscale(photo(), path, scale=2), expected)
    assert np.array_equal(liif_fast.upscale(photo(), str(path), scale=2, device="cpu"), expected)
    other = liif_fast.load_model(path)
    other.data_norm = {"inp": {"sub": [0.1, 0.2, 0.3], "div": [0.5]}, "gt": {"sub": [0.0], "div": [1.0]}}
    pixels = photo()
    with torch.no_grad():
        inp = (torch.from_numpy(pixels / 255).float() - torch.tensor([0.1, 0.2, 0.3])) / 0.5
        out = other.render(inp.permute(2, 0, 1)[None], (26, 38))[0].permute(1, 2, 0).numpy()
    assert_within_one_level(upscale(pixels, other, scale=2), out)


def test_other_models() -> None:
    torch.manual_seed(0)
    encoder = {"name": "rcan", "args": {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 16, "no_upsampling": True}}
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
    for name, args in (("liif", {"imnet_spec": imnet, "local_ensemble": False}), ("metasr", {})):
        other = make({"name": name, "args": {"encoder_spec": encoder, **args}}).eval()
        expected = whole_render(other, photo() / 255, (26, 38))
        assert_within_one_level(upscale(photo(), other, scale=2), expected)
    half = make({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet}}).double()
    assert upscale(photo(), half, scale=2).shape == (26, 38, 3)


def test_a_model_that_cannot_be_tiled_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The notice is logged once per image, and not for an image within one tile."""
    encoder = {"name": "rcan", "args": {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 16, "no_upsampling": True}}
    other = make({"name": "metasr", "args": {"encoder_spec": encoder}}).eval()
    upscaling.upscale(photo(), other, scale=2, tile=19)
    assert caplog.text == ""
    upscaling.upscale(photo(channels=4), other, scale=2, tile=18)
    assert caplog.text.count("runs on all 19x13 pixels at once") == 1


def test_sizes() -> None:
    assert output_size((10, 20), scale=2.5) == (25, 50)
    assert output_size((3, 5), scale=1.5) == (4, 8)  # round half to even, as everywhere in LIIF
    assert output_size((3, 5), size=(7, 9)) == (7, 9)
    assert output_size((300, 200), size=(450, None)) == (450, 300)
    assert output_size((300, 200), size=(None, 201)) == (302, 201)
    assert output_size((1, 1), scale=1) == (1, 1)


@pytest.mark.parametrize("scale", [0, -1, 0.99, math.nan, math.inf, -math.inf, 1e300, 1e5, 10**400])
def test_bad_scales(scale: float) -> None:
    with pytest.raises(ValueError, match=r"scale|pixels"):
        output_size((640, 480), scale=scale)


@pytest.mark.parametrize(
    "size", [(None, None), (0, 5), (-3, None), (639, 480), (640, None, 3), (10**6, 10**6), (None, 479)]
)
def test_bad_sizes(size: tuple) -> None:
    with pytest.raises(ValueError, match=r"size|smaller|pixels"):
        output_size((640, 480), size=size)


def test_scale_and_size_exclude_each_other() -> None:
    for arguments in ({}, {"scale": 2, "size": (700, None)}):
        with pytest.raises(ValueError, match="exactly one of scale and size"):
            output_size((640, 480), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": "2"}, TypeError, "scale must be a number, got '2'"),
        ({"scale": 2j}, TypeError, "scale must be a number"),
        ({"size": (30.5, 20)}, TypeError, r"size must be \(width, height\).* got \(30.5, 20\)"),
        ({"size": "30x20"}, TypeError, "size must be"),
        ({"size": 30}, TypeError, "size must be"),
        ({"size": (30, 20, 10)}, ValueError, "size must be"),
        (
            {"scale": 2, "region": (0, 0, 5)},
            ValueError,
            r"region must be \(top, left, height, width\), got \(0, 0, 5\)",
        ),
        ({"scale": 2, "region": (0, 0, 5.5, 5)}, TypeError, "region must hold integers"),
        ({"scale": 2, "region": "0,0,5,5"}, TypeError, "region must"),
        ({"scale": 2, "region": 5}, TypeError, "region must be"),
        ({"scale": 2, "tile": 64.5}, TypeError, "tile must be a whole number of pixels, got 64.5"),
        ({"scale": 2, "device": None}, ValueError, "device must be auto, cpu"),
        ({"scale": 2, "model": 5}, TypeError, "model must be a model.* or None, got int"),
        ({"scale": 2, "precision": torch.float16}, ValueError, "precision must be one of"),
    ],
)
def test_bad_arguments(model: nn.Module, arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        upscaling.upscale(photo(), **{"model": model, **arguments})


def test_numbers_of_numpy_and_torch_are_numbers(model: nn.Module) -> None:
    expected = upscale(photo(), model, scale=2, region=(1, 2, 3, 4))
    for scale in (np.float32(2), torch.tensor(2.0), Fraction(2)):
        assert np.array_equal(upscale(photo(), model, scale=scale, region=np.array([1, 2, 3, 4])), expected)
    assert upscale(photo(), model, size=(np.int64(38), None)).shape == (26, 38, 3)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4), np.int32), TypeError, "got int32"),
        (np.zeros((4, 4), bool), TypeError, "got bool"),
        (np.zeros((4, 4, 5), np.uint8), ValueError, r"got \[4, 4, 5\]"),
        (np.zeros(4, np.uint8), ValueError, r"got \[4\]"),
        (np.zeros((0, 4), np.uint8), ValueError, "got 4x0"),
        (np.full((4, 4), 1.5), ValueError, r"in \[0, 1\], got 1.5"),
        (np.full((4, 4), np.nan), ValueError, r"in \[0, 1\], got nan"),
        ("photo.png", TypeError, "got str"),
        (torch.zeros(4, 4), TypeError, "got Tensor"),
        (Image.new("LAB", (4, 4)), ValueError, "mode LAB"),
    ],
)
def test_bad_images(model: nn.Module, image: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        upscale(image, model, scale=2)  # type: ignore[type-var]


def test_bad_models_devices_and_backends(model: nn.Module, tmp_path) -> None:
    with pytest.raises(TypeError, match="got Linear"):
        upscale(photo(), nn.Linear(1, 1), scale=2)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        upscale(photo(), tmp_path / "none.pth", scale=2)
    with pytest.raises(ValueError, match="backend must be one of"):
        upscale(photo(), model, scale=2, backend="fastest")
    for name in ("gpu", "cuda:99", "meta", "", "cpu:5", "mps:1", "cuda:-1", "cuda:x", torch.device("cpu", 1)):
        with pytest.raises(ValueError, match="device"):
            pick_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="not available"):
            upscale(photo(), model, scale=2, device="cuda")


def test_models_that_make_no_rgb(model: nn.Module) -> None:
    """Wrong output channels are refused at once if the model states them, otherwise after a run."""
    for imnet in (None, {"name": "mlp", "args": {"out_dim": 1, "hidden_list": [8]}}):
        other = make({"name": "liif", "args": {**model.spec["args"], "imnet_spec": imnet, "residual": None}})
        channels = 4 if imnet is None else 1
        assert other.channels_out == channels
        with pytest.raises(ValueError, match=f"the model gives {channels} channels"):
            upscaling.upscale_strips(photo(), other, scale=2)
    own = make({"name": "liif", "args": {**model.spec["args"], "residual": None}})
    own.imnet = nn.Linear(own.imnet.layers[0].in_features, 2)
    assert own.channels_out is None
    with pytest.raises(RuntimeError, match="the model gives 2 channels"):
        upscale(photo(), own, scale=2)
    meta = make({"name": "metasr", "args": {"encoder_spec": model.spec["args"]["encoder_spec"]}})
    assert meta.channels_out == 3


def test_models_of_ones_own_that_make_rgb(model: nn.Module) -> None:
    """Networks of six channels, with an attribute `out_dim`, or on an encoder without one, are handled."""

    class Own(LIIF):
        def __init__(self, **args: Any) -> None:
            super().__init__(**args)
            self.out_dim = 6

        def render_rgb(self, *args: Any, **options: Any) -> torch.Tensor:
            return super().render_rgb(*args, **options)[:, :3]

    class Plain(nn.Module):
        def forward(self, inp: torch.Tensor) -> torch.Tensor:
            return inp

    imnet = {"name": "mlp", "args": {"out_dim": 6, "hidden_list": [8]}}
    own = Own(**{**model.spec["args"], "imnet_spec": imnet, "residual": None}).eval()
    bare = make({"name": "liif", "args": {**model.spec["args"], "imnet_spec": None, "residual": None}})
    bare.encoder = Plain()
    for each in (own, bare):
        each.register_parameter("unused", nn.Parameter(torch.zeros(1)))  # its device is that of the model
        assert each.channels_out is None
        assert upscale(photo(), each, scale=2).shape == (26, 38, 3)


def test_a_subclass_that_renders_by_itself(model: nn.Module) -> None:
    """A model whose `render_rgb` has no `place` is rendered from the whole map, with the same pixels."""

    class Own(LIIF):
        def render_rgb(self, size: Any, region: Any = None, cell: Any = None) -> torch.Tensor:  # type: ignore[override]
            return super().render_rgb(size, region, cell)

    own = Own(**model.spec["args"]).eval()
    own.load_state_dict(model.state_dict())
    options: dict[str, Any] = {"scale": 2, "region": (40, 10, 9, 8)}
    result = upscale(photo(40, 50), own, **options)
    assert np.abs(result.astype(int) - upscale(photo(40, 50), model, **options)).max() <= 1


def test_output_that_is_not_finite_is_an_error(model: nn.Module) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.imnet.layers[-1].bias[1] = math.nan
    with pytest.raises(RuntimeError, match="NaN"):
        upscale(photo(), broken, scale=2)
