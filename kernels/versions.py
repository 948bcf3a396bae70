"""Known faults of Triton itself, by version and architecture: what is refused, and what is warned of.

As Triton's issues report them; docs/triton.md says what is known of these kernels. Nothing here imports Triton.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """On compute capabilities (times ten) first..last, in versions before the one that is without it."""

    first: int
    last: int
    before: tuple[int, int]
    refused: bool  # or only warned of: kernels like ours are hit, ours as compiled are not known to be
    text: str


FAULTS = (
    Fault(100, 110, (3, 7), True, "leaves out barriers between loop iterations (triton issue 9871)"),
    Fault(100, 110, (3, 9), False, "may drop a product of two that add to one sum (triton issue 10821)"),
    Fault(90, 90, (3, 9), False, "may read shared memory amiss in a kernel of several products (triton issue 11366)"),
    Fault(90, 90, (3, 9), False, "lets warp groups overtake each other behind a product (triton issue 11047)"),
)


def faults(arch: int, version: tuple[int, int], refused: bool) -> list[str]:
    """Return what is known to be wrong with a version of Triton on an architecture, refused or only warned of."""
    return [
        fault.text
        for fault in FAULTS
        if fault.first <= arch <= fault.last and version < fault.before and fault.refused == refused
    ]
