"""The comparison of training's rate with the render's runs, and its figures fit together."""

import pytest

from benchmarks.training_rate import shares


def test_a_small_case():
    found = shares(2, 60, rounds=1, side=7, hidden=(16, 16))
    assert all(value > 0 for value in found.values())
    assert found["both"] == pytest.approx(3 / (1 / found["forward"] + 2 / found["backward"]))
