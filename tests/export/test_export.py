"""Exported graphs compute the model, in ONNX Runtime and OpenVINO; what has no graph is refused."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from liif_fast import export_onnx, load_model, models
from liif_fast.cli import main
from liif_fast.coord import centres, plan_corners
from liif_fast.export import PLAN, check_exportable, plan
from liif_fast.export.graph import Planned, Whole
from liif_fast.export.plan import graph_inputs
from liif_fast.models import rdn
from liif_fast.models.catalogue import SHIPPED_PHOTO, licence_of, shipped_model

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

pytestmark = pytest.mark.xdist_group("export")  # one worker pays for the exporter's start

ROOT = Path(models.__file__).parents[2]
RATIOS = (2, 3, 3.7, 5)
MAPS = ((7, 9), (6, 11))
FLOAT32, HALF = 1e-5, 1e-3  # absolute, of an image in [0, 1]
NORM = {"inp": {"sub": [0.4, 0.5, 0.6], "div": [0.3]}, "gt": {"sub": [0.5], "div": [0.25, 0.2, 0.5]}}
EDSR = {"name": "edsr-baseline", "args": {"n_resblocks": 1, "n_feats": 4, "no_upsampling": True}}
SWITCHES = ("local_ensemble", "feat_unfold", "cell_decode")


def build(encoder=EDSR, hidden=(8, 8), **options):
    torch.manual_seed(0)
    imnet = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": list(hidden)}}
    model = models.make({"name": "liif", "args": {"encoder_spec": encoder, "imnet_spec": imnet, **options}}).eval()
    model.data_norm = NORM
    return model


def problems(maps=MAPS, ratios=RATIOS):
    """Yield every image and output size."""
    for shape, ratio in itertools.product(maps, ratios):
        torch.manual_seed(1)
        yield torch.rand(1, 3, *shape), tuple(round(n * ratio) for n in shape)


def plan_of(model, image, size):
    shape = tuple(n * model.enlargement for n in image.shape[2:])
    return graph_inputs(shape, size, 2 if model.local_ensemble else 1)


def onnxruntime(path):
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def openvino(path):
    core = pytest.importorskip("openvino").Core()
    with ThreadPoolExecutor(1) as pool:  # its CPU plugin frees the signal stack of the thread that compiles
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        model = pool.submit(core.compile_model, path, "CPU", settings).result()
    return lambda feeds: model(feeds)[0]


RUNTIMES = (onnxruntime, openvino)


def test_the_plan_is_the_contract():
    """The bits agree for one pixel and more, at ratios where a rounding decides."""
    for n, q, corners in itertools.product((1, 2, 7, 48, 333), (1, 3, 35, 240, 999, 1665), (1, 2)):
        made = graph_inputs((n, n + 1), (q, 2 * q), corners)
        for axis, latents, queries in (("row", n, q), ("column", n + 1, 2 * q)):
            coord = centres(queries)[None, :, None].expand(1, -1, 2)
            index, rel, _ = plan_corners(coord, latents, latents, corners == 2)
            assert np.array_equal(made[f"{axis}_index"].T, index[0, :, :corners, 1])
            assert np.array_equal(made[f"{axis}_rel"].T, rel[0, :, :corners, 1])
        assert {name: value.dtype for name, value in made.items()} == {
            name: np.int64 if name.endswith("index") else np.float32 for name in PLAN
        }


@pytest.mark.parametrize("size", [(25.9, 33.3), (0, 33), (-2, 33)])
def test_a_plan_is_of_whole_sizes(size):
    with pytest.raises(ValueError, match=r"must be whole numbers of at least 1, got \(7, 9\) and \(.*33"):
        graph_inputs((7, 9), size)


@pytest.mark.parametrize("residual", [None, "bilinear"])
def test_the_modules_compute_the_model(residual):
    """Run them in PyTorch with every switch, with and without hidden layers, and with an encoder that enlarges."""
    enlarging = {"name": "edsr-baseline", "args": {**EDSR["args"], "no_upsampling": False, "scale": 2}}
    cases = [((8, 8), EDSR, switches) for switches in itertools.product((True, False), repeat=3)]
    cases += [((), EDSR, (True,) * 3), ((8,), enlarging, (True,) * 3), ((8,), enlarging, (False,) * 3)]
    for hidden, encoder, switches in cases:
        model = build(encoder, hidden, residual=residual, **dict(zip(SWITCHES, switches, strict=True)))
        whole, planned = (form(model, torch.float32) for form in (Whole, Planned))
        for image, size in problems(ratios=(3, 3.7)):
            made = plan_of(model, image, size)
            with torch.no_grad():
                expected = model.predict(image, size).clamp(0, 1)
                got = whole(image, *(torch.from_numpy(made[name]) for name in PLAN))
                torch.testing.assert_close(got, expected, rtol=0, atol=FLOAT32)
                torch.testing.assert_close(planned(image, torch.tensor(size)), expected, rtol=0, atol=FLOAT32)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Return the file of the shipped model, as the command writes it."""
    path = tmp_path_factory.mktemp("shipped") / "model.onnx"
    assert main(["export", "edsr-small-liif", str(path)]) == 0
    return path


def assert_right(path, model, tolerance=FLOAT32, runtimes=RUNTIMES):
    for load in runtimes:
        run = load(path)
        for image, size in problems():
            expected = model.predict(image, size).clamp(0, 1).numpy()
            got = run({"image": image.numpy(), **plan_of(model, image, size)})
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=f"{load.__name__} {size}")


def test_the_shipped_model(shipped):
    assert_right(shipped, load_model(shipped_model()))


def test_the_shipped_model_in_half_precision(tmp_path):
    assert main(["export", "edsr-small-liif", str(tmp_path / "model.onnx"), "--half"]) == 0
    assert_right(tmp_path / "model.onnx", load_model(shipped_model()), HALF)


def test_the_other_shipped_model():
    """No runtime executes it, because its graph equals the first model's, which runtimes execute above."""
    first, other = load_model(shipped_model()), load_model(shipped_model(SHIPPED_PHOTO))
    assert (other.spec, other.data_norm) == (first.spec, first.data_norm)
    whole = Whole(check_exportable(other), torch.float32)
    for image, size in problems():
        made = plan_of(other, image, size)
        with torch.no_grad():
            expected = other.predict(image, size).clamp(0, 1)
            got = whole(image, *(torch.from_numpy(made[name]) for name in PLAN))
        torch.testing.assert_close(got, expected, rtol=0, atol=FLOAT32)


def test_one_corner_without_unfolding(tmp_path):
    """The shipped model, `parts` and the graph in half precision cover every state of any two switches.

    `test_the_modules_compute_the_model` tries every mixture in PyTorch.
    """
    model = build(residual="bilinear", local_ensemble=False, feat_unfold=False)
    export_onnx(model, tmp_path / "model.onnx")
    assert_right(tmp_path / "model.onnx", model)


def test_half_precision_one_corner_without_cell_and_rcan(tmp_path):
    args = {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 4, "reduction": 2, "no_upsampling": True}
    model = build({"name": "rcan", "args": args}, residual="bilinear", local_ensemble=False, cell_decode=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert export_onnx(model, tmp_path / "half.onnx", half=True) == [tmp_path / "half.onnx"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    types = {each.data_type for each in onnx.load(tmp_path / "half.onnx").graph.initializer if each.dims}
    assert onnx.TensorProto.FLOAT16 in types
    assert_right(tmp_path / "half.onnx", model, HALF)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return a model on RDN, without unfolding and cell, and its two files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rdn.CONFIGS, "B", (2, 2, 4))
        encoder = {"name": "rdn", "args": {"G0": 4, "no_upsampling": True}}
        model = build(encoder, feat_unfold=False, cell_decode=False)
    return model, export_onnx(model, tmp_path_factory.mktemp("parts") / "model.onnx", form="parts")


def test_the_parts_share_an_encoding(parts):
    model, paths = parts
    assert [path.name for path in paths] == ["model-encoder.onnx", "model-decoder.onnx"]
    for load in RUNTIMES:
        encode, decode = map(load, paths)
        for image, size in problems():
            latents = encode({"image": image.numpy()}).copy()
            assert latents.shape == (*image.shape[2:], 8)
            made, strips = plan_of(model, image, size), []
            for top in range(0, size[0], 5):
                part = {k: v[:, top : top + 5].copy() if k.startswith("row") else v for k, v in made.items()}
                strips.append(decode({"image": image.numpy(), "latents": latents, **part}).copy())
            expected = model.predict(image, size).clamp(0, 1).numpy()
            np.testing.assert_allclose(np.concatenate(strips, 2), expected, rtol=0, atol=FLOAT32)


GUIDE = ROOT / "docs" / "export.md"


def recipe(name):
    text = GUIDE.read_text(encoding="utf-8").split(f"<!-- begin:{name} -->\n```python\n")[1]
    return text.split(f"```\n<!-- end:{name} -->")[0]


@pytest.mark.skipif(not GUIDE.is_file(), reason="the guide is in the source tree only")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "strips"])
def test_the_recipes_of_the_guide(name, shipped, parts, tmp_path, monkeypatch):
    pytest.importorskip("openvino" if name == "openvino" else "onnxruntime")
    model, paths = parts if name == "strips" else (load_model(shipped_model()), [shipped])
    for path in paths:
        (tmp_path / path.name).symlink_to(path)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(1) as pool:  # as the guide says of OpenVINO
        pool.submit(exec, recipe(name), {}).result()
    with Image.open("in.jpg") as photo, Image.open("out.png") as made:
        image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255
        got = np.asarray(made).astype(int)
    expected = model.predict(image, (33, 41)).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(got - expected).max() < 0.51


@pytest.mark.skipif(not GUIDE.is_file(), reason="the guide is in the source tree only")
def test_the_guide_shows_the_plan():
    source = Path(plan.__file__).read_text(encoding="utf-8")
    assert recipe("plan") == source.split('"""\n\n', 1)[1]


def test_the_plan_inside(tmp_path):
    model = build(hidden=(8,), feat_unfold=False, residual="bilinear")
    path = tmp_path / "net.onnx"
    export_onnx(model, path, form="onnxruntime-only")
    run = onnxruntime(path)
    for image, size in problems():
        got = run({"image": image.numpy(), "size": np.array(size)})
        np.testing.assert_allclose(got, model.predict(image, size).clamp(0, 1).numpy(), rtol=0, atol=FLOAT32)


def test_the_file(shipped):
    graph = onnx.load(shipped)
    onnx.checker.check_model(graph, full_check=True)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 18)]
    operators = {node.op_type for node in graph.graph.node}
    assert {node.domain for node in graph.graph.node} == {""}
    assert not operators & {"GridSample", "Resize", "Round", "Range"}, "the plan comes from outside"
    dims = {
        each.name: [dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim]
        for each in (*graph.graph.input, *graph.graph.output)
    }
    assert dims == {
        "image": [1, 3, "H", "W"],
        "row_index": [2, "h"],
        "column_index": [2, "w"],
        "row_rel": [2, "h"],
        "column_rel": [2, "w"],
        "cell": [2],
        "output": [1, 3, "h", "w"],
    }
    metadata = {each.key.removeprefix("liif_fast."): each.value for each in graph.metadata_props}
    model = load_model(shipped_model())
    assert json.loads(metadata["data_norm"]) == model.data_norm
    assert json.loads(metadata["spec"]) == model.spec
    assert (metadata["residual"], metadata["licence"], metadata["corners"]) == ("bilinear", "MIT", "2")
    content = shipped.read_bytes()
    assert str(ROOT).encode() not in content, "a path of this machine"
    assert b"stack_trace" not in content


def test_the_licence_is_that_of_a_model_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("LIIF_FAST_MODELS", str(tmp_path))
    assert licence_of(shipped_model()) == licence_of(shipped_model(SHIPPED_PHOTO)) == "MIT"
    assert licence_of(tmp_path / "rdn-liif.pth") == "BSD-3-Clause"
    assert licence_of(tmp_path / "mine.pth") is None
    assert licence_of(tmp_path / "else" / "rdn-liif.pth") is None
