"""Weights are packed once, only within `frozen_weights`, and visible changes are noticed."""

import copy
import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import liif_fast
from liif_fast.backends import cpu, cuda
from liif_fast.call import Switches
from liif_fast.functional import frozen_weights
from liif_fast.layers import linear_chain
from liif_fast.ops import sm90

pytestmark = pytest.mark.skipif(bool(cpu._missing), reason="the packing operator needs the C++ kernels")
FEAT = torch.randn(1, 8, 5, 6)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return liif_fast.LIIFDecoder(8, 3, (256, 256)).eval()


@pytest.fixture
def count(monkeypatch):
    """Count how often weights are packed."""
    calls, pack = [], sm90.pack

    def counted(*arguments):
        calls.append(arguments)
        return pack(*arguments)

    monkeypatch.setattr(sm90, "pack", counted)
    return lambda: len(calls)


ALL, NO_CELL = Switches(), Switches(cell_decode=False)


def packed(decoder, dtype=torch.float16, switches=ALL):
    weights, biases = linear_chain(decoder.layers)
    with torch.no_grad():
        return cuda._prepare(FEAT.to(dtype), weights, biases, switches)[1]


def fresh(decoder):
    """Pack the present weights."""
    return packed(copy.deepcopy(decoder))


def test_outside_every_call_packs(decoder, count):
    before = packed(decoder)
    for parameter in decoder.parameters():
        parameter.data.mul_(2)  # no version counter counts this
    assert not torch.equal(packed(decoder), before)
    assert count() == 2


def test_a_layer_packs_once(decoder, count):
    frozen = frozen_weights()
    for _ in range(3):
        with frozen:
            first = packed(decoder)
            assert packed(decoder) is first
    assert count() == 1
    assert torch.equal(first, fresh(decoder))


def step(kind, **how):
    def take(decoder):
        for parameter in decoder.parameters():
            parameter.grad = torch.ones_like(parameter)
        kind(decoder.parameters(), lr=0.1, **how).step()

    return take


STEPS = [
    pytest.param(step(kind, **how), id="-".join((kind.__name__, *how)))
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
    for how in ({}, {"foreach": True}, {"fused": True})
]


def replace(decoder):
    decoder.layers[2].weight = torch.nn.Parameter(decoder.layers[2].weight.detach() * 2)


def swap_data(decoder):
    """Run twice, so that the allocator may reuse the first address."""
    for _ in range(2):
        decoder.layers[2].weight.data = decoder.layers[2].weight.data * 2


def in_place(decoder):
    with torch.no_grad():
        decoder.layers[4].bias.add_(1)


def load(decoder):
    decoder.load_state_dict({name: value * 2 for name, value in decoder.state_dict().items()})


@pytest.mark.parametrize("change", [*STEPS, replace, swap_data, in_place, load])
def test_changed_weights_are_noticed(decoder, count, change):
    with frozen_weights():
        before = packed(decoder)
        change(decoder)
        after = packed(decoder)
        assert packed(decoder) is after
    assert count() == 2
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh(decoder))


def test_each_dtype_and_switch_has_its_own(decoder, count):
    no_cell = liif_fast.LIIFDecoder(8, 3, (256, 256), cell_decode=False)
    with frozen_weights():
        found, again = (
            [packed(decoder), packed(decoder, torch.bfloat16), packed(no_cell, switches=NO_CELL)] for _ in range(2)
        )
    assert count() == 3
    assert all(one is other for one, other in zip(found, again, strict=True))


def test_contexts_nest_and_end(decoder, count):
    with frozen_weights():
        packed(decoder)
        with frozen_weights():
            packed(decoder)
        packed(decoder)
    packed(decoder)
    assert count() == 3


def test_another_thread_is_not_in_the_context(decoder, count):
    with frozen_weights():
        packed(decoder)
        thread = threading.Thread(target=packed, args=(decoder,))
        thread.start()
        thread.join()
    assert count() == 2


def test_threads_share_one_object(decoder, count):
    """The first thread to enter leaves first, while the other is inside."""
    frozen, inside, left = frozen_weights(), threading.Event(), threading.Event()
    failed = []

    def other():
        try:
            with frozen:
                inside.set()
                assert left.wait(60)
                packed(decoder)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=other)
    with frozen:
        thread.start()
        assert inside.wait(60)
        packed(decoder)
    left.set()
    thread.join()
    assert not failed
    assert count() == 1
    packed(decoder)
    assert count() == 2


def test_generators_may_end_out_of_order(decoder, count):
    def inside():
        with frozen_weights():
            yield

    first, second = inside(), inside()
    next(first), next(second)
    first.close(), second.close()
    packed(decoder), packed(decoder)
    assert count() == 2


def test_tensors_made_for_each_call_are_not_kept(decoder):
    """Each `weight.data` has its own version counter, which shows no change."""

    def packed_data():
        weights, biases = linear_chain(decoder.layers)
        return cuda._prepare(FEAT.half(), [w.data for w in weights], [b.data for b in biases], ALL)[1]

    with torch.no_grad(), frozen_weights():
        packed_data()
        in_place(decoder)
        assert torch.equal(packed_data(), fresh(decoder))


def test_inference_tensors_are_not_kept(count):
    with torch.inference_mode():
        decoder = liif_fast.LIIFDecoder(8, 3, (256, 256))
        with frozen_weights():
            packed(decoder)
            packed(decoder)
    assert count() == 2


def test_fake_tensors_are_not_kept(decoder):
    with frozen_weights(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        faked = [mode.from_tensor(t) for t in (FEAT.half(), *decoder.parameters())]
        _, made = cuda._prepare(faked[0], faked[1::2], faked[2::2], Switches())
    assert made.numel() == sm90.PRODUCT_BYTES + sm90.TABLE_BYTES


def test_no_more_than_some_are_kept(decoder):
    frozen = frozen_weights()
    with frozen:
        for _ in range(40):
            in_place(decoder)
            packed(decoder)
    assert len(frozen._kept) == 16


def test_compiled_code_packs_in_every_call(decoder):
    """The packing is part of a compiled graph, so even a write through .data takes effect."""
    weights, biases = linear_chain(decoder.layers)

    @torch.compile(backend="eager", fullgraph=True)
    def run(feat):
        return cuda._prepare(feat, weights, biases, Switches())[1]

    with torch.no_grad(), frozen_weights():
        run(FEAT.half())
        decoder.layers[2].weight.data.mul_(2)
        assert torch.equal(run(FEAT.half()), fresh(decoder))
