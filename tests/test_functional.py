"""Test the public functions: refusals and their messages, the choice of backend, grids, layouts and empty input."""

import logging
import re
import types

import numpy as np
import pytest
import torch

from liif_fast import backends, explain
from liif_fast.coord import make_cell, make_coord
from liif_fast.functional import corner_plan, fused_mlp, gather_corners, liif_decode, liif_render
from liif_fast.layers import LIIFDecoder, linear_chain

PLAIN = ["reference", "torch"]


def problem(batch=2, queries=7, **switches):
    torch.manual_seed(0)
    decoder = LIIFDecoder(3, 2, (8, 8), **switches)
    feat, coord = torch.randn(batch, 3, 4, 5), torch.rand(batch, queries, 2) * 2.2 - 1.1
    return [feat, coord, torch.rand(batch, queries, 2), *linear_chain(decoder.layers)]


def change(position, make):
    """Return a call in which `make` replaces one of the five arguments."""

    def call(arguments):
        arguments[position] = make(arguments[position])
        liif_decode(*arguments)

    return call


def first(make):
    """Replace the first tensor of a list."""
    return lambda tensors: [make(tensors[0]), *tensors[1:]]


REFUSED = {
    "feat is no tensor": (change(0, lambda t: t.tolist()), TypeError, "feat must be a torch.Tensor, got list"),
    "feat of integers": (change(0, lambda t: t.long()), TypeError, "feat must be float32, .* got torch.int64"),
    "feat of three dimensions": (
        change(0, lambda t: t[0]),
        ValueError,
        re.escape("feat must have shape [B, C, H, W] with C, H and W at least 1, got [3, 4, 5]"),
    ),
    "no latent": (change(0, lambda t: t[:, :, :0]), ValueError, re.escape("got [2, 3, 0, 5]")),
    "coord of another batch": (
        change(1, lambda t: t[:1]),
        ValueError,
        re.escape("coord must have shape [B, Q, 2] with B = 2, got [1, 7, 2]"),
    ),
    "coord of three columns": (
        change(1, lambda t: torch.zeros(2, 7, 3)),
        ValueError,
        re.escape("coord must have shape [B, Q, 2], got [2, 7, 3]"),
    ),
    "coord in half precision": (
        change(1, lambda t: t.half()),
        TypeError,
        "coord must be float32 .*wrong neighbours.* got torch.float16",
    ),
    "cell in bfloat16": (change(2, lambda t: t.bfloat16()), TypeError, "cell must be float32 .* got torch.bfloat16"),
    "cell in float64": (change(2, lambda t: t.double()), TypeError, "cell must have the dtype of coord, torch.float32"),
    "no cell": (change(2, lambda t: None), ValueError, "cell must be a tensor .* got None"),
    "cell of other queries": (
        change(2, lambda t: t[:, :3]),
        ValueError,
        re.escape("cell must have the shape of coord, [2, 7, 2], got [2, 3, 2]"),
    ),
    "cell elsewhere": (
        change(2, lambda t: t.to("meta")),
        ValueError,
        "cell must be on the device of feat, cpu, got meta",
    ),
    "coord elsewhere": (change(1, lambda t: t.to("meta")), ValueError, "coord must be on the device of feat, cpu"),
    "no layers": (
        lambda a: liif_decode(*a[:3], [], []),
        ValueError,
        "weights and biases must have the same length, at least 1, got 0 and 0",
    ),
    "a bias too few": (change(4, lambda t: t[1:]), ValueError, "must have the same length, at least 1, got 3 and 2"),
    "a bias that is None": (
        change(4, first(lambda t: None)),
        TypeError,
        re.escape("weights[0] and biases[0] must be torch.Tensors, got Parameter and NoneType"),
    ),
    "first layer of another width": (
        change(3, first(lambda t: t[:, 1:])),
        ValueError,
        re.escape(
            "weights[0] must have shape [out, 31] (C = 3 times 9 for feat_unfold, + 2 for rel, + 2 for cell_decode"
        ),
    ),
    "layers that do not follow": (
        change(3, lambda t: [t[0], t[1][:, :4], t[2]]),
        ValueError,
        re.escape("weights[1] must have shape [out, 8] (the outputs of weights[0]), got [8, 4]"),
    ),
    "bias of another width": (
        change(4, first(lambda t: t[:3])),
        ValueError,
        re.escape("biases[0] must have shape [8], got [3]"),
    ),
    "weights in float64": (
        change(3, first(lambda t: t.double())),
        TypeError,
        re.escape("weights[0] must have the dtype of feat, torch.float32, got torch.float64"),
    ),
    "weights elsewhere": (change(3, first(lambda t: t.to("meta"))), ValueError, "must be on the device of feat, cpu"),
    "unknown backend": (
        lambda a: liif_decode(*a, backend="gpu"),
        ValueError,
        "backend must be one of auto, .*reference, got 'gpu'",
    ),
    "size of one number": (
        lambda a: liif_render(a[0], (8,), *a[3:]),
        ValueError,
        re.escape("size must be (H_out, W_out), both at least 1, got (8,)"),
    ),
    "size of fractions": (
        lambda a: liif_render(a[0], (8.5, 9), *a[3:]),
        TypeError,
        re.escape("size must hold integers, got (8.5, 9)"),
    ),
    "size of nothing": (lambda a: liif_render(a[0], (8, 0), *a[3:]), ValueError, re.escape("got (8, 0)")),
    "region outside": (
        lambda a: liif_render(a[0], (8, 9), *a[3:], region=(0, 4, 8, 6)),
        ValueError,
        re.escape("inside the grid of size (8, 9), got (0, 4, 8, 6)"),
    ),
    "region of three numbers": (
        lambda a: liif_render(a[0], (8, 9), *a[3:], region=(0, 4, 8)),
        ValueError,
        "region must be",
    ),
    "cell of a render in float64": (
        lambda a: liif_render(a[0], (8, 9), *a[3:], cell=torch.ones(2).double()),
        TypeError,
        "cell must be float32, got torch.float64",
    ),
    "cell of a render of another batch": (
        lambda a: liif_render(a[0], (8, 9), *a[3:], cell=torch.ones(3, 2)),
        ValueError,
        re.escape("cell must have shape [2] or [B, 2] with B = 2, got [3, 2]"),
    ),
    "plan of no latents": (lambda a: corner_plan(a[1], (0, 3)), ValueError, re.escape("shape must be (H, W)")),
    "mlp of a scalar": (lambda a: fused_mlp(torch.tensor(1.0), *a[3:]), ValueError, re.escape("x must have shape")),
    "mlp of another width": (
        lambda a: fused_mlp(torch.ones(2, 5), *a[3:]),
        ValueError,
        re.escape("weights[0] must have shape [out, 5] (the last dimension of x), got [8, 31]"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call(problem())


CALLS_OF_INTEGERS = {
    "size": (lambda a, size: liif_render(a[0], size, *a[3:]), 2, "(H_out, W_out)"),
    "region": (
        lambda a, region: liif_render(a[0], (30, 30), *a[3:], region=region),
        4,
        "(top, left, height, width)",
    ),
    "shape": (lambda a, shape: corner_plan(a[1], shape), 2, "(H, W)"),
}


@pytest.mark.parametrize("value", [np.float32(8), torch.tensor(8.0), None, "8"], ids=repr)
@pytest.mark.parametrize("name", CALLS_OF_INTEGERS)
def test_integers(name, value):
    call, length, _ = CALLS_OF_INTEGERS[name]
    values = (value, 9, 9, 9)[:length]
    with pytest.raises(TypeError, match=re.escape(f"{name} must hold integers, got {values}")):
        call(problem(), values)


@pytest.mark.parametrize("name", CALLS_OF_INTEGERS)
def test_integers_that_are_no_sequence(name):
    call, length, form = CALLS_OF_INTEGERS[name]
    for value in (8, 8.5, torch.tensor(8)):
        with pytest.raises(TypeError, match=re.escape(f"{name} must be {form}, got {value!r}")):
            call(problem(), value)
    with pytest.raises(TypeError, match=re.escape(f"{name} must hold integers, got ('8', '9')")):
        call(problem(), "89")
    plain = call(problem(), [2, 3, 4, 5][:length])
    for same in (np.array([2, 3, 4, 5]), torch.tensor([2, 3, 4, 5]), torch.Size([2, 3, 4, 5])):
        torch.testing.assert_close(call(problem(), same[:length]), plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("cell", "error"),
    [
        (0.5, TypeError),
        ("12", TypeError),
        ((None, 0.5), TypeError),
        ((torch.tensor(0.5), 0.5), TypeError),
        ((0.5,), ValueError),
    ],
)
def test_cell_that_is_no_pair(cell, error):
    a = problem()
    with pytest.raises(error, match=r"cell must be a pair of floats or a float32 tensor \[2\] or \[B, 2\], got"):
        liif_render(a[0], (8, 9), *a[3:], cell=cell)


def test_cell_of_numpy_floats():
    a = problem()
    expected = liif_render(a[0], (8, 9), *a[3:], cell=(0.5, 0.25))
    assert torch.equal(liif_render(a[0], (8, 9), *a[3:], cell=np.array([0.5, 0.25], np.float32)), expected)


def test_cell_is_ignored_when_not_decoded():
    feat, coord, cell, weights, biases = problem(cell_decode=False)
    out = liif_decode(feat, coord, None, weights, biases, cell_decode=False)
    assert torch.equal(liif_decode(feat, coord, cell, weights, biases, cell_decode=False), out)


def fake_backend(can, reason):
    def decode(*arguments):
        return "decoded"

    return types.SimpleNamespace(NAME="cuda", can_run=lambda call: (can, reason), decode=decode)


@pytest.fixture
def fake(monkeypatch):
    """Replace cuda, the first choice, by a fake backend."""

    def put(can, reason):
        monkeypatch.setitem(backends._backends, "cuda", fake_backend(can, reason))
        monkeypatch.setattr(backends, "AUTO", ("cuda", *backends.AUTO))
        monkeypatch.setattr(backends, "_said", set())

    return put


def test_auto_takes_the_first_that_can(fake):
    fake(True, "fast")
    assert liif_decode(*problem()) == "decoded"
    assert explain(*problem()).chosen == "cuda"


def test_backend_that_cannot_run_says_why(fake):
    fake(False, "needs another machine")
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run this decode: needs another machine"):
        liif_decode(*problem(), backend="cuda")


def test_falling_back_is_said_once(fake, caplog):
    fake(False, "needs another machine")
    with caplog.at_level(logging.INFO, "liif_fast"):
        for _ in range(2):
            liif_decode(*problem())
    messages = [record.message for record in caplog.records if "cuda" in record.message]
    assert messages == ["backend cuda is not used for decode: needs another machine"]


def test_explain_tells_every_answer(fake):
    fake(False, "needs another machine")
    explanation = explain(*problem(), backend="reference")
    assert explanation.chosen == "reference"
    assert [name for name, _, _ in explanation.answers] == list(backends.NAMES)
    assert re.search(r"(?m)^cuda +refused +needs another machine$", str(explanation))
    assert re.search(r"(?m)^torch +can run ", str(explanation))
    assert re.search(r"(?m)^reference +chosen ", str(explanation))
    assert explain(*problem(), backend="cuda").chosen == ""


def test_a_call_is_described_to_the_backends(fake, monkeypatch):
    fake(True, "")
    seen = []
    monkeypatch.setattr(backends._backends["cuda"], "can_run", lambda call: (seen.append(call), (True, ""))[1])
    feat, coord, cell, weights, biases = problem()
    liif_decode(feat, coord, cell, weights, biases)
    with torch.no_grad():
        liif_decode(feat, coord.requires_grad_(), cell, weights, biases)
    with torch.autocast("cpu", torch.bfloat16):
        liif_decode(feat, coord, cell, weights, biases)
    assert [call.requires_grad for call in seen] == [True, False, True]
    assert [call.coord_requires_grad for call in seen] == [False, False, True]
    assert [call.autocast for call in seen] == [None, None, torch.bfloat16]
    expected = backends.Call(
        "decode",
        feat.device,
        torch.float32,
        (2, 3, 4, 5),
        7,
        (8, 8, 2),
        backends.Switches(),
        torch.float32,
        None,
        True,
        False,
    )
    assert seen[0] == expected


@pytest.mark.parametrize("backend", PLAIN)
def test_render_is_decode_on_its_grid(backend):
    feat, _, _, weights, biases = problem()
    for size in ((12, 15), (5, 9), (1, 1), (4, 5)):
        coord, cell = (make(size).expand(2, -1, -1) for make in (make_coord, make_cell))
        decoded = liif_decode(feat, coord, cell, weights, biases, backend=backend)
        rendered = liif_render(feat, size, weights, biases, backend=backend)
        assert rendered.shape == (2, 2, *size)
        torch.testing.assert_close(rendered, decoded.transpose(1, 2).reshape(rendered.shape), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", PLAIN)
def test_region_is_a_window_of_the_grid(backend):
    feat, _, _, weights, biases = problem()
    full = liif_render(feat, (12, 15), weights, biases, backend=backend)
    for top, left, height, width in ((0, 0, 12, 15), (3, 4, 5, 6), (11, 14, 1, 1), (2, 3, 0, 4), (2, 3, 4, 0)):
        part = liif_render(feat, (12, 15), weights, biases, region=(top, left, height, width), backend=backend)
        torch.testing.assert_close(part, full[:, :, top : top + height, left : left + width], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", PLAIN)
def test_cell_of_a_render(backend):
    feat, _, _, weights, biases = problem()
    default = liif_render(feat, (8, 16), weights, biases, backend=backend)
    for cell in ((0.25, 0.125), torch.tensor([0.25, 0.125]), torch.tensor([[0.25, 0.125]] * 2)):
        assert torch.equal(liif_render(feat, (8, 16), weights, biases, cell=cell, backend=backend), default)
    each = torch.tensor([[0.25, 0.125], [0.5, 0.1]])
    out = liif_render(feat, (8, 16), weights, biases, cell=each, backend=backend)
    assert torch.equal(out[0], default[0])
    assert not torch.allclose(out[1], default[1])


@pytest.mark.parametrize("backend", PLAIN)
def test_empty_input(backend):
    for batch, queries in ((0, 7), (2, 0), (0, 0)):
        feat, coord, cell, weights, biases = problem(batch, queries)
        feat.requires_grad_()
        out = liif_decode(feat, coord, cell, weights, biases, backend=backend)
        assert out.shape == (batch, queries, 2)
        out.sum().backward()
        assert feat.grad.shape == feat.shape
        x, weight = gather_corners(feat, coord, cell, backend=backend)
        assert x.shape == (batch, queries, 4, 31)
        assert weight.shape == (batch, queries, 4)
        assert fused_mlp(x, weights, biases, backend=backend).shape == (batch, queries, 4, 2)
    assert liif_render(feat, (3, 4), weights, biases, backend=backend).shape == (0, 2, 3, 4)


@pytest.mark.parametrize("backend", PLAIN)
def test_one_latent(backend):
    """On a 1x1 map all corners are the one latent, so the ensemble is its prediction."""
    feat, coord, cell, weights, biases = problem()
    feat = feat[:, :, :1, :1]
    out = liif_decode(feat, coord, cell, weights, biases, backend=backend)
    nearest = liif_decode(feat, coord, cell, weights, biases, local_ensemble=False, backend=backend)
    torch.testing.assert_close(out, nearest, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", PLAIN)
def test_layouts(backend):
    feat, coord, cell, weights, biases = problem()
    feat, cell = feat[:1].expand(2, -1, -1, -1), cell[:, :1].expand(-1, 7, -1)
    expected = liif_decode(feat.contiguous(), coord, cell.contiguous(), weights, biases, backend=backend)
    every_other = torch.zeros(2, 3, 8, 10)[:, :, ::2, ::2].copy_(feat)
    transposed = coord.transpose(1, 2).contiguous().transpose(1, 2)
    for layout in (feat, feat.contiguous(memory_format=torch.channels_last), every_other):
        strided = [torch.stack((w, w), -1)[..., 0] for w in weights]
        out = liif_decode(layout, transposed, cell, strided, biases, backend=backend)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", PLAIN)
def test_float64_coordinates(backend):
    feat, coord, cell, weights, biases = problem()
    expected = liif_decode(feat, coord, cell, weights, biases, backend=backend)
    out = liif_decode(feat, coord.double(), cell.double(), weights, biases, backend=backend)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    assert gather_corners(feat, coord.double(), cell.double(), backend=backend)[0].dtype == torch.float32


@pytest.mark.parametrize("backend", PLAIN)
def test_autocast_takes_mixed_dtypes(backend):
    feat, coord, cell, weights, biases = problem()
    with torch.autocast("cpu", torch.bfloat16):
        out = liif_decode(feat.bfloat16(), coord, cell, weights, biases, backend=backend)
        x, weight = gather_corners(feat.bfloat16(), coord, cell, backend=backend)
        y = fused_mlp(x, weights, biases, backend=backend)
        double = liif_decode(feat.double(), coord, cell, *([t.double() for t in p] for p in (weights, biases)))
    assert {out.dtype, x.dtype, weight.dtype, y.dtype} == {torch.float32}
    assert double.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="dtype of feat"):
        liif_decode(feat, coord, cell, [weights[0].double(), *weights[1:]], biases, backend=backend)
