"""The fused transformer over corners against the plain form in float64: gradients, bits, checks, counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from liif_fast import functional, models
from liif_fast.backends import attention, cpu
from liif_fast.ops import attend

pytestmark = pytest.mark.skipif(not cpu.ISA, reason="the C++ kernels are not built")


def network(d: int, h: int, width: int) -> models.ILN:
    """An ILN whose norms and biases are not at their neutral start."""
    torch.manual_seed(d)
    encoder = {"name": "edsr-lidar", "args": {"n_resblocks": 0, "n_feats": width}}
    model = models.make({"name": "iln", "args": {"d": d, "h": h, "dropout": 0.0, "encoder_spec": encoder}})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize(
    ("d", "h", "width", "queries"), [(0, 1, 64, 40), (1, 8, 64, 100), (2, 1, 24, 37), (3, 2, 8, 1)]
)
def test_the_kernels_gradients(d: int, h: int, width: int, queries: int) -> None:
    """Each of float32, at most 3 times as far from float64 as those of the plain form, and 2e-6 of the largest."""
    model = network(d, h, width)
    feat, values = torch.randn(2, width, 4, 9), torch.randn(2, 2, 4, 9)
    plan = functional.plan_attention(torch.rand(2, queries, 2) * 2.4 - 1.2, (4, 9))
    weigh, weigh_weight = torch.randn(2, queries, 2), torch.randn(2, queries, 4)

    def gradients(backend: str, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (feat.clone(), values.clone())]
        net = model.to(dtype).attention.transformer_of()
        own = plan._replace(rel=plan.rel.to(dtype))
        out, weight = functional.attend_corners(*leaves, own, net, backend=backend)
        loss = (out * weigh.to(dtype)).sum() + (weight * weigh_weight.to(dtype)).sum()
        found = torch.autograd.grad(loss, [*leaves, *model.attention.parameters()])
        return [each.double() for each in found]

    exact, plain = gradients("reference", torch.float64), gradients("reference", torch.float32)
    scale = max(each.abs().max().item() for each in exact)
    for true, one, other in zip(exact, gradients("cpu", torch.float32), plain, strict=True):
        error, usual = ((each - true).abs().max().item() for each in (one, other))
        assert error <= 3 * usual + 2e-6 * max(true.abs().max().item(), 0.1 * scale)


def test_the_kernels_bits_depend_on_no_thread_batch_or_neighbour() -> None:
    model, threads = network(2, 4, 8), torch.get_num_threads()
    feat, values, coord = torch.randn(2, 8, 4, 9), torch.rand(2, 1, 4, 9), torch.rand(2, 2500, 2) * 2 - 1
    net = model.attention.transformer_of()

    def both(feat: torch.Tensor, values: torch.Tensor, coord: torch.Tensor) -> list[torch.Tensor]:
        feat = feat.clone().requires_grad_()
        out, weight = functional.attend_corners(feat, values, coord, net, backend="cpu")
        return [out, weight, *torch.autograd.grad(out.square().sum(), [feat, *model.attention.parameters()])]

    try:
        torch.set_num_threads(1)
        first = both(feat, values, coord)
        torch.set_num_threads(3)
        other, again = both(feat, values, coord), both(feat, values, coord)
        assert torch.equal(other[0], first[0]) and torch.equal(other[1], first[1])
        assert all(torch.equal(one, two) for one, two in zip(other, again, strict=True))  # the gradients, too
    finally:
        torch.set_num_threads(threads)
    with torch.no_grad():
        for queries in (slice(0, 1), slice(7, 40)):
            part, _ = functional.attend_corners(feat[1:], values[1:], coord[1:, queries], net, backend="cpu")
            assert torch.equal(part, first[0][1:, queries])
        odd = feat.to(memory_format=torch.channels_last)
        assert torch.equal(functional.attend_corners(odd, values, coord, net, backend="cpu")[0], first[0])


def test_the_operators_checks_and_registration() -> None:
    model = network(2, 4, 8)
    net, feat, values = model.attention.transformer_of(), torch.randn(1, 8, 4, 5), torch.rand(1, 1, 4, 5)
    plan, first = functional.plan_attention(torch.rand(1, 9, 2), (4, 5)), attention._first(feat, net)
    tables = [first.table.detach(), plan.at[0], plan.rel[0], attention._rows(values)]
    tables += [each.detach().contiguous() for each in (first.products, first.squares, first.bias)]
    rest = [[each.detach() for each in attend.parameters_of(net)], 8, 4]
    out, weight = torch.ops.liif_fast.attend(*tables, *rest)
    grads = (torch.ones_like(out), torch.zeros_like(weight), weight)
    for operator, arguments in (("attend", ()), ("attend_backward", grads)):
        found = getattr(torch.ops.liif_fast, operator).default
        torch.library.opcheck(found, (*arguments, *tables, *rest), test_utils=("test_schema", "test_faketensor"))
    for place, wrong in (
        (0, tables[0][:, 1:]),
        (1, tables[1] + 30),
        (1, tables[1] - 30),
        (2, tables[2][1:]),
        (6, tables[6][1:]),
    ):
        arguments = [*tables[:place], wrong, *tables[place + 1 :]]
        with pytest.raises(RuntimeError, match="liif_fast: "):
            torch.ops.liif_fast.attend(*arguments, *rest)
    for wrong in ([rest[0][1:], 8, 4], [rest[0], 7, 4], [rest[0], 8, 3], [[], 8, 4], [rest[0], 8, 0]):
        with pytest.raises(RuntimeError, match="liif_fast: "):
            torch.ops.liif_fast.attend(*tables, *wrong)


def test_the_kernels_operations_are_counted_as_those_of_the_factorised_form() -> None:
    model, coord = network(2, 4, 8), torch.rand(1, 50, 2)
    model.gen_feat(torch.rand(1, 1, 4, 6))
    counts = []
    for model.backend in ("torch", "cpu"):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.query(coord)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
