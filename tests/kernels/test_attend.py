"""Compare attend_corners of the backend `triton`, forward and backward, with the plain form in Triton's interpreter."""

import numpy as np
import pytest
import torch

from liif_fast import functional, models
from liif_fast.backends import attention
from liif_fast.kernels import attend_corners as kernels
from liif_fast.kernels import backward

from ..models.test_iln import GOLDEN
from ..ops.conftest import nan_empty
from ..ops.test_attend import Attention, compare, spoil
from ..ops.test_flops import counted

__all__ = ["nan_empty"]  # a fixture
pytestmark = pytest.mark.usefixtures("nan_empty")

# channels, depth, heads, hidden width of the blocks
NETWORKS = [
    (64, 0, 8, 64),
    (5, 0, 1, 7),
    (64, 1, 8, 64),
    (64, 1, 1, 9),
    (64, 1, 64, 64),
    (32, 2, 4, 20),
    (16, 3, 16, 16),
]


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_against_the_plain_form(network):
    """Two tiles, the second not full; 9 values take two steps."""
    problem = Attention(*network, queries=9, values=9)
    compare(problem.gradients("triton"), problem.gradients("reference"), 1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_random_configurations(seed):
    random = np.random.default_rng(seed)
    width = int(random.choice((16, 32, 64)))
    heads = 2 ** int(random.integers(0, width.bit_length()))
    network = (width, int(random.integers(0, 3)), heads, int(random.integers(1, width + 1)))
    shape = tuple(random.integers(1, 8, 2).tolist())
    sizes = {"batch": int(random.integers(1, 3)), "queries": int(random.integers(1, 20))}
    problem = Attention(*network, shape=shape, values=int(random.integers(1, 4)), **sizes)
    wrap = bool(random.integers(2))
    print(f"Attention(*{network}, shape={shape}, values={problem.values.shape[1]}, **{sizes}), wrap={wrap}")
    compare(problem.gradients("triton", wrap=wrap), problem.gradients("reference", wrap=wrap), 1e-5)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_plan_gives_the_bits_of_its_coordinates(wrap):
    problem = Attention(16, 1, 2, 16, queries=9)
    problem.coord = problem.coord[:1].expand(2, -1, -1)
    plan = functional.plan_attention(problem.coord[:1], (5, 7), wrap=wrap)
    outs, grads = problem.gradients("triton", wrap=wrap)
    planned, planned_grads = problem.gradients("triton", coord=plan)
    assert all(torch.equal(a, b) for a, b in zip(outs, planned, strict=True))
    assert all(torch.equal(grads[name], grad) for name, grad in planned_grads.items())
    with pytest.raises(RuntimeError, match="positions of the map"):
        problem.run("triton", coord=plan._replace(at=plan.at + 35))


@pytest.mark.parametrize("shared", ["at", "rel", "neither"])
def test_images_may_share_one_part_of_a_plan(shared):
    problem = Attention(16, 1, 2, 16, queries=9)
    plan = functional.plan_attention(problem.coord, (5, 7))
    if shared != "neither":
        plan = plan._replace(**{shared: getattr(plan, shared)[1:]})
    compare(problem.gradients("triton", coord=plan), problem.gradients("reference", coord=plan), 1e-5)
    with torch.no_grad():  # the kernel reads each part where it is
        first, layers = attention.split(problem.feat, problem.values, problem.net), attention.folded(problem.net)
        out, weight = kernels.attend_corners(*first[:2], layers, plan[:2], (2, 5, 7), False, 2)
    for ours, expected in zip((out, weight), problem.run("reference", coord=plan), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("where", ["latent", "value", "coordinate"])
def test_nan_stays_with_its_queries(where):
    before, after = spoil(Attention(16, 1, 2, 16, queries=40), "triton", where)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_chunks_are_summed(monkeypatch):
    """The backward pass in chunks of 8 queries, and in any order of additions, gives the gradients of one chunk."""
    problem = Attention(16, 2, 4, 16, queries=21)
    whole, again = problem.gradients("triton"), problem.gradients("triton")
    assert all(torch.equal(again[1][name], grad) for name, grad in whole[1].items())
    monkeypatch.setattr(backward, "CHUNK_BYTES", 1 << 17)
    steps, taken = backward.steps, []
    monkeypatch.setattr(backward, "steps", lambda *args: taken.extend(steps(*args)) or taken)
    torch.use_deterministic_algorithms(False)
    compare(problem.gradients("triton"), whole, 1e-6)
    assert len(taken) > 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    problem = Attention(16, 1, 2, 16, queries=9, dtype=dtype)
    for ours, expected in zip(problem.run("triton"), problem.run("reference"), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, expected, rtol=0, atol=2.0**-7)


def test_numbers_of_the_authors_code():
    """Compare some outputs of ILN's own code; more would be slow in the interpreter."""
    data = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "iln_1d_h4.npz").items()}
    model = models.make({"name": "iln", "args": {"d": 1, "h": 4, "dropout": 0.0}})
    model.attention.load_state_dict({key[4:]: value for key, value in data.items() if key.startswith("par:")})
    model.backend = "triton"
    with torch.no_grad():
        model.keep(data["feat"], data["inp"])
        out, weight = model.attend(data["query"][:, :40].contiguous())
    torch.testing.assert_close(out, data["out"][:, :40], rtol=0, atol=1e-5)
    torch.testing.assert_close(weight, data["weights"][:, :40], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "options", "reason"),
    [
        ((33, 1, 11, 1), {}, "16, 32, 64 channels, got 33"),
        ((16, 1, 2, 17), {}, "hidden layers as wide as the 16 channels, got 17"),
        ((16, 1, 2, 16), {"dropout": 0.1}, "has no dropout"),
    ],
)
def test_what_is_refused(network, options, reason):
    with pytest.raises(RuntimeError, match=reason):
        Attention(*network).run("triton", **options)


def test_frozen_weights_that_change_are_packed_again():
    """Weights change in place, in any order, and beside a training step, which packs its own."""
    problem = Attention(16, 2, 2, 16, queries=5)
    parameters = dict(problem.net.tensors())
    with functional.frozen_weights():
        for name in ("blocks[1].up_weight", "head_weight", "position_weight", "blocks[0].norm_bias"):
            with torch.no_grad():
                for _ in range(2):
                    for ours, expected in zip(problem.run("triton"), problem.run("reference"), strict=True):
                        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
                parameters[name].mul_(-1)
        compare(problem.gradients("triton"), problem.gradients("reference"), 1e-5)


def test_nothing_to_do():
    for sizes in ({"queries": 0}, {"batch": 0}):
        problem = Attention(16, 1, 2, 16, **sizes)
        (out, weight), grads = problem.gradients("triton")
        assert out.numel() == weight.numel() == 0
        assert not any(grad.any() for grad in grads.values())


def test_operations_are_counted():
    problem = Attention(64, 1, 8, 64, queries=16)
    ours, expected = (counted(lambda name=name: problem.run(name)[0])[0] for name in ("triton", "torch"))
    assert ours == pytest.approx(expected, rel=0.1)


def test_one_launch_a_call(monkeypatch):
    """The forward pass is one kernel, which keeps nothing for the backward pass."""
    launches, launch = [], kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda *args: (launches.append(args[-1]), launch(*args))[1])
    problem = Attention(16, 1, 2, 16, queries=9)
    problem.feat.requires_grad_()
    problem.run("triton")
    assert launches == [()]
