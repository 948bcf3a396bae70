"""Draw the samples of each step from nothing but the seed and the epoch."""

from collections.abc import Iterator

import torch

from liif_fast import distributed


class Order:
    """Yield this process's share of each batch of an epoch; a batch sampler.

    The whole batch does not depend on the number of processes: process r takes every world_size-th sample, starting
    with the r-th. If a smaller last batch leaves a process none, it takes the first sample, which does not count.

    Args:
        seed: seed of the shuffle; None keeps the order.
    """

    def __init__(self, length: int, size: int, seed: int | None = None) -> None:
        self.length, self.size, self.seed = length, size, seed
        self.batches = -(-length // size)
        self.begin(0)

    def begin(self, epoch: int, first: int = 0) -> None:
        """Start an epoch at its batch `first`."""
        self.first = first
        self.indices = list(range(self.length))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self.indices = torch.randperm(self.length, generator=generator).tolist()

    def __len__(self) -> int:
        return self.batches - self.first

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.first, self.batches):
            yield self.share(batch) or self.indices[:1]

    def share(self, batch: int) -> list[int]:
        """Return this process's samples of a batch, possibly none."""
        return distributed.share(self.indices[batch * self.size : (batch + 1) * self.size])


def mix(*numbers: int) -> int:
    """Combine several numbers into one seed."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number) % 2**63
    return seed
