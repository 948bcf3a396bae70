"""The counter of terms that are left groups rows as the cpu backend does."""

import torch

from benchmarks.zeros import GROUP, TILE, share_left


def test_groups_are_neighbouring_queries_of_a_corner():
    hidden = torch.zeros(TILE, 4, 8)
    hidden[:GROUP, 2, 3] = 1  # one group
    assert share_left(hidden) == 1 / (4 * TILE // GROUP * 8)
    hidden[GROUP, 2, 3] = 1  # and the next
    assert share_left(hidden) == 2 / (4 * TILE // GROUP * 8)
    hidden[0, 1, 3] = 1  # another corner
    assert share_left(hidden) == 3 / (4 * TILE // GROUP * 8)
