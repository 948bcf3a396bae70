import builtins

import pytest
from PIL import Image

from liif_fast.cli import main
from liif_fast.train.plot import plot
from liif_fast.train.records import FIELDS

HEAD = ",".join(FIELDS) + "\n"
ROWS = "1,100,0.09,20.5,21.0,0.0001,3.5\n2,200,0.08,,,0.0001,3.4\n3,300,0.05,25.5,26.0,5e-05,3.4\n"


def test_a_picture_of_the_run_folder(tmp_path, capsys):
    (tmp_path / "log.csv").write_text(HEAD + ROWS)
    assert main(["plot", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'curves.png'}\n"
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1100, 300)
        assert len(set(image.convert("L").tobytes())) > 20


def test_what_is_drawn(tmp_path):
    """A single row, no validation, and a second file change the picture."""
    pictures = set()
    for i, rows in enumerate((ROWS, ROWS.splitlines()[0], "1,100,0.09,,,0.0001,3.5")):
        log = tmp_path / f"{i}.csv"
        log.write_text(HEAD + rows)
        out = plot(log, tmp_path / f"{i}.png")
        pictures.add(out.read_bytes())
    assert len(pictures) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no training log here"),
        (HEAD, "no epoch is complete yet"),
        ("a,b\n1,2\n", "not a training log: its first line must be epoch,steps,loss"),
        ("", "not a training log"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(tmp_path, content, message, capsys):
    if content is not None:
        (tmp_path / "log.csv").write_text(content)
    assert main(["plot", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "curves.png").exists()


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    (tmp_path / "log.csv").write_text(HEAD + ROWS)
    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["plot", str(tmp_path)]) == 1
    assert "plotting needs matplotlib: pip install" in capsys.readouterr().err
