"""The demo runs on any image and writes its outputs."""

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

import liif_fast

DEMO = Path(liif_fast.__file__).parents[1] / "examples" / "demo.py"


@pytest.mark.skipif(not DEMO.is_file(), reason="the examples are in the source tree only")
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    Image.effect_noise((12, 10), 50).save(tmp_path / "noise.png")
    monkeypatch.setattr(demo, "SIZES", [*demo.SIZES[:3], ("30 wide", {"size": (30, None)})])
    monkeypatch.setattr(
        sys, "argv", ["demo.py", "--image", str(tmp_path / "noise.png"), "--out", str(tmp_path / "out")]
    )
    demo.main()
    out = capsys.readouterr().out
    assert "times as fast" in out
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").iterdir()}
    compare = sizes.pop("compare.png")
    assert min(compare) > 60
    assert sizes == {
        "noise-x2.png": (24, 20),
        "noise-x3.7.png": (44, 37),
        "noise-x6.png": (72, 60),
        "noise-30-wide.png": (30, 25),
    }
