"""List known faults of Triton, by version and architecture, and say which are refused and which cause a warning.

Triton's issues report them; docs/triton.md says how they affect these kernels. This module does not import Triton.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """Describe a fault on compute capabilities (times ten) first..last, in versions before the one that fixes it."""

    first: int
    last: int
    before: tuple[int, int]
    refused: bool  # else a warning, because it affects such kernels but is not known to affect ours as compiled
    text: str


FAULTS = (
    Fault(100, 110, (3, 7), True, "leaves out barriers between loop iterations (triton issue 9871)"),
    Fault(100, 110, (3, 9), False, "may drop a product of two that add to one sum (triton issue 10821)"),
    Fault(90, 90, (3, 9), False, "may read shared memory illegally with several products (triton issue 11366)"),
    Fault(90, 90, (3, 9), False, "lets a warp group overwrite what another group still reads (triton issue 11047)"),
)


def faults(arch: int, version: tuple[int, int], refused: bool) -> list[str]:
    """Return the known faults of a version of Triton on an architecture: those refused, or those that only warn."""
    return [
        fault.text
        for fault in FAULTS
        if fault.first <= arch <= fault.last and version < fault.before and fault.refused == refused
    ]
