"""List known faults of Triton itself, by version and architecture, which are refused or cause a warning.

Triton's issues report them; docs/triton.md says how they concern these kernels. This module does not import Triton.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """Describe a fault on compute capabilities (times ten) first..last, in versions before the one that mends it."""

    first: int
    last: int
    before: tuple[int, int]
    refused: bool  # else a warning: it hits kernels like ours, but is not known to hit ours as compiled
    text: str


FAULTS = (
    Fault(100, 110, (3, 7), True, "leaves out barriers between loop iterations (triton issue 9871)"),
    Fault(100, 110, (3, 9), False, "may drop a product of two that add to one sum (triton issue 10821)"),
    Fault(90, 90, (3, 9), False, "may read shared memory amiss in a kernel of several products (triton issue 11366)"),
    Fault(90, 90, (3, 9), False, "lets warp groups overtake each other behind a product (triton issue 11047)"),
)


def faults(arch: int, version: tuple[int, int], refused: bool) -> list[str]:
    """Return the known faults of a version of Triton on an architecture, either refused ones or warned ones."""
    return [
        fault.text
        for fault in FAULTS
        if fault.first <= arch <= fault.last and version < fault.before and fault.refused == refused
    ]
