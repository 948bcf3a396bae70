"""The comparison of backward passes for some of the gradients runs."""

import pytest

from benchmarks import wanted


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_it_prints_every_variant(monkeypatch, capsys, backend):
    monkeypatch.setattr(wanted, "SIDE", 3)
    monkeypatch.setattr(wanted, "QUERIES", 5)
    monkeypatch.setattr("sys.argv", ["wanted", "--rounds", "1", "--backend", backend])
    wanted.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:16].rstrip() for line in lines] == list(wanted.WANTED)
    assert lines[0].endswith(" 1.00")
