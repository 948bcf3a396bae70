import pytest

from liif_fast.train.order import Order, mix


def shares(monkeypatch, world, **args):
    """Return every process's batches of an epoch."""
    parts = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        order = Order(**{"length": 11, "size": 4, "seed": 1} | args)
        order.begin(3)
        parts.append(list(order))
        assert len(order) == order.batches == len(parts[-1])
    return parts


def test_an_epoch_is_every_sample_once():
    order = Order(11, 4, seed=1)
    epochs = []
    for epoch in (1, 2, 1):
        order.begin(epoch)
        epochs.append([index for batch in order for index in batch])
        assert sorted(epochs[-1]) == list(range(11))
    assert epochs[0] == epochs[2] != epochs[1]
    assert list(Order(5, 2)) == [[0, 1], [2, 3], [4]]


def test_resumed_in_the_midst_of_an_epoch():
    order = Order(11, 4, seed=1)
    order.begin(2)
    whole = list(order)
    order.begin(2, first=1)
    assert list(order) == whole[1:]
    assert len(order) == 2


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_the_batches_of_one(monkeypatch, world):
    whole, parts = shares(monkeypatch, 1)[0], shares(monkeypatch, world)
    for number, batch in enumerate(whole):
        found = sorted(index for part in parts for index in part[number])
        assert set(found) == set(batch) if len(batch) >= world else set(found) >= set(batch)
        assert len(found) == max(len(batch), world)


def test_a_process_without_a_share_takes_part_with_nothing_that_counts(monkeypatch):
    """The last batch has 3 samples for 4 processes."""
    parts = shares(monkeypatch, 4)
    order = Order(11, 4, seed=1)
    order.begin(3)  # as the last process, which is still set in the environment
    assert order.share(2) == []
    assert parts[3][2] == order.indices[:1]


def test_mix():
    seeds = {mix(a, b, c) for a in range(9) for b in range(9) for c in range(9)}
    assert len(seeds) == 729
    assert all(0 <= seed < 2**63 for seed in seeds)
