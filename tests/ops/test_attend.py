"""Compare every form of attend_corners with the plain one over depths, heads, widths and maps; check the fused bits."""

from functools import partial

import pytest
import torch

from liif_fast import functional, make_coord
from liif_fast.attention import Block, CornerTransformer
from liif_fast.backends import attention

from .support import make_transformer
from .test_flops import counted

FUSED = "cpu"
# channels, depth, heads, hidden width of the blocks
NETWORKS = [(64, 0, 8, 64), (64, 1, 8, 64), (64, 2, 4, 64), (5, 1, 1, 7), (6, 2, 3, 35), (33, 1, 11, 1), (1, 3, 1, 2)]


class Attention:
    """Hold a call of attend_corners, with every parameter as a leaf."""

    def __init__(self, width, depth, heads, hidden, shape=(5, 7), batch=2, queries=83, values=1, dtype=torch.float32):
        torch.manual_seed(0)
        self.feat, self.values = torch.randn(batch, width, *shape), torch.rand(batch, values, *shape)
        self.feat, self.values = self.feat.to(dtype), self.values.to(dtype)
        self.coord = torch.rand(batch, queries, 2) * 2.4 - 1.2
        self.net = make_transformer(width, depth, heads, hidden, dtype=dtype)
        self.weigh = torch.randn(batch, queries, values).to(dtype), torch.randn(batch, queries, 4).to(dtype)

    def run(self, backend, coord=None, **options):
        coord = self.coord if coord is None else coord
        return functional.attend_corners(self.feat, self.values, coord, self.net, backend=backend, **options)

    def gradients(self, backend, **options):
        """Return both outputs, and every gradient by its tensor's name."""
        leaves = {"feat": self.feat, "values": self.values, **dict(self.net.tensors())}
        for leaf in leaves.values():
            leaf.requires_grad_()
        outs = self.run(backend, **options)
        loss = sum((out * weigh).sum() for out, weigh in zip(outs, self.weigh, strict=True))
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return [out.detach() for out in outs], dict(zip(leaves, grads, strict=True))


def compare(ours, expected, tolerance):
    """Compare outputs to `tolerance`, gradients to ten times that, relative to the largest of a tensor and of all."""
    for one, other in zip(ours[0], expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
    least = max(grad.abs().max().item() for grad in expected[1].values() if grad is not None) * 0.1
    for name, grad in expected[1].items():
        bound = 10 * tolerance * max(grad.abs().max().item(), least)
        torch.testing.assert_close(
            ours[1][name], grad, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("backend", ["torch", FUSED])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_against_the_plain_form(backend, network, dtype, tolerance):
    """Test float64, too, in which the plan's rel is still float32."""
    problem = Attention(*network, values=2, dtype=dtype)
    compare(problem.gradients(backend), problem.gradients("reference"), tolerance)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (8, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("wrap", [False, True])
def test_small_maps_and_circles(shape, wrap):
    for queries, values in ((1, 1), (31, 3), (130, 1)):
        problem = Attention(6, 1, 2, 6, shape=shape, queries=queries, values=values)
        compare(problem.gradients(FUSED, wrap=wrap), problem.gradients("reference", wrap=wrap), 1e-5)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_plan_gives_the_bits_of_its_coordinates(wrap):
    problem = Attention(8, 1, 2, 8)
    problem.coord = problem.coord[:1].expand(2, -1, -1)
    plan = functional.plan_attention(problem.coord[:1], (5, 7), wrap=wrap)
    outs, grads = problem.gradients(FUSED, wrap=wrap)
    planned, planned_grads = problem.gradients(FUSED, coord=plan)
    assert all(torch.equal(a, b) for a, b in zip(outs, planned, strict=True))
    assert all(torch.equal(grads[name], grad) for name, grad in planned_grads.items())


def test_a_plan_that_does_not_fit_is_refused():
    problem = Attention(8, 1, 2, 8)
    plan = functional.plan_attention(problem.coord, (5, 7))
    with pytest.raises(TypeError, match=r"coord.at must be int64, got torch.int32"):
        problem.run("auto", coord=plan._replace(at=plan.at.int()))
    for wrong, said in (
        ({"at": plan.at[..., :3]}, r"coord.at must have shape \[B or 1, 83, 4\], got \[2, 83, 3\]"),
        ({"at": plan.at[0]}, r"coord.at must have shape \[B or 1, Q, 4\], got \[83, 4\]"),
        ({"rel": plan.rel[:, 1:]}, r"coord.rel must have shape \[B or 1, 83, 4, 2\], got \[2, 82, 4, 2\]"),
        ({"at": plan.at.repeat(2, 1, 1)}, "coord.at must be planned for 1 or B = 2 maps, got 4"),
        ({"rel": plan.rel.repeat(2, 1, 1, 1)}, "coord.rel must be planned for 1 or B = 2 maps, got 4"),
        ({"rel": plan.rel.to("meta")}, "coord.rel must be on the device of feat, cpu, got meta"),
    ):
        with pytest.raises(ValueError, match=said):
            problem.run("auto", coord=plan._replace(**wrong))


def test_layouts_of_the_arguments():
    problem = Attention(6, 2, 3, 6)
    expected = problem.run(FUSED)
    problem.feat = problem.feat.to(memory_format=torch.channels_last)
    problem.values = problem.values.transpose(2, 3).contiguous().transpose(2, 3)
    problem.coord = problem.coord.flip(2).flip(2).transpose(0, 1).contiguous().transpose(0, 1)

    def strided(part):
        return part.T.contiguous().T if isinstance(part, torch.Tensor) and part.ndim == 2 else part

    blocks = tuple(Block(*map(strided, block)) for block in problem.net.blocks)
    problem.net = CornerTransformer(*map(strided, problem.net))._replace(blocks=blocks)
    for one, other in zip(problem.run(FUSED), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("network", NETWORKS[:3] + NETWORKS[4:5], ids=str)
def test_a_query_has_the_same_bits_anywhere(network, dtype, threads):
    problem = Attention(*network, queries=331, dtype=dtype)
    whole = torch.cat(problem.run(FUSED), -1)
    for size in (1, 7, 64, 330):
        chunks = [torch.cat(problem.run(FUSED, part), -1) for part in problem.coord.split(size, 1)]
        assert torch.equal(torch.cat(chunks, 1), whole), size
    order = torch.randperm(331)
    assert torch.equal(torch.cat(problem.run(FUSED, problem.coord[:, order]), -1), whole[:, order])
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(torch.cat(problem.run(FUSED), -1), whole), count


def test_gradients_repeat_themselves(threads):
    problem = Attention(8, 1, 2, 8, queries=5000)  # two chunks and more
    for count in (1, 3):
        threads(count)
        (_, first), (_, again) = problem.gradients(FUSED), problem.gradients(FUSED)
        assert all(torch.equal(first[name], grad) for name, grad in again.items()), count


def test_many_rows_of_one_latent_round_no_more_than_the_plain_form():
    problem = Attention(8, 1, 2, 8, shape=(1, 2), queries=9000, batch=1)
    exact = Attention(8, 1, 2, 8, shape=(1, 2), queries=9000, batch=1, dtype=torch.float64).gradients("reference")[1]
    for name, grad in problem.gradients(FUSED)[1].items():
        assert (grad - exact[name]).abs().max() <= 1e-5 * exact[name].abs().max().clamp(min=10), name


@pytest.mark.parametrize("backend", ["torch", FUSED])
@pytest.mark.parametrize("shared", ["at", "rel", "neither"])
def test_images_may_share_one_part_of_a_plan(backend, shared):
    problem = Attention(8, 1, 2, 8)
    plan = functional.plan_attention(problem.coord, (5, 7))
    if shared != "neither":
        plan = plan._replace(**{shared: getattr(plan, shared)[1:]})
    compare(problem.gradients(backend, coord=plan), problem.gradients("reference", coord=plan), 1e-5)


def spoil(problem, backend, where):
    """Put a NaN at `where`, check which queries it reaches, and return the other queries' results before and after."""
    before = torch.cat(problem.run(backend), -1)
    index, _, _ = functional.corner_plan(problem.coord, (5, 7))
    hit = ((index[..., 0] == 2) & (index[..., 1] == 3)).any(-1) & (torch.arange(2) == 1).view(2, 1)
    if where == "coordinate":
        problem.coord[1, 5, 0] = float("nan")
        hit = torch.zeros_like(hit)
        hit[1, 5] = True
    else:
        {"latent": problem.feat, "value": problem.values}[where][1, :, 2, 3] = float("nan")
    out, weight = problem.run(backend)
    assert torch.equal(out.isnan().any(-1), hit) and hit.any()
    assert torch.equal(weight.isnan().any(-1), hit & (where != "value"))
    return before[~hit], torch.cat((out, weight), -1)[~hit]


@pytest.mark.parametrize("where", ["latent", "value", "coordinate"])
def test_nan_stays_with_its_queries(where):
    assert torch.equal(*spoil(Attention(8, 1, 2, 8), FUSED, where))


def test_extreme_latents():
    """Equal channels have variance 0, and huge ones overflow in neither form."""
    for scale, spread in ((1.0, 0.0), (1e4, 1.0), (1e-6, 1.0)):
        problem = Attention(8, 2, 2, 8)
        problem.feat = scale * (1 + spread * problem.feat)
        for one, other in zip(problem.run(FUSED), problem.run("reference"), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("depth", [0, 2])
def test_it_compiles_and_trains_compiled(depth):
    problem = Attention(8, depth, 2, 8)
    eager = problem.gradients(FUSED)
    compiled = torch.compile(problem.run, fullgraph=True, backend="aot_eager")
    problem.run = lambda backend, **options: compiled(backend, **options)
    compare(problem.gradients(FUSED), eager, 1e-6)


def test_operations_are_counted():
    for depth in (0, 2):
        problem = Attention(64, depth, 8, 64, queries=2000)
        for leaf in (problem.feat, *dict(problem.net.tensors()).values()):
            leaf.requires_grad_()
        run = partial(problem.run, recompute=True)
        ours, expected = (counted(lambda b=b, run=run: run(b)[0], 1) for b in (FUSED, "torch"))
        assert ours == pytest.approx(expected, rel=0.02)


def test_coordinates_of_a_grid_twice_as_dense():
    """An interior query's weights sum to 1, and the blend stays within its four values."""
    problem = Attention(8, 1, 2, 8)
    out, weight = problem.run(FUSED, make_coord((10, 14)).expand(2, -1, -1))
    torch.testing.assert_close(weight.sum(-1), torch.ones(2, 140))
    assert (weight > 0).all() and out.min() >= problem.values.min() and out.max() <= problem.values.max()


def test_the_operator_checks_what_it_relies_on():
    net = make_transformer(4, 1, 2)
    first = attention.split(torch.randn(1, 4, 3, 5), torch.randn(1, 1, 3, 5), net)
    layers, plan = attention.folded(net), attention.plan(torch.rand(1, 7, 2), 3, 5, False)
    good = [first.table, first.by_rel, layers, [plan.at, plan.rel], (1, 3, 5), False, 2, None]
    assert torch.ops.liif_fast.attend_corners(*good)[0].shape == (1, 7, 1)
    for place, wrong in (
        (0, first.table[1:]),
        (1, first.by_rel[:, 1:]),
        (2, layers[1:]),
        (2, [layers[0], layers[1][:, 1:].contiguous(), *layers[2:]]),
        (3, [plan.at + 15, plan.rel]),
        (3, [plan.at - 15, plan.rel]),
        (3, [plan.at, plan.rel[:, 1:]]),
        (3, [plan.at.double(), plan.rel]),
        (3, []),
        (4, (1, 3, 6)),
        (6, 3),
        (6, 0),
        (7, "cuda"),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.liif_fast.attend_corners(*good[:place], wrong, *good[place + 1 :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "torch", FUSED])
def test_frozen_weights_do_not_affect_a_backend_that_packs_nothing(backend, dtype):
    """This holds even if weights change through `.data`, which no version counter sees."""
    problem = Attention(8, 2, 2, 8, queries=9, dtype=dtype)
    with torch.no_grad(), functional.frozen_weights():
        problem.run(backend)
        for _, parameter in problem.net.tensors():
            parameter.data.mul_(-1.5)
        found = problem.run(backend)
    assert all(torch.equal(one, other) for one, other in zip(found, problem.run(backend), strict=True))
