"""Test the examples that put LIIF into spandrel and ComfyUI."""

import importlib.util
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import liif_fast
from liif_fast import load_model, models, save_model
from liif_fast.models.catalogue import FOLDER_VARIABLE, SHIPPED, SHIPPED_PHOTO

EXAMPLES = Path(liif_fast.__file__).parents[1] / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are in the source tree only")


def load_example(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(name="liif", encoder="edsr-baseline", **options):
    torch.manual_seed(0)
    sizes = {"n_resgroups": 1} if encoder == "rcan" else {}
    args = {
        "encoder_spec": {"name": encoder, "args": {"n_resblocks": 1, "n_feats": 16, "no_upsampling": True, **sizes}}
    }
    if name == "liif":
        args["imnet_spec"] = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [8]}}
    return models.make({"name": name, "args": {**args, **options}}).eval()


# ---- spandrel


@pytest.fixture(scope="module")
def spandrel():
    """Return the real package; if torchvision is absent, replace the three names that other models need from it."""
    if importlib.util.find_spec("spandrel") is None or importlib.util.find_spec("einops") is None:
        pytest.skip("spandrel (pip install --no-deps spandrel) or einops is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("torchvision") is None:
            functional = types.ModuleType("torchvision.transforms.functional")
            functional.InterpolationMode = functional.rotate = functional.normalize = None
            for name in ("torchvision", "torchvision.transforms"):
                patch.setitem(sys.modules, name, types.ModuleType(name))
            patch.setitem(sys.modules, functional.__name__, functional)
        import spandrel

        yield spandrel


@pytest.fixture
def adapter(spandrel):
    return load_example("spandrel_liif", EXAMPLES / "spandrel_liif.py")


@pytest.fixture
def loader(spandrel, adapter):
    """Return loader(scale), which makes a loader with all of spandrel's architectures and LIIF."""

    def make(scale):
        registry = spandrel.MAIN_REGISTRY.copy()
        adapter.register(scale, registry)
        return spandrel.ModelLoader(registry=registry)

    return make


@pytest.mark.parametrize("options", [{}, {"residual": "bilinear", "local_ensemble": False}, {"name": "metasr"}])
def test_spandrel_loads_and_enlarges(options, loader, spandrel, tmp_path):
    model, image = build(**options), torch.rand(1, 3, 7, 10)
    save_model(model, tmp_path / "model.pth")
    # As the original's trainer writes it: more beside the model.
    content = torch.load(tmp_path / "model.pth")
    torch.save(
        {**content, "optimizer": {"name": "adam", "args": {"lr": 1e-4}, "sd": {}}, "epoch": 3}, tmp_path / "o.pth"
    )
    for file, scale in (("model.pth", 2), ("o.pth", 3)):
        descriptor = loader(scale).load_from_file(tmp_path / file)
        assert isinstance(descriptor, spandrel.ImageModelDescriptor)
        assert (descriptor.architecture.id, descriptor.scale, descriptor.input_channels) == ("LIIF", scale, 3)
        assert descriptor.tiling is spandrel.ModelTiling.SUPPORTED
        assert not descriptor.supports_half
        size = (7 * scale, 10 * scale)
        torch.testing.assert_close(descriptor(image), model.predict(image, size).clamp(0, 1), rtol=0, atol=1e-6)


def test_spandrel_knows_what_tiling_costs(loader, spandrel, tmp_path):
    save_model(build(encoder="rcan"), tmp_path / "model.pth")
    descriptor = loader(4).load_from_file(tmp_path / "model.pth")
    assert descriptor.tiling is spandrel.ModelTiling.DISCOURAGED
    assert descriptor.tags == ["LIIF", "rcan"]


def test_spandrel_says_what_it_cannot_read(loader, adapter, spandrel, tmp_path):
    save_model(build(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"save it by liif_fast\.save_model\(model, 'model\.pth'\)"):
        loader(2).load_from_file(tmp_path / "model.safetensors")
    torch.save({"model": {"name": "other", "args": {}, "sd": {"weight": torch.ones(2)}}}, tmp_path / "other.pth")
    with pytest.raises(spandrel.UnsupportedModelError):
        loader(2).load_from_file(tmp_path / "other.pth")
    for scale in (0, 2.5, "2", True):
        with pytest.raises(ValueError, match="scale must be a whole number of at least 1"):
            adapter.register(scale)
    registry = spandrel.MAIN_REGISTRY.copy()
    adapter.register(2, registry)
    with pytest.raises(spandrel.DuplicateArchitectureError):
        adapter.register(3, registry)


def test_the_example_as_a_program(loader, adapter, tmp_path, monkeypatch):
    """It enlarges, and reports what is wrong in one line."""
    monkeypatch.chdir(tmp_path)
    model = build()
    save_model(model, tmp_path / "model.pth")
    Path("damaged.pth").write_bytes(b"damaged")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save("in.png")
    monkeypatch.setattr(adapter, "ModelLoader", lambda: loader(3))
    # The program's own registry would stay changed for other tests.
    monkeypatch.setattr(adapter.register, "__defaults__", (types.SimpleNamespace(add=lambda support: None),))

    def run_main(*words):
        monkeypatch.setattr(sys, "argv", ["spandrel_liif.py", *words])
        adapter.main()

    run_main("model.pth", "in.png", "out.png", "3")
    expected = model.predict(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, (18, 24)).clamp(0, 1)[0]
    with Image.open("out.png") as made:
        assert np.abs(np.asarray(made) - expected.permute(1, 2, 0).numpy() * 255).max() < 0.51
    for words, message in (
        (("model.pth", "in.png", "bad.png", "2.5"), "scale must be a whole number of at least 1, got '2.5'"),
        (("model.pth", "none.png", "bad.png", "3"), "none.png"),
        (("damaged.pth", "in.png", "bad.png", "3"), ""),
        (("none.pth", "in.png", "bad.png", "3"), "none.pth"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_main(*words)
        assert stopped.value.code.startswith("spandrel_liif.py: ")
        assert message in stopped.value.code and "\n" not in stopped.value.code
    assert not Path("bad.png").exists()


def test_other_architectures_are_still_found(loader, spandrel, tmp_path):
    """The adapter takes no file of another architecture, and leaves spandrel's own registry alone."""
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

    torch.save(SRVGGNetCompact(num_feat=8, num_conv=1, upscale=2).state_dict(), tmp_path / "compact.pth")
    assert loader(2).load_from_file(tmp_path / "compact.pth").architecture.id == "Compact"
    assert "LIIF" not in spandrel.MAIN_REGISTRY


# ---- ComfyUI


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    """Return the package that ComfyUI imports from custom_nodes, with a models folder that holds one file."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    save_model(build(), tmp_path / "mine.pth")
    return load_example("liif_fast_comfyui", EXAMPLES / "comfyui" / "__init__.py")


def run(package, **inputs):
    """Call a node as ComfyUI does: every input by name, checked against its declaration; a tuple comes out."""
    ((name, node),) = package.NODE_CLASS_MAPPINGS.items()
    assert package.NODE_DISPLAY_NAME_MAPPINGS.keys() == {name}
    assert isinstance(node.CATEGORY, str)
    declared = node.INPUT_TYPES()
    assert declared.keys() <= {"required", "optional", "hidden"}
    values = {}
    for key, (kind, *options) in declared["required"].items():
        if isinstance(kind, list):
            values[key] = inputs.pop(key, kind[0])
            assert values[key] in kind
        elif kind == "IMAGE":
            values[key] = inputs.pop(key)
        else:
            value = values[key] = inputs.pop(key, options[0]["default"])
            assert type(value) is {"INT": int, "FLOAT": float}[kind]
            assert options[0]["min"] <= value <= options[0]["max"]
    assert not inputs
    results = getattr(node(), node.FUNCTION)(**values)
    assert isinstance(results, tuple)
    assert len(results) == len(node.RETURN_TYPES)
    assert node.RETURN_TYPES == ("IMAGE",)
    return results[0]


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        ({"ratio": 3.7}, (26, 41)),
        ({"width": 40}, (25, 40)),
        ({"height": 21}, (21, 33)),
        ({"width": 17, "height": 31, "ratio": 9.0}, (31, 17)),
        ({}, (14, 22)),
    ],
)
def test_the_node_enlarges_to_any_size(inputs, size, comfyui):
    image = torch.rand(2, 7, 11, 3)
    out = run(comfyui, image=image, model="mine.pth", device="cpu", **inputs)
    assert out.shape == (2, *size, 3)
    assert (out.dtype, out.device.type) == (torch.float32, "cpu")
    assert 0 <= out.min() <= out.max() <= 1
    expected = build().predict(image.permute(0, 3, 1, 2), size).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_comfyui_keeps_the_digits_of_a_ratio(comfyui):
    """Its widgets would round a ratio to their step."""
    _, options = comfyui.LIIFUpscale.INPUT_TYPES()["required"]["ratio"]
    assert options["round"] is False


def test_the_node_takes_alpha_gray_and_values_outside(comfyui):
    for channels in (1, 4):
        image = torch.rand(1, 5, 6, channels) * 1.5 - 0.2
        assert run(comfyui, image=image).shape == (1, 10, 12, channels)


def test_the_node_lists_models_and_reads_a_changed_file_anew(comfyui, tmp_path):
    (tmp_path / "folder.pth").mkdir()
    assert comfyui.model_names() == [SHIPPED, SHIPPED_PHOTO, "mine.pth"]
    image = torch.rand(1, 5, 6, 3)
    first = run(comfyui, image=image, model="mine.pth")
    assert torch.equal(run(comfyui, image=image, model="mine.pth"), first)
    (node,) = comfyui.NODE_CLASS_MAPPINGS.values()
    others = {"image": None, "ratio": 2.0, "width": 0, "height": 0, "device": "auto", "precision": "float32"}
    before = node.IS_CHANGED(model="mine.pth", **others)  # ComfyUI passes no value for what comes by a link
    assert node.IS_CHANGED(model="mine.pth", **others) == before
    other = load_model(tmp_path / "mine.pth")
    torch.nn.init.constant_(other.imnet.layers[-1].weight, 0.0)
    save_model(other, tmp_path / "mine.pth")
    os.utime(tmp_path / "mine.pth", (1, 1))
    assert node.IS_CHANGED(model="mine.pth", **others) != before
    assert not torch.equal(run(comfyui, image=image, model="mine.pth"), first)


def test_the_node_says_what_is_wrong(comfyui, tmp_path):
    image = torch.rand(1, 5, 6, 3)
    with pytest.raises(ValueError, match="smaller than the input"):
        run(comfyui, image=image, width=3)
    (tmp_path / "mine.pth").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"mine\.pth: not a readable file"):
        run(comfyui, image=image, model="mine.pth")
    with pytest.raises(ValueError, match=r"in \[0, 1\], got nan"):
        run(comfyui, image=torch.full((1, 5, 6, 3), np.nan))
