"""The documents show the record's figures on Set5 and Set14, and the record is complete."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import set5_set14
from benchmarks.report import fill

RECORD = json.loads(set5_set14.RECORD.read_text())
WRITE = "run `python -m benchmarks.set5_set14 --measure FOLDER`"


def test_documents_are_what_the_record_says():
    text = set5_set14.EVALUATION.read_text()
    assert fill(text, set5_set14.SECTION, set5_set14.table(RECORD)) == text, WRITE
    assert f"\n{set5_set14.sentence(RECORD)}\n" in set5_set14.README.read_text(), WRITE


def test_the_record_has_every_image_of_every_set():
    found = {(each["model"], each["set"], each["scale"]): len(each["psnr"]) for each in RECORD["results"]}
    images = {"Set5": 5, "Set14": 14}
    assert found == {
        (model, name, scale): images[name] for model in set5_set14.MODELS for name, scale in set5_set14.COLUMNS
    }


@pytest.mark.parametrize(
    ("model", "expected"), [("bicubic", (33.66, 30.39, 28.42)), ("edsr-baseline-liif", (37.99, 34.40, 32.24))]
)
def test_known_figures_on_set5(model, expected):
    """Compare bicubic with the published figures of MATLAB's, and the authors' weights with another run."""
    for scale, value in zip((2, 3, 4), expected, strict=True):
        assert set5_set14.mean(RECORD["results"], model, "Set5", scale) == pytest.approx(value, abs=0.015)


def test_measuring(tmp_path, monkeypatch):
    """Compute a result from folders laid out like the sets."""
    monkeypatch.setattr(set5_set14, "COLUMNS", [("Set5", 2)])
    monkeypatch.setattr(set5_set14, "MODELS", ["bicubic"])
    for folder, side in (("LR_bicubic/X2", 12), ("HR_X2", 24)):
        path = tmp_path / "Set5" / folder / "img_001.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)).save(path)
    record = set5_set14.measure(tmp_path)
    (result,) = record["results"]
    assert (result["model"], result["set"], result["scale"]) == ("bicubic", "Set5", 2)
    assert 0 < result["psnr"]["img_001"] < 20
    known = [{**result, "psnr": {"img_001": 1.0}}, {**result, "model": "edsr-small-liif"}]
    again = set5_set14.measure(tmp_path, ["bicubic"], known)
    assert again["results"] == [known[1], result]  # measured anew in its place; the other one stays
