"""Test sums of rows by latent in Triton's interpreter, beyond what the operators' tests cover."""

import pytest
import torch

from liif_fast.kernels import scatter

from ..ops.conftest import nan_empty

__all__ = ["nan_empty"]  # a fixture
pytestmark = pytest.mark.usefixtures("nan_empty")


class Spy:
    """Run a kernel, and note the columns that a program takes."""

    def __init__(self, kernel, seen):
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, grid):
        def launch(*args, **named):
            self.seen.append(named["BLOCK"])
            self.kernel[grid](*args, **named)

        return launch


@pytest.mark.parametrize("name", ["atomic_kernel", "segment_kernel"])
def test_wide_rows_are_summed_in_blocks(name, monkeypatch):
    torch.use_deterministic_algorithms(name == "segment_kernel")
    blocks = []
    monkeypatch.setattr(scatter, name, Spy(getattr(scatter, name), blocks))
    source, latents, target = torch.randn(21, 300), torch.randint(0, 3, (21,)), torch.randn(3, 300)
    expected = target.index_add(0, latents, source)
    scatter.add(source, latents, target)
    torch.testing.assert_close(target, expected, rtol=0, atol=1e-5)
    assert blocks == [256]
