import builtins
import csv

import pytest

from liif_fast.train.records import FIELDS, Records, read_log

from .support import run

ROW = {"epoch": 1, "steps": 10, "loss": 0.1234567890123, "lr": 1e-4, "seconds": 2.5}


def test_the_log_is_a_table(tmp_path):
    records = Records(tmp_path, False, True, 0)
    records.epoch(ROW)
    records.epoch(ROW | {"epoch": 2, "psnr": 30.25, "psnr_per_image": 31.5})
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert tuple(rows[0]) == FIELDS
    assert (rows[0]["psnr"], rows[1]["psnr"], rows[0]["loss"]) == ("", "30.25", "0.1234567890123")
    assert read_log(tmp_path / "log.csv") == [ROW, ROW | {"epoch": 2, "psnr": 30.25, "psnr_per_image": 31.5}]


@pytest.mark.parametrize("broken", ["3,30,0.1,,", "3,30,0.1", "3", "3,30,0.1,,,1e-4,2.5x", "\0\0\0"])
def test_what_is_beyond_the_checkpoint_goes(tmp_path, broken):
    records = Records(tmp_path, False, True, 0)
    for epoch in (1, 2, 3):
        records.epoch(ROW | {"epoch": epoch})
    before = (tmp_path / "log.csv").read_text().splitlines()
    with (tmp_path / "log.csv").open("a") as file:
        file.write(broken)
    assert [row["epoch"] for row in read_log(tmp_path / "log.csv")] == [1, 2, 3]
    records.trim(2)
    assert (tmp_path / "log.csv").read_text().splitlines() == before[:3]


def test_only_the_main_process_records(tmp_path, capsys):
    records = Records(tmp_path, True, False, 0)
    records.log("line")
    records.epoch(ROW)
    records.steps(1, 0.5, 1e-4)
    records.trim(0)
    records.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_tensorboard(tmp_path, tiny, write):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    folder = run(write, tiny | {"tensorboard": True, "epoch_max": 2}, tmp_path)
    (path,) = (folder / "tensorboard").iterdir()
    found = {}
    for event in reading.LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(event.step)
    assert found["train/loss"] == found["train/lr"] == [1, 2, 3, 4]
    assert found["validation/psnr"] == found["validation/psnr_per_image"] == found["validation"] == [2, 4]


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="tensorboard: pip install tensorboard"):
        Records(tmp_path, True, True, 0)
    assert Records(tmp_path, None, True, 0).events is None
