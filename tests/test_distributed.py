import textwrap

import pytest
import torch

from liif_fast import distributed

from . import warm


@pytest.fixture
def process(monkeypatch):
    """Set the environment of one of several processes."""

    def be(rank, world_size):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))

    return be


def test_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # some schedulers set it, too
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.share("abc") == distributed.merge("abc") == ["a", "b", "c"]
    assert distributed.init(torch.device("cpu")) == torch.device("cpu")
    assert not torch.distributed.is_initialized()
    distributed.cleanup()


@pytest.mark.parametrize(("items", "processes"), [(7, 3), (2, 4), (0, 2), (4, 1)])
def test_shares_are_all_items_once(process, items, processes):
    parts = []
    for rank in range(processes):
        process(rank, processes)
        parts.append(distributed.share(range(items)))
    assert sorted(item for part in parts for item in part) == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_is_the_main_one(process):
    process(1, 2)
    assert not distributed.is_main()


def test_devices_that_cannot_be_shared(process, monkeypatch):
    process(1, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device, message in (("mps", "need CPUs or CUDA"), ("cuda:0", "cannot share a GPU"), ("cuda", "has no GPU")):
        with pytest.raises(ValueError, match=message):
            distributed.init(torch.device(device))


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_timeout_that_is_no_time(process, monkeypatch, value):
    process(1, 2)
    monkeypatch.setenv("LIIF_FAST_TIMEOUT", value)
    with pytest.raises(ValueError, match=f"LIIF_FAST_TIMEOUT: expected a number of seconds above 0, got '{value}'"):
        distributed.init(torch.device("cpu"))


GLOO = (
    "[/build/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:4242. See the log."
)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError(GLOO), "Connection closed by peer [10.0.0.2]:4242"),
        (
            torch.distributed.DistNetworkError("The client socket has timed out\nframes"),
            "The client socket has timed out",
        ),
    ],
    ids=["gloo", "store"],
)
def test_lost_processes_are_one_line(process, error, cause):
    process(1, 2)
    with pytest.raises(ConnectionError) as caught, distributed.reporting("begin again"):
        raise error
    assert str(caught.value) == f"process 1 lost the other processes: {cause}; begin again"


def test_other_errors_pass(process):
    process(1, 2)
    for error in (RuntimeError("out of memory in gloo/"), ValueError(GLOO), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, distributed.reporting("begin again"):
            raise error
        assert caught.value is error


def test_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys, torch
        from liif_fast import distributed
        distributed.init(torch.device("cpu"))
        squares = distributed.merge([i * i for i in distributed.share(range(5))])
        ranks = distributed.gather(distributed.rank())
        (open(f"{sys.argv[1]}/{distributed.rank()}", "w")).write(f"{squares} {ranks} {distributed.world_size()}")
        distributed.cleanup()
        """)
    )
    warm.run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, tmp_path, check=True)
    for rank in (0, 1):
        assert (tmp_path / str(rank)).read_text() == "[0, 1, 4, 9, 16] [0, 1] 2"
