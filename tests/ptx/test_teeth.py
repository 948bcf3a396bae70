"""Executing compiled kernels finds planted faults, so the checks are effective."""

import functools
import re

import pytest

from ..kernels.test_compile_report import MAIN
from .test_operators import results

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.ptx

# Triton 3.7.1 places these needlessly: across the barriers each warp touches only its own memory, and between the
# fences nothing is written.
REDUNDANT = {
    80: {f"barrier: {name} without number {number}" for name, number in (("decode", 14), ("chain", 14), ("chain", 16),
         ("fourier", 8), *(("attend_back", number) for number in (11, 13, 17, 19)), ("attend_keep", 23),
         ("attend_keep", 35))},
    90: {f"barrier: {name} without number {number}" for name, number in (("decode", 16), ("chain", 16), ("chain", 18),
         ("waves_back", 4), ("attend", 1), *(("attend_back", number) for number in (5, 9, 11, 15, 17)))}
    | {f"fence: {name} without number 1" for name in ("decode", "chain")}
    # One lies before each of the three products of a strict float32 one, which read the same.
    | {f"fence: {name} without number {number}"
       for name, count in (("attend", 9), ("attend_back", 9), ("attend_keep", 36))
       for number in range(count) if number % 3},
}  # fmt: skip
NAMED = [
    (80, "barrier: decode", "a race|never written"),
    (80, "order: ", "other results in order"),
    (90, "order: ", "other results in order"),
    (80, "copy: no first wait", "under way"),
    (80, "address: cut", "outside of every tensor"),
    (80, "mask: off by one", "outside of every tensor"),
    (80, "plan: contracted", "other results"),
    (90, "barrier: decode", "a race|never written"),
    (90, "copy", "under way"),
    (90, "fence: decode", "without a proxy fence"),
    (90, "products: no wait", "while a product"),
    (90, "waves: no wait", "that a product reads"),
]


@pytest.fixture(scope="module")
def found(program):
    """Return the machine's result for each fault, by architecture, executed once in this process."""
    code = "from tests.ptx import teeth; teeth.main()"
    return functools.cache(lambda architecture: results(program(MAIN, code, str(architecture))))


@pytest.mark.parametrize("architecture", REDUNDANT)
def test_every_planted_fault_is_found(architecture, found):
    table = found(architecture)
    assert len(table) > 80
    missed = {title for title, how in table.items() if how is None}
    assert missed == REDUNDANT[architecture]


@pytest.mark.parametrize("architecture", REDUNDANT)
def test_warps_that_exchange_through_global_memory_need_barriers(architecture, found):
    """Those are the first two of the launch that keeps activations, which Triton does not place by itself."""
    for number in range(2):
        how = found(architecture)[f"barrier: attend_keep without number {number}"]
        assert re.match("a race: (read of|write to) global memory", how)


@pytest.mark.parametrize(("architecture", "group", "how"), NAMED)
def test_a_fault_is_named(architecture, group, how, found):
    redundant = REDUNDANT[architecture]
    named = [text for title, text in found(architecture).items() if title.startswith(group) and title not in redundant]
    assert named and all(re.search(how, text) for text in named), named
