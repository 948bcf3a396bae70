"""Save a network of your own and upscale a picture with it, by the README's commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from liif_fast.cli import main

from .. import warm
from .support import ROOT, assert_one_line

README = ROOT / "README.md"
OWN = """
from torch import nn
from liif_fast import LIIF, models, save_model
from liif_fast.models.base import FeatureModel

@models.register("test-own-{number}")
class Own(FeatureModel):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 3, 1)

    def query_rgb(self, coord, cell=None):
        grid = coord.flip(-1)[:, None]
        return nn.functional.grid_sample(self.features(), grid, align_corners=False)[:, :, 0].mT
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder with the package importable as if installed."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return warm.run(*command, cwd=folder, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.skipif(not README.is_file(), reason="the README is in the source tree only")
def test_the_lines_of_the_readme(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = README.read_text(encoding="utf-8").split("<!-- begin:own-network -->")[1].split("<!-- end:own-network")[0]
    found = re.fullmatch(r"\s*```python\n(.*)```\n(.*)", text, re.DOTALL)
    assert found
    source, commands = found.groups()
    (tmp_path / "my_net.py").write_text(source)
    Image.open(photo).convert("RGB").save(tmp_path / "in.jpg")
    first, second = (line.split() for line in commands.split("\n    ")[1:])
    assert (first.pop(0), second.pop(0)) == ("python", "liif-fast")
    done = run(tmp_path, *first)
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.chdir(tmp_path)
    assert main([word for word in second if word not in ("--plugin", "my_net")]) == 1
    err = capsys.readouterr().err
    assert_one_line(err, "unknown name 'my-encoder'")
    assert "--plugin" in err
    done = run(tmp_path, "-m", "liif_fast", *second)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as out:
        assert out.size == (56, 40)


def test_plugins_of_all_commands(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of your own family has neither an encoder_spec nor a choice of backends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    save = ""
    for number in range(3):
        Path(f"own_{number}.py").write_text(OWN.format(number=number))
        save += (
            f"from own_{number} import *\nsave_model(models.make(dict(name='test-own-{number}')), 'own-{number}.pth')\n"
        )
    assert run(tmp_path, "-c", save).returncode == 0
    assert main(["upscale", str(photo), "out.png", "--scale=2", "--model=own-0.pth", "--plugin=own_0.py"]) == 0
    capsys.readouterr()
    Image.new("RGB", (80, 80), "red").save("red.png")
    assert main(["verify", "own-1.pth", "red.png", "--turns=1", "--plugin=own_1"]) == 0
    assert "own-1.pth: Own, 12 parameters" in capsys.readouterr().out
    monkeypatch.setenv("LIIF_FAST_MODELS", str(tmp_path))
    assert main(["models", "--plugin", "own_2"]) == 0
    assert "12 parameters, Own\n" in capsys.readouterr().out
    assert main(["models", "--plugin", "own_3"]) == 1
    assert_one_line(capsys.readouterr().err, "--plugin[0]: cannot import own_3: ModuleNotFoundError")
