"""Which samples each step of an epoch takes, drawn from the seed and the epoch alone."""

from collections.abc import Iterator

import torch

from liif_fast import distributed


class Order:
    """The batches of an epoch, as far as this process makes them; a batch sampler.

    The whole batch is the same however many processes share it: process r takes every world_size-th sample from its
    r-th on. Where a last, smaller batch leaves nothing for a process, it takes the first sample, which does not count.

    Args:
        seed: of the order; None means in order.
    """

    def __init__(self, length: int, size: int, seed: int | None = None) -> None:
        self.length, self.size, self.seed = length, size, seed
        self.batches = -(-length // size)
        self.begin(0)

    def begin(self, epoch: int, first: int = 0) -> None:
        """Say which epoch the next batches are of, and the batch to begin with where it is resumed."""
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
        """Return this process's samples of a batch; it may be empty."""
        return distributed.share(self.indices[batch * self.size : (batch + 1) * self.size])


def mix(*numbers: int) -> int:
    """Make one seed of several numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number) % 2**63
    return seed
