import ctypes
import gc
import json
import sys
import time

import pytest
import torch

from benchmarks import common, eager, limits, memory, rivals, runtimes
from liif_fast.functional import fused_mlp, liif_decode, liif_render

SIZES = [(21, 27), (20, 31), (5, 4)]  # x3 both ways, fractional, below the latents


def problem_and_image(size):
    feat, weights, biases = common.make_problem((7, 9), channels=3, hidden=(16, 16))
    expected = liif_render(feat, size, weights, biases, backend="reference").flatten(2).transpose(1, 2)
    return common.Problem(feat, weights, biases), eager.grid(size, feat), expected


@pytest.mark.parametrize("size", SIZES)
def test_plain_formula_is_the_reference(size, monkeypatch):
    monkeypatch.setattr(eager, "CHUNK", 100)
    (feat, weights, biases), queries, expected = problem_and_image(size)
    out = eager.decode_chunks(feat, queries, weights, biases)
    common.check(out, expected)
    assert torch.equal(eager.decode_chunks(feat, queries, weights, biases, chunks=1), out[:, :100])


@pytest.mark.parametrize("size", SIZES)
def test_factorised_formula_is_the_reference(size):
    (feat, weights, biases), queries, expected = problem_and_image(size)
    common.check(eager.decode_projected_chunks(feat, queries, weights, biases, chunk=100), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.xdist_group("export")  # one worker pays for the start of the exporter and the runtimes
def test_exported_graphs_are_the_reference(monkeypatch):
    """The queries fill several chunks and a part of one, on every runtime."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    monkeypatch.setattr(runtimes, "FACTORISED_CHUNK", 100)
    problem, queries, expected = problem_and_image(SIZES[1])
    calls = rivals.inference(problem, queries, compiled=False)
    for name in rivals.KEEPERS:
        common.check(calls[name](), expected)


class SignalStack(ctypes.Structure):
    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    @classmethod
    def current(cls):
        stack = cls()
        assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
        return stack.pointer, stack.flags, stack.size


@pytest.mark.skipif(sys.platform == "win32", reason="signals have no stack of their own there")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_signals_arrive_after_openvino_is_gone(tmp_path):
    """Two are nested, because each restores the stack that it found, which may be the other's."""
    pytest.importorskip("openvino")
    before = SignalStack.current()
    runtimes.export(torch.nn.Linear(2, 2), {"coord": torch.ones(1, 3, 2)}, tmp_path / "linear.onnx")
    first, second = (runtimes.load_openvino(tmp_path / "linear.onnx", ["coord"]) for _ in range(2))
    assert first(torch.ones(1, 3, 2)).shape == second(torch.ones(1, 3, 2)).shape
    del first, second
    gc.collect()
    assert SignalStack.current() == before


def test_training_rivals_have_the_reference_gradients():
    problem = common.make_problem((5, 6), batch=2, channels=3, hidden=(8,))
    problem.feat.requires_grad_()
    queries, grad = common.make_queries(2, 40, 5), torch.randn(2, 40, 3)
    expected = rivals.step(liif_decode, problem, queries, grad, backend="reference")()
    for call in rivals.training(problem, queries, grad, compiled=False).values():
        common.check(call(), expected)


def test_work():
    _, weights, _ = common.make_problem((1, 1))
    work = limits.decode_work(1000, 10, weights)
    assert work.flop == pytest.approx(1.58e9, rel=2e-3)
    assert work.nbytes == 4 * (1000 * 7 + 10 * 256)
    assert limits.training_work(1000, 10, weights).flop == 3 * work.flop


def test_check():
    good = torch.tensor([1.0, -2.0])
    gradient = torch.tensor([3.0])
    assert common.check((good + 1e-6, gradient * 1.001), (good, gradient)) == {
        "error": pytest.approx(5e-7, rel=0.1),
        "gradient_error": pytest.approx(1e-3, rel=0.01),
    }
    nan = good * float("nan")
    for wrong in ((good + 1e-4, gradient), (good, gradient * 1.1), (nan, gradient), (good[:1], gradient)):
        with pytest.raises(AssertionError):
            common.check(wrong, (good, gradient))


def test_race():
    order = []

    def call(name, value=1.0):
        def run():
            order.append(name)
            return torch.tensor([value])

        return run

    def broken():
        raise ImportError("no such compiler\nand more")

    always = {common.OURS: call("ours"), common.REFERENCE: call("reference")}
    rivals = {"wrong": call("wrong", 1.1), "a": call("a"), "broken": broken, "late": call("late")}
    yards = [limits.Yardstick(each, lambda: None, 100) for each in ("sgemm", "matrix", "copy")]
    machine = {
        "work": limits.Work(10, 1),
        "yardsticks": yards,
        "keepers": ["a"],
        "left_out": {"late": "too late"},
        "lap": 0.0,
    }
    result, laps = common.race("name", "title", always | rivals, rounds=3, **machine)
    # Before, each is called to warm up and to be checked, and correct ones also to choose the number of repeats.
    assert order[-9:] == ["reference", "a", "ours", "a", "reference", "ours", "reference", "a", "ours"]
    assert set(result["figures"]) == {"liif_fast", "reference", "a", "sgemm", "matrix", "copy"}
    assert [("share" in figure, "memory" in figure) for figure in result["figures"].values()] == [
        (True, memory.CLEAR_REFS.exists()),
        (True, memory.CLEAR_REFS.exists()),
        (True, False),
        *[(False, False)] * 3,
    ]
    assert all(result["figures"][each]["checked"] for each in ("liif_fast", "reference", "a"))
    assert {name: len(each) for name, each in laps.items()} == dict.fromkeys(result["figures"], 3)
    assert {"sgemm_rate", "matrix_rate", "copy_rate", "share_of_sgemm"} <= set(result)
    assert result["missing"]["late"] == "too late"
    assert result["rounds"] == 3
    assert "wrong by 1.0e-01" in result["missing"]["wrong"]
    assert result["missing"]["broken"] == "ImportError: no such compiler"
    json.dumps(result)

    few = common.race("name", "title", always | rivals, rounds=1, selected={"a"})
    assert set(few.laps) == {"liif_fast", "reference", "a"}
    assert not few.result["missing"]
    with pytest.raises(AssertionError, match="wrong by"):
        common.race("name", "title", always | {common.OURS: call("ours", 2.0)}, rounds=1)


def test_rounds_end_when_their_time_is_used_up():
    def run():
        time.sleep(1e-3)
        return torch.tensor([1.0])

    calls = dict.fromkeys(common.ALWAYS, run)
    rounds = [
        common.race("name", "title", calls, rounds=most, seconds=seconds, lap=0.0).result["rounds"]
        for seconds, most in ((0.0, 9), (1e9, 5), (1e-9, 2))
    ]
    assert rounds == [3, 5, 2]


def test_share_of_the_limit():
    """The longer time is the bound: 100 operations at 50 per second, or 30 bytes at 10 per second."""
    assert common._shares(limits.Work(100, 30), [6.0, 4.0], [50.0, 10.0], [10.0, 10.0]) == [0.5, 2.5]


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="needs Linux's /proc to measure a peak")
def test_peak_memory():
    size = 64 << 20

    def run():
        scratch = torch.ones(size // 4)
        return scratch[: size // 16].clone()

    run()
    result, peak, seconds = memory.peak(run, torch.device("cpu"))
    assert result.nbytes == size // 4
    assert peak == pytest.approx(size, rel=0.1)
    assert seconds > 0


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="needs Linux's /proc to measure a peak")
def test_peak_memory_is_beyond_the_whole_of_what_is_returned():
    def run():
        return torch.ones(16 << 20)[:10]

    run()
    _, peak, _ = memory.peak(run, torch.device("cpu"))
    assert peak < 8 << 20


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="needs Linux's /proc to measure a peak")
def test_peak_memory_of_a_second_training_step():
    """The memory that our operators keep between steps counts in every step."""
    x, leaves = torch.ones(6 << 10, 2), [torch.ones(size, requires_grad=True) for size in ((512, 2), (1, 512), 512, 1)]

    def step():
        return torch.autograd.grad(fused_mlp(x, leaves[:2], leaves[2:], recompute=False).sum(), leaves)

    step()
    peaks = [memory.peak(step, torch.device("cpu"))[1] for _ in range(2)]
    assert min(peaks) > 12 << 20  # the saved activations
    assert peaks[1] == pytest.approx(peaks[0], rel=0.2)
