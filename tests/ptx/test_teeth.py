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
         ("fourier", 8))},
    90: {f"barrier: {name} without number {number}" for name, number in (("decode", 16), ("chain", 16), ("chain", 18),
         ("waves_back", 4))}
    | {f"fence: {name} without number 1" for name in ("decode", "chain")},
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
    assert {title for title in missed if ": attend" not in title} == REDUNDANT[architecture]


@pytest.mark.parametrize("architecture", REDUNDANT)
@pytest.mark.parametrize("kernel", ["attend", "attend_back"])
def test_barriers_of_attention_are_missed(architecture, kernel, found):
    """Most are needed; across the others, in the layouts of this version, each warp touches only its own memory."""
    ways = [how for title, how in found(architecture).items() if title.startswith(f"barrier: {kernel} ")]
    assert len(ways) > 10 and sum(how is not None for how in ways) > 0.7 * len(ways)


@pytest.mark.parametrize(("architecture", "group", "how"), NAMED)
def test_a_fault_is_named(architecture, group, how, found):
    redundant = REDUNDANT[architecture]
    named = [text for title, text in found(architecture).items() if title.startswith(group) and title not in redundant]
    assert named and all(re.search(how, text) for text in named), named
