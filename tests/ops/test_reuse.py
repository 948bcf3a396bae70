"""Check the memory of large tensors (csrc/cpu/memory.h): reused when nothing can read it, and never before.

Networks here save 12 MiB or more, because smaller tensors are PyTorch's.
"""

import copy
import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from liif_fast import functional
from liif_fast.ops import decode

from .support import BACKENDS

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="the backend cpu is not under test")
reuses = pytest.mark.skipif(
    sys.platform != "linux" or torch.__version__ < (2, 11), reason="memory is reused on Linux with PyTorch 2.11"
)
ROWS, HIDDEN = 6 << 10, 512  # 12 MiB


def layers(*widths):
    torch.manual_seed(0)
    return [torch.randn(o, i) * i**-0.5 for i, o in itertools.pairwise(widths)], [torch.randn(o) for o in widths[1:]]


def mlp(rows=ROWS, fill=1.0):
    """Return the inputs of an MLP and its output, which saves [rows, HIDDEN]."""
    weights, biases = layers(2, HIDDEN, 1)
    leaves = [t.requires_grad_() for t in (torch.full((rows, 2), fill), *weights, *biases)]
    return leaves, functional.fused_mlp(leaves[0], leaves[1:3], leaves[3:], backend="cpu", recompute=False)


def save(rows=ROWS, width=HIDDEN):
    """Return the activations that an MLP saves, as its operator returns them."""
    weights, biases = layers(2, width, 1)
    return torch.ops.liif_fast.fused_mlp(torch.ones(rows, 2), weights, biases, (rows, width), None)[1]


def resident():
    """Return the process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def in_memory_that_waits(tensor):
    """Return whether a tensor's memory will wait for the next; PyTorch's can be resized."""
    return not tensor.untyped_storage().resizable()


@pytest.fixture(autouse=True)
def fresh():
    """Begin and end without spare memory."""
    for _ in range(16):
        save(0)
    yield
    for _ in range(16):
        save(0)


@reuses
@pytest.mark.parametrize("rows", [ROWS, ROWS - 7, ROWS * 2 // 3 + 1])
def test_reused(rows):
    """The next tensor of about this size gets the memory, even after another has asked the system for as much."""
    first = save()
    at = first.data_ptr()
    del first
    other = torch.empty(ROWS, HIDDEN)
    assert save(rows).data_ptr() == at
    assert other.data_ptr() != at


@reuses
def test_reused_by_training_steps():
    """A backward pass that releases its graph gives the memory to the next forward pass."""
    found = []

    def pack(saved):
        if saved.shape == (ROWS, HIDDEN):
            found.append(saved.data_ptr())
        return saved

    for _ in range(3):
        with saved_tensors_hooks(pack, lambda saved: saved):
            leaves, out = mlp()
        torch.autograd.grad(out.sum(), leaves)
        del out
    assert len(found) == 3
    assert len(set(found)) == 1


def test_a_retained_graph():
    """A graph that is kept gives its gradients again after other steps, which do not write to its memory."""
    leaves, first = mlp()
    expected = torch.autograd.grad(first.square().sum(), leaves, retain_graph=True)
    others, second = mlp(fill=-3.0)
    torch.autograd.grad(second.sum(), others)
    again = torch.autograd.grad(first.square().sum(), leaves)
    assert all(map(torch.equal, again, expected))


@pytest.mark.parametrize("keep", [lambda t: t, torch.Tensor.detach, lambda t: t[3:], torch.Tensor.numpy])
def test_not_reused_while_a_reader_is_left(keep):
    """A view, an alias or an array holds the memory."""
    first = save()
    kept = keep(first)
    before = copy.deepcopy(kept)
    del first
    save().fill_(7)
    assert bool((before == kept).all())


def test_failed_backward(monkeypatch):
    """A backward pass that raises leaves its graph as it was; one that runs then has the right gradients."""
    weights, biases = layers(6, 512, 512, 3)
    leaves = [t.requires_grad_() for t in (torch.randn(1, 2, 8, 8), *weights, *biases)]
    coord = torch.rand(1, 1536, 2) * 2 - 1
    options = {"feat_unfold": False, "backend": "cpu", "recompute": False}

    def run(coord):
        return functional.liif_decode(leaves[0], coord, coord, leaves[1:4], leaves[4:], **options).sum()

    expected = torch.autograd.grad(run(coord), leaves)
    out = run(coord)
    with monkeypatch.context() as patch:
        patch.setattr(decode, "project_backward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            torch.autograd.grad(out, leaves)
    run(-coord)
    for ours, right in zip(torch.autograd.grad(out, leaves), expected, strict=True):
        assert torch.equal(ours, right)


@pytest.mark.parametrize("unpack", [torch.clone, lambda t: t])
def test_hooks(unpack):
    """Nothing is written to the tensors that a hook for saved tensors holds."""
    packed = []
    with saved_tensors_hooks(lambda t: packed.append(t) or len(packed) - 1, lambda i: unpack(packed[i])):
        leaves, out = mlp()
    before = [t.clone() for t in packed]
    torch.autograd.grad(out.sum(), leaves)
    mlp(fill=-3.0)
    for held, old in zip(packed, before, strict=True):
        assert torch.equal(held, old)


@reuses
def test_bound_of_what_waits():
    """Memory that does not fit waits, up to 1 GiB with the new one. Inference frees it. Sizes are in MiB."""
    mebibyte, slack, before = 1 << 20, 16 << 20, resident()

    def make(size):
        return save(size * 256, 1024).fill_(1)

    def held():
        return (resident() - before + slack // 2) // slack * slack // mebibyte

    for size in (400, 192, 80):
        make(size)
    assert held() == 672
    first = make(144)  # in the memory of 192
    assert held() == 672
    second = make(704)  # no memory fits, and that of 400 has waited longest
    assert held() == 80 + 192 + 704
    del first, second
    for _ in range(15):
        save(0)
    assert held() == 80 + 192 + 704
    save(0)
    assert held() == 0


@reuses
def test_nothing_waits_in_inference():
    """Maps and projections are PyTorch's before a step, in waiting memory soon after one, and PyTorch's again later."""
    feat, weight = torch.rand(1, 64, 192, 192).to(memory_format=torch.channels_last), torch.rand(64, 64, 3, 3)

    def waits():
        made = torch.ops.liif_fast.conv3x3(feat, weight, None, None, False, False)
        return in_memory_that_waits(made)

    assert not waits()
    save()
    for _ in range(1000):  # a deep encoder's
        torch.ops.liif_fast.conv3x3(feat[:, :, :4, :4], weight, None, None, False, False)
    assert waits()
    for _ in range(16):
        save(0)
    assert not waits()


@reuses
def test_nothing_waits_above_1_gib():
    """Above 1 GiB, which recompute=False allows, memory goes back at once."""
    before = resident()
    save((1 << 18) + 96, 1024)
    assert resident() < before + (64 << 20)


@reuses
def test_sizes_without_bound():
    """A size that 64 bits cannot hold is PyTorch's to refuse."""
    save()
    feat = torch.zeros(1, 1, 1, 1).expand(1, 1, 257 << 11, 4278255361)
    place = [0, 0, feat.shape[2], feat.shape[3]]
    with pytest.raises(RuntimeError, match="new_empty"):
        torch.ops.liif_fast.project(feat, torch.zeros(2048, 1), torch.zeros(2048), False, place, None)


@reuses
def test_nothing_waits_while_new_memory_is_filled(nan_empty):
    """Where PyTorch fills new memory with NaN, PyTorch makes the tensor, and no memory waits."""
    torch.use_deterministic_algorithms(False)
    before, slack = resident(), 16 << 20
    assert in_memory_that_waits(save(4 * ROWS))
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert not in_memory_that_waits(save(4 * ROWS))
    assert resident() < before + slack
