"""The cost model that picks between convolving the whole map and unfolding only the latents that are read."""

from __future__ import annotations

from liif_fast.call import exporting

# A gathered and unfolded row costs this many times a convolved latent: the multiply-adds are the same (9*C*hidden),
# but its 9*C values are collected one by one. On a CPU (C = 64, hidden 256, map 96x96) both forms take the same time
# where this is 1 (backend cpu) to 3 (backend torch).
GATHERED_ROW = 2


def factorises(latents: int, rows: int) -> bool:
    """Say whether the first layer is to be convolved over the whole map (else it is applied to gathered rows).

    Args:
        latents: H*W, the positions of one map.
        rows: K*Q, the (query, corner) pairs that read it.

    Returns:
        True for the factorised form, cost H*W (and in an exported program, which is to serve every size); False for the
        direct form, cost GATHERED_ROW * K*Q.
    """
    return exporting() or rows * GATHERED_ROW >= latents
