import json

import pytest
import torch

from benchmarks import common, eager
from liif_fast.functional import liif_decode, liif_render


class Pedantic:
    """As pytest-benchmark's fixture, without statistics."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, target, args, setup, rounds):
        for _ in range(rounds):
            setup()
            target(*args)


@pytest.mark.parametrize("size", [(21, 27), (20, 31), (5, 4)])  # x3 both ways, fractional, below the latents
def test_plain_formula_is_the_reference(size, monkeypatch):
    monkeypatch.setattr(eager, "CHUNK", 100)
    feat, weights, biases = common.make_problem((7, 9), channels=3, hidden=(16, 16))
    expected = liif_render(feat, size, weights, biases, backend="reference").flatten(2).transpose(1, 2)
    out = eager.render(feat, size, weights, biases)
    common.check(out, expected)
    assert torch.equal(eager.render(feat, size, weights, biases, chunks=1), out[:, :100])


def test_plain_formula_has_the_reference_gradients():
    feat, weights, biases = common.make_problem((5, 6), batch=2, channels=3, hidden=(8,))
    coord, cell = torch.rand(2, 2, 40, 2).unbind()
    got, expected = [], []
    for results, decode, options in ((got, eager.decode, {}), (expected, liif_decode, {"backend": "reference"})):
        out = decode(feat.requires_grad_(), coord, cell, weights, biases, **options)
        results += [out, *torch.autograd.grad(out.square().sum(), (feat, *weights, *biases))]
    common.check(got, expected)


def test_useful_flop():
    _, weights, _ = common.make_problem((1, 1))
    assert common.useful_flop(1, weights) == pytest.approx(1.58e6, rel=2e-3)


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


def test_race(monkeypatch):
    monkeypatch.setattr(common, "LAP_SECONDS", 0)
    order = []

    def call(name, value=1.0):
        def run():
            order.append(name)
            return torch.tensor([value])

        return run

    def broken():
        raise ImportError("no such compiler\nand more")

    rivals = {"a": call("a"), "wrong": call("wrong", 1.1), "b": call("b"), "broken": broken}
    result = common.race(Pedantic(), "name", "title", call("ours"), rivals, torch.tensor([1.0]), rounds=3, flop=1)
    # Each of the four is called once to warm up and once to be checked.
    assert order[8:] == ["a", "b", "ours", "b", "a", "ours", "a", "b", "ours"]
    assert set(result["figures"]) == {"liif_fast", "a", "b", "sgemm"}
    assert result["rounds"] == 3
    assert "wrong by 1.0e-01" in result["missing"]["wrong"]
    assert result["missing"]["broken"] == "ImportError: no such compiler"
    json.dumps(result)

    with pytest.raises(AssertionError, match="wrong by"):
        common.race(Pedantic(), "name", "title", call("ours", 2.0), {}, torch.tensor([1.0]), rounds=1)


def test_records_are_appended(tmp_path):
    environment = common.environment()
    first, second = ({**environment, "date": date} for date in ("2026-01-02", "2026-01-01"))
    path = common.append_record(first, [{"name": "x"}], tmp_path)
    assert common.append_record(second, [], tmp_path) == path
    assert [record["date"] for record in common.read_records(tmp_path)] == ["2026-01-01", "2026-01-02"]
    assert common.read_records(tmp_path)[1]["results"] == [{"name": "x"}]
