import itertools

import pytest
import torch

from liif_fast import functional

from .support import is_limit


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip a test, with the reason, if a limited backend refuses its dtype or network."""
    try:
        return (yield)
    except RuntimeError as error:
        if is_limit(error):
            pytest.skip(str(error))
        raise


@pytest.fixture
def nan_empty():
    """Fill uninitialised tensors of PyTorch and of the C++ kernels with NaN, so that unwritten elements show."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def threads():
    """Return a function that sets the number of threads, which is restored at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poison():
    """Return a function that fills the kernels' persistent scratch memory with NaN."""
    nan = float("nan")
    widths = (322, 300, 300, 300, 300, 300, 70)
    weights = [torch.full((outs, ins), nan) for ins, outs in itertools.pairwise(widths)]
    biases = [torch.full((outs,), nan) for outs in widths[1:]]

    def poison(dtype=torch.float32):
        ws, bs = ([p.to(dtype).requires_grad_() for p in ps] for ps in (weights, biases))
        for recompute in (True, False):
            feat = torch.full((1, 320, 1, 1), nan, dtype=dtype, requires_grad=True)
            options = {"feat_unfold": False, "cell_decode": False, "recompute": recompute}
            functional.liif_decode(feat, torch.zeros(1, 24, 2), None, ws, bs, **options).sum().backward()
            x = torch.full((96, 322), nan, dtype=dtype, requires_grad=True)
            functional.fused_mlp(x, ws, bs, recompute=recompute).sum().backward()

    return poison
