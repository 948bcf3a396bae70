"""Test fourier_decode of the backend `triton` in Triton's interpreter: the formula, golden data, hostile input."""

import math
import random

import pytest
import torch

from liif_fast import functional, make_cell, make_coord

from ..models import test_lte
from ..ops.conftest import nan_empty
from ..ops.test_fourier import Call, check_places, formula
from .test_operator import DTYPES, compare

golden = test_lte.golden
__all__ = ["golden", "nan_empty"]  # fixtures
pytestmark = pytest.mark.usefixtures("nan_empty")
NAMES = ["feat", "phase"]


def drawn(seed):
    """Return the options of a random call: 2 to 72 amplitudes, 1 to 3 hidden layers, maps from one latent on."""
    draw = random.Random(seed)
    hidden = [draw.choice((1, 9, 33, 70)) for _ in range(draw.randint(1, 3))]
    shape = draw.choice(((1, 1), (1, 7), (5, 3), (4, 6)))
    return {"width": 2 * draw.choice((1, 3, 17, 36)), "widths": (*hidden, draw.choice((1, 3, 17))), "shape": shape,
            "batch": draw.randint(1, 2), "queries": draw.choice((1, 7, 19))}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_random_configurations(seed, dtype):
    """Promise 2 (docs/backends.md): at most twice, for gradients three times, the error of plain PyTorch."""
    call = Call(**drawn(seed)).to(dtype).requires_grad()
    exact = formula(call)
    exact_grads = torch.autograd.grad((exact * call.weigh.double()).sum(), call.leaves)
    plain, plain_grads = call.gradients("reference")
    names = [*NAMES, *(f"{kind}[{i}]" for kind in ("weights", "biases") for i in range(len(call.weights)))]
    for recompute in (True, False):
        out, grads = call.gradients("triton", recompute=recompute)
        assert out.dtype == dtype
        compare(["output"], [out], [plain], [exact.detach()], dtype, 2)
        compare(names, grads, plain_grads, exact_grads, dtype, 3)


@pytest.mark.parametrize("name", test_lte.NAMES)
def test_numbers_of_the_authors_code(golden, name):
    model, values = test_lte.of_the_authors(golden, name, "triton")
    coord, cell = (make((33, 42)).expand(2, -1, -1)[:, ::50] for make in (make_coord, make_cell))
    with torch.no_grad():
        test_lte.close(model.query_rgb(coord, 2 * cell), values["out_33x42_cell2"][:, ::50])
    if name == "lte":
        test_lte.check_gradients_of_the_authors(model, values)


@pytest.mark.parametrize("recompute", [True, False])
def test_gradients_of_the_places(recompute):
    check_places("triton", queries=21, recompute=recompute)


@pytest.mark.parametrize("scale", [40.0, 3e4])
def test_large_frequencies(scale):
    """The error on the same angles is at most twice eager PyTorch's; an infinite frequency gives NaN."""
    call = Call(32, (32, 3), queries=40)
    call.feat[:, 32:] *= scale
    expected = formula(call)
    errors = {name: (call.run(name).double() - expected).abs().max().item() for name in ("reference", "triton")}
    assert errors["triton"] <= 2 * errors["reference"] + 1e-7
    call.feat[:, 40] = math.inf
    assert call.run("triton").isnan().all()


def test_kept_chunked_and_atomic_gradients_agree(monkeypatch):
    from liif_fast.backends import triton
    from liif_fast.kernels import backward

    call = Call(queries=34)
    whole = call.gradients("triton", recompute=False)
    half, sizes, steps = len(call.phase), [], backward.steps
    # A row has two layers, 7 wide, and their gradients; and the waves, their gradient and that of its latent.
    monkeypatch.setattr(backward, "CHUNK_BYTES", 128 * 4 * (2 * 2 * 7 + 8 * half))
    monkeypatch.setattr(backward, "steps", lambda bounds, size: sizes.append(size) or steps(bounds, size))
    monkeypatch.setattr(triton, "KEEP_BYTES", 150 * 2 * 7 * 4)
    for recompute, ordered in ((None, True), (True, False)):
        torch.use_deterministic_algorithms(ordered)
        out, grads = call.gradients("triton", recompute=recompute)
        for ours, theirs in zip((out, *grads), (whole[0], *whole[1]), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
    assert sizes == [32, 32]


def test_a_part_of_the_map():
    """A window of a grid from the latents that it reads equals that from the whole map bit for bit."""
    call, size, region = Call(shape=(40, 9)), (61, 20), (30, 3, 3, 4)
    network = (call.phase, call.weights, call.biases)
    whole = functional.fourier_render(call.feat, size, *network, region=region, backend="triton")
    expected = functional.fourier_render(call.feat, size, *network, region=region, backend="reference")
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-6)
    top, left, rows, columns = functional.latents_read(size, region, (40, 9), feat_unfold=False)
    part, place = call.feat[:, :, top : top + rows, left : left + columns], (top, left, 40, 9)
    assert rows < 40
    assert torch.equal(
        functional.fourier_render(part, size, *network, region=region, backend="triton", place=place), whole
    )


def test_hostile_input():
    """No queries, no images; NaN in one latent reaches the queries that read it alone; any strides."""
    for options in ({"queries": 0}, {"batch": 0}):
        call = Call(**options)
        out, grads = call.gradients("triton")
        assert out.shape == call.weigh.shape
        assert not any(grad.any() for grad in grads)
    call, strided = Call(queries=40), Call(queries=40)
    strided.feat = call.feat.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    strided.coord = torch.stack((call.coord, call.coord), -1)[..., 0]
    strided.phase = call.phase.t().contiguous().t()
    clean = call.run("triton")
    assert torch.equal(strided.run("triton"), clean)
    index, _, _ = functional.corner_plan(call.coord, (5, 7))
    reads = ((index == torch.tensor([2, 3])).all(-1)).any(-1)
    assert 0 < reads[1].sum() < 40
    call.feat[1, :, 2, 3] = math.nan
    out = call.run("triton")
    assert torch.equal(out[1].isnan().all(-1), reads[1])
    assert torch.equal(out[0], clean[0])
    assert out[1][~reads[1]].isfinite().all()
