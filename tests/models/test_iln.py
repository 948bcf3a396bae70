"""Compare ILN and LiDAR-LIIF with independent plain forms and with numbers from the authors' code."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

import liif_fast
from liif_fast import functional, models
from liif_fast.attention import CornerTransformer
from liif_fast.backends import cpu
from liif_fast.coord import make_coord
from liif_fast.models.tiles import encode

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"name": "edsr-lidar", "args": {"n_resblocks": 1, "n_feats": 8}}
SENSOR = {"max_r": 50.0, "min_r": 3.0, "norm_r": 60.0, "max_v": 0.05, "min_v": -0.43, "max_h": 3.14, "min_h": -3.14}
SENSOR |= {"channels": 8, "points_per_ring": 16}
CPU = pytest.param("cpu", marks=pytest.mark.skipif(not cpu.ISA, reason="the C++ kernels are not built"))
BACKENDS = ("reference", "torch", CPU)
NAMES = ("reference", "torch", "cpu") if cpu.ISA else ("reference", "torch")


def small(d: int = 1, h: int = 2, **args) -> models.ILN:
    """Return an ILN whose norms and biases are not at their neutral initial values."""
    torch.manual_seed(d + 10 * h)
    model = models.make({"name": "iln", "args": {"d": d, "h": h, "encoder_spec": SMALL, **args}}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def one_query(feat: np.ndarray, ranges: np.ndarray, coord: np.ndarray, state: dict[str, np.ndarray], d: int, h: int):
    """Compute a query by itself in float64, except the plan, which is float32."""
    f32, (height, width) = np.float32, ranges.shape
    tokens, values = [], []
    for v_row in (-1, 1):
        for v_column in (-1, 1):
            at, rel = [], []
            for value, shift, n in ((coord[0], v_row, height), (coord[1], v_column, width)):
                moved = f32(value) + f32(shift / n + 1e-6)
                moved = min(max(moved, f32(-1 + 1e-6)), f32(1 - 1e-6))
                at.append(int(np.rint(((moved + f32(1)) * f32(n) - f32(1)) * f32(0.5))))
                rel.append((f32(value) - (f32(2 / n) * f32(at[-1]) + f32(-1 + 1 / n))) * f32(n))
            embedded = state["pos_embedding.weight"] @ np.array(rel, np.float64) + state["pos_embedding.bias"]
            tokens.append(feat[:, at[0], at[1]] + embedded)
            values.append(ranges[at[0], at[1]])
    x = np.array(tokens)

    def norm(x, key):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * state[f"{key}.weight"]
            + state[f"{key}.bias"]
        )

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    gelu = np.vectorize(
        lambda value: value * 0.5 * (1 + torch.erf(torch.tensor(value / 2**0.5, dtype=torch.float64)).item())
    )
    for i in range(d):
        first, second = f"transformer.layers.{i}.0", f"transformer.layers.{i}.1"
        q, k, v = np.split(norm(x, f"{first}.norm") @ state[f"{first}.fn.to_qkv.weight"].T, 3, axis=1)
        heads = []
        for own in np.split(np.arange(x.shape[1]), h):
            heads.append(softmax(q[:, own] @ k[:, own].T * len(own) ** -0.5) @ v[:, own])
        mixed = np.concatenate(heads, 1)
        if h > 1:
            mixed = mixed @ state[f"{first}.fn.to_out.0.weight"].T + state[f"{first}.fn.to_out.0.bias"]
        x = x + mixed
        up = norm(x, f"{second}.norm") @ state[f"{second}.fn.net.0.weight"].T + state[f"{second}.fn.net.0.bias"]
        x = x + gelu(up) @ state[f"{second}.fn.net.3.weight"].T + state[f"{second}.fn.net.3.bias"]
    logits = norm(x, "mlp_head.0") @ state["mlp_head.1.weight"].T + state["mlp_head.1.bias"]
    weights = softmax(logits[:, 0])
    return weights @ np.array(values), weights


@pytest.mark.parametrize(("d", "h"), [(0, 2), (1, 2), (1, 1), (2, 8), (3, 4)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_single_queries(d: int, h: int, backend: str) -> None:
    model = small(d, h)
    model.backend = backend
    inp = torch.rand(2, 1, 5, 7)
    coord = torch.cat((make_coord((8, 9)), torch.rand(30, 2) * 2.4 - 1.2)).expand(2, -1, 2)
    with torch.no_grad():
        model.gen_feat(inp)
        out, weight = model.attend(coord)
    state = {key: value.double().numpy() for key, value in model.attention.state_dict().items()}
    for image in range(2):
        feat, ranges = model.feat[image].double().numpy(), inp[image, 0].double().numpy()
        expected = [one_query(feat, ranges, each.numpy(), state, d, h) for each in coord[image]]
        np.testing.assert_allclose(out[image, :, 0], [each[0] for each in expected], rtol=0, atol=1e-5)
        np.testing.assert_allclose(weight[image], [each[1] for each in expected], rtol=0, atol=1e-5)


def test_the_encoder_pads_rows_by_copies_and_columns_by_the_other_end() -> None:
    encoder = models.make(SMALL)
    inp, sd = torch.rand(1, 1, 3, 4), encoder.state_dict()

    def conv(x: torch.Tensor, key: str) -> torch.Tensor:
        x = torch.cat((x[:, :, :1], x, x[:, :, -1:]), 2)
        return F.conv2d(torch.cat((x[..., -1:], x, x[..., :1]), 3), sd[f"{key}.conv.weight"], sd[f"{key}.conv.bias"])

    head = conv(inp, "head.0")
    body = head + conv(conv(head, "body.0.body.0").relu(), "body.0.body.2")
    torch.testing.assert_close(encoder(inp), head + conv(body, "body.1"), rtol=0, atol=1e-6)


def test_turning_the_sensor_turns_the_features() -> None:
    model, inp = small(), torch.rand(1, 1, 4, 12)
    turned = model.gen_feat(inp.roll(5, 3)).roll(-5, 3)
    torch.testing.assert_close(turned, model.gen_feat(inp), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["iln_1d_h4"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_the_authors_code(name: str, backend: str) -> None:
    """Test the decoder on features and seeded weights; outputs within 1e-5, gradients within 1e-4 of the largest."""
    data = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}
    model = models.make({"name": "iln", "args": {"d": 1, "h": 4, "dropout": 0.0}})
    model.attention.load_state_dict({key[4:]: value for key, value in data.items() if key.startswith("par:")})
    model.backend = backend
    model.keep(data["feat"], data["inp"])
    out, weight = model.attend(data["query"])
    torch.testing.assert_close(out, data["out"], rtol=0, atol=1e-5)
    torch.testing.assert_close(weight, data["weights"], rtol=0, atol=1e-5)
    (out * data["grad_out"]).sum().backward()
    for key, parameter in model.attention.named_parameters():
        expected = data[f"grad:{key}"]
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-4 * max(expected.abs().max().item(), 0.1))


def test_gradients_of_both_forms_agree_and_recomputing_changes_nothing() -> None:
    torch.manual_seed(3)
    model = small(2, 4).double()
    feat, values = torch.randn(2, 8, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    coord, weigh = torch.rand(2, 40, 2, dtype=torch.float64) * 2.2 - 1.1, torch.randn(2, 40, 3, dtype=torch.float64)

    def gradients(backend: str, recompute: bool | None) -> list[torch.Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in (feat, values, coord)]
        net = model.attention.transformer_of()
        out, weight = functional.attend_corners(*leaves, net, backend=backend, recompute=recompute)
        loss = (out * weigh).sum() + weight.square().sum()
        return [out, *torch.autograd.grad(loss, [*leaves, *model.attention.parameters()])]

    expected = gradients("reference", None)
    for recompute in (True, False):
        for one, other in zip(gradients("torch", recompute), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_wrapping_makes_the_seam_like_any_other_place() -> None:
    model, inp = small(wrap=True), torch.rand(1, 1, 4, 8)
    row = torch.rand(50, 1) * 2 - 1
    column = torch.rand(50, 1) * 0.25 - 1  # inside the first column
    turned = column + 6 / 8  # three columns on
    for backend in NAMES:
        model.backend = backend
        with torch.no_grad():
            at_seam = model(inp, torch.cat((row, column), 1)[None])
            inside = model(inp.roll(3, 3), torch.cat((row, turned), 1)[None])
        torch.testing.assert_close(at_seam, inside, rtol=0, atol=1e-5)
        model.wrap = False
        assert not torch.allclose(model(inp, torch.cat((row, column), 1)[None]), at_seam, atol=1e-4)
        model.wrap = True


def test_a_plan_made_once_serves_any_number_of_maps() -> None:
    model, coord = small(wrap=True), torch.rand(1, 60, 2) * 2 - 1
    plan = functional.plan_attention(coord, (4, 6), wrap=True)
    for batch in (1, 3):
        inp = torch.rand(batch, 1, 4, 6)
        model.gen_feat(inp)
        assert torch.equal(model.attend(plan)[0], model.attend(coord.expand(batch, -1, 2))[0])
    model.gen_feat(torch.rand(1, 1, 6, 4))
    with pytest.raises(ValueError, match=r"planned for maps of feat's size, \(6, 4\), got a plan for \(4, 6\)"):
        model.attend(plan)


def test_further_values_are_blended_by_the_same_weights() -> None:
    model, inp = small(), torch.rand(1, 1, 4, 8)
    model.gen_feat(inp)
    coord = torch.rand(1, 60, 2) * 2 - 1
    both, weight = model.attend(coord, torch.cat((inp, inp * 3 + 1), 1))
    torch.testing.assert_close(both[..., 1], both[..., 0] * 3 + 1)
    torch.testing.assert_close(weight.sum(-1), torch.ones(1, 60))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 4, 5, 3), (2, 4, 5, 0), (1, 1, 1, 9), (1, 1, 6, 9), (1, 6, 1, 9)])
def test_no_image_no_query_one_line_one_column(backend: str, shape: tuple[int, ...]) -> None:
    model = small()
    model.backend = backend
    batch, height, width, queries = shape
    if batch:
        model.gen_feat(torch.rand(batch, 1, height, width))
    else:
        model.keep(torch.rand(0, 8, height, width), torch.rand(0, 1, height, width))
    out, weight = model.attend(torch.rand(batch, queries, 2) * 2 - 1)
    assert out.shape == (batch, queries, 1) and weight.shape == (batch, queries, 4)
    assert out.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_one_latent_reaches_the_queries_that_read_it_alone(backend: str) -> None:
    model = small()
    feat, values = torch.randn(1, 8, 4, 6), torch.rand(1, 1, 4, 6)
    feat[0, :, 2, 3] = float("nan")
    coord = torch.rand(1, 300, 2) * 2 - 1
    out, _ = functional.attend_corners(feat, values, coord, model.attention.transformer_of(), backend=backend)
    index, _, _ = functional.corner_plan(coord, (4, 6))
    reads = ((index[..., 0] == 2) & (index[..., 1] == 3)).any(-1)
    assert torch.equal(out[..., 0].isnan(), reads) and 0 < reads.sum() < 300


def test_memory_does_not_grow_with_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in inference nor in training does a call see more than a chunk."""
    from liif_fast.backends import attention

    monkeypatch.setattr(attention, "CHUNK_QUERIES", 32)
    monkeypatch.setattr(attention, "KEEP_BYTES", 1)
    seen: list[int] = []
    original = attention._chunk

    def spy(first, net, at, rel, dropout):
        seen.append(len(at))
        return original(first, net, at, rel, dropout)

    monkeypatch.setattr(attention, "_chunk", spy)
    model = small()
    model.backend = "torch"
    coord = torch.rand(1, 100, 2) * 2 - 1
    out = model(torch.rand(1, 1, 4, 6), coord)
    assert seen == [128, 128, 128, 16]
    out.sum().backward()
    assert sorted(seen[4:]) == sorted(seen[:4])  # recomputed, chunk by chunk


def test_dropout_is_for_training_alone() -> None:
    model, inp, coord = small(dropout=0.5), torch.rand(1, 1, 4, 6), torch.rand(1, 50, 2) * 2 - 1
    assert torch.equal(model(inp, coord), model(inp, coord))
    for model.backend in ("reference", "torch", "auto"):
        model.train()
        assert not torch.equal(model(inp, coord), model(inp, coord))
        torch.manual_seed(0)
        first = model(inp, coord)
        torch.manual_seed(0)
        assert torch.equal(first, model(inp, coord))
        model.eval()


def authors_file(model: models.ILN, name: str, args: dict) -> dict:
    spec = {"name": name, "args": args, "state_dict": model.state_dict()}
    return {"epoch": 1, "model": spec, "optimizer": {"name": "adam"}, "lidar_in": SENSOR}


def test_files_of_the_authors_load_strictly_and_save_with_the_sensor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.make({"name": "iln", "args": {"d": 1, "h": 4}})
    assert sum(p.numel() for p in model.parameters()) == 1_244_673
    content = authors_file(model, "iln", {"d": 1, "h": 4})
    torch.save(content, tmp_path / "iln_1d.pth")
    read = liif_fast.load_model(tmp_path / "iln_1d.pth")
    assert read.lidar_in == SENSOR and read.attention.heads == 4 and not read.training
    liif_fast.save_model(read, tmp_path / "iln.safetensors")
    with safe_open(tmp_path / "iln.safetensors", "pt") as file:
        assert json.loads(file.metadata()["spec"])["args"]["lidar_in"] == SENSOR
    again = liif_fast.load_model(tmp_path / "iln.safetensors")
    assert again.lidar_in == SENSOR and again.attention.heads == 4
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))

    lacking = copy.deepcopy(content)
    del lacking["model"]["state_dict"]["attention.mlp_head.1.bias"]
    torch.save(lacking, tmp_path / "lacking.pth")
    with pytest.raises(liif_fast.ModelFileError, match=r"lacking.pth: .*'attention.mlp_head.1.bias' is missing"):
        liif_fast.load_model(tmp_path / "lacking.pth")
    torch.save({**content, "lidar_in": {"max_r": 3.0}}, tmp_path / "sensor.pth")
    with pytest.raises(liif_fast.ModelFileError, match="lidar_in must hold max_r"):
        liif_fast.load_model(tmp_path / "sensor.pth")


@pytest.mark.parametrize(("d", "h", "count"), [(0, 8, 1_219_649), (2, 8, 1_269_697)])
def test_names_follow_depth_and_heads(d: int, h: int, count: int) -> None:
    with torch.device("meta"):
        model = models.make({"name": "iln", "args": {"d": d, "h": h}})
        one = models.make({"name": "iln", "args": {"d": d, "h": 1}})
    assert sum(p.numel() for p in model.parameters()) == count
    gone = {f"attention.transformer.layers.{i}.0.fn.to_out.0.{part}" for i in range(d) for part in ("weight", "bias")}
    assert set(model.state_dict()) - set(one.state_dict()) == gone


def test_lidar_liif_is_liif_of_one_channel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = {"local_ensemble": True, "feat_unfold": False, "cell_decode": False}
    model = models.make({"name": "liif_lidar", "args": args})
    assert sum(p.numel() for p in model.parameters()) == 1_434_049
    torch.save(authors_file(model, "liif_lidar", args), tmp_path / "liif_lidar.pth")
    read = liif_fast.load_model(tmp_path / "liif_lidar.pth")
    inp, coord = torch.rand(1, 1, 4, 9), torch.rand(1, 20, 2) * 2 - 1
    with torch.no_grad():
        out = read(inp, coord)
        layers = [part for key, part in sorted(read.imnet.named_modules()) if isinstance(part, torch.nn.Linear)]
        x, weight = functional.gather_corners(read.feat, coord, None, feat_unfold=False, cell_decode=False)
        for layer in layers[:-1]:
            x = layer(x).relu()
        torch.testing.assert_close((layers[-1](x) * weight[..., None]).sum(2), out, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"h": 3}, "h a divisor of 64"),
        ({"d": -1}, "d must be at least 0"),
        ({"h": 2.5}, "h: expected int, got 2.5"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"lidar_in": {"max_r": 1}}, "lidar_in must hold"),
    ],
)
def test_arguments_that_cannot_be(args: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message), torch.device("meta"):
        models.make({"name": "iln", "args": args})


def test_bad_calls_name_the_argument() -> None:
    model = small()
    net: CornerTransformer = model.attention.transformer_of()
    feat, values, coord = torch.rand(1, 8, 4, 5), torch.rand(1, 1, 4, 5), torch.rand(1, 3, 2)
    for change, error, message in (
        ({"values": values[..., :4]}, ValueError, r"values must have shape \[1, V, 4, 5\]"),
        ({"values": values.double()}, TypeError, "values must have the dtype of feat"),
        ({"feat": feat[:, :6]}, ValueError, r"transformer.position_weight must have shape \[6, 2\]"),
        ({"transformer": net._replace(head_weight=net.head_weight.T)}, ValueError, "transformer.head_weight must have"),
        ({"transformer": net._replace(heads=3)}, ValueError, "transformer.heads must divide D = 8"),
        ({"coord": coord.half()}, TypeError, "coord must be float32"),
        ({"backend": "cpu", "dropout": 0.1}, RuntimeError, "'cpu' cannot run this attend_corners: has no dropout"),
        ({"backend": "cuda"}, RuntimeError, "backend 'cuda' cannot run this attend_corners: has no attend_corners"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\)"),
    ):
        arguments = {"feat": feat, "values": values, "coord": coord, "transformer": net, **change}
        with pytest.raises(error, match=message):
            functional.attend_corners(**arguments)
    with pytest.raises(RuntimeError, match="no features to query"):
        model.query(coord)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_half_precision_and_autocast_hide_no_rounding_in_the_weights(backend: str) -> None:
    model, inp, coord = small(), torch.rand(1, 1, 4, 6), torch.rand(1, 50, 2) * 2 - 1
    model.backend = backend
    model.gen_feat(inp)
    exact = model.query(coord)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.query(coord), exact, rtol=0, atol=1e-6)
    half = model.bfloat16()
    half.keep(model.feat.bfloat16(), inp.bfloat16())
    assert half.query(coord).dtype == torch.bfloat16
    torch.testing.assert_close(half.query(coord).float(), exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("backend", ["torch", CPU])
def test_it_compiles_without_graph_breaks(backend: str) -> None:
    model, inp, coord = small(), torch.rand(1, 1, 4, 6), torch.rand(1, 50, 2) * 2 - 1
    model.backend = backend
    compiled = torch.compile(model.query, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        model.gen_feat(inp)
        torch.testing.assert_close(compiled(coord), model.query(coord), rtol=0, atol=1e-6)


@pytest.mark.skipif(not cpu.ISA, reason="the C++ kernels are not built")
def test_fast_convolutions_of_the_encoder():
    """`gen_feat` takes `conv3x3`, forward and backward; `encode` keeps PyTorch's convolution."""
    encoder = {"name": "edsr-lidar", "args": {"n_resblocks": 2, "n_feats": 16}}
    torch.manual_seed(0)
    model = models.make({"name": "iln", "args": {"h": 2, "encoder_spec": encoder}})
    inp = torch.rand(1, 1, 24, 50) * 2 - 1
    plain = model.encoder(inp)
    wanted = torch.autograd.grad(plain.square().sum(), list(model.encoder.parameters()))
    with torch.profiler.profile() as profile:
        fast = model.gen_feat(inp)
        got = torch.autograd.grad(fast.square().sum(), list(model.encoder.parameters()))
    assert {"liif_fast::conv3x3", "liif_fast::conv3x3_backward"} <= {each.key for each in profile.key_averages()}
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * other.abs().max().item())
    assert torch.equal(encode(model.encoder, inp, 64), plain)
    torch.compiler.reset()
    compiled = torch.compile(model.gen_feat, backend="eager", fullgraph=True)
    assert torch.equal(compiled(inp), plain)
