"""The comparison of training's rate with a dense render's runs, and its figures fit together."""

import pytest
import torch

from benchmarks import training_rate


@pytest.mark.parametrize("threads", [1, 2])
def test_small_cases(threads, monkeypatch):
    """One thread counts CPU time, more count elapsed time."""
    monkeypatch.setattr(training_rate, "CASES", ((2, 60), (1, 9)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    results = training_rate.measure(1, side=7, hidden=(16, 16))
    for result in results:
        render, forward, backward, both = (result["figures"][part]["median"] for part in training_rate.PARTS)
        assert min(render, forward, backward, both) > 0
        assert both == pytest.approx(3 / (1 / forward + 2 / backward), rel=1e-2)
        assert {"name", "title", "unit", "rounds", "figures", "missing", "dense_rate"} == set(result)
    assert [line.split(" | ")[0] for line in training_rate.lines(results)[2:]] == ["| B = 2, Q = 60", "| B = 1, Q = 9"]
