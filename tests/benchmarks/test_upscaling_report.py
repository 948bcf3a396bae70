"""The script behind docs/upscaling.md makes one figure and one picture of each kind."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import upscaling_report

ROOT = Path(upscaling_report.__file__).resolve().parents[1]


def test_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upscaling_report, "RATIOS", (1.5, 6))
    monkeypatch.setattr(sys, "argv", ["upscaling_report", "--check", "--out", str(tmp_path)])
    upscaling_report.main()
    text = (tmp_path / "figures.md").read_text()
    assert "| 40x30 | x2 | 80x60 |" in text
    assert "| bf16 |" in text
    assert "agree: errors within" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "photo.png", "upscaling-ratios.png", "upscaling-tiles.png"
    }  # fmt: skip
    assert min(Image.open(tmp_path / "upscaling-ratios.png").size) > 60


def test_fill(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("before\n<!-- begin:x -->\nold\n<!-- end:x -->\nafter\n")
    for _ in range(2):
        upscaling_report.fill(path, "x", "new")
        assert path.read_text() == "before\n<!-- begin:x -->\nnew\n<!-- end:x -->\nafter\n"


def test_the_documents_have_the_blocks() -> None:
    for name, block in (("docs/backends.md", "verify"), ("docs/upscaling.md", "figures")):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert text.count(f"<!-- begin:{block} -->") == text.count(f"<!-- end:{block} -->") == 1
