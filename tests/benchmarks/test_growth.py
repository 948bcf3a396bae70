import pytest

from benchmarks import growth


def test_exponent():
    sizes = [1, 10, 100, 1000, 10_000]
    assert growth.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert growth.exponent(sizes, [5.0] * 5) == pytest.approx(0)
    assert growth.exponent(sizes, [900, 900, 100, 1000, 10_000]) == pytest.approx(1)  # the upper half only
    assert growth.exponent(sizes, [1, 2, None, None, None]) is None
    assert growth.exponent(sizes, [9, 9, 100, 95, 1000]) == pytest.approx(0.5)  # noise
    assert growth.exponent(sizes, [9, 9, 1000, 100, 100]) is None  # another way is taken
    assert growth.exponent(sizes, [None, 10.0, 100.0, 1000.0, None]) == pytest.approx(1)
