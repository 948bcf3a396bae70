"""The documents show the measured figures of the model for compressed pictures, and these are good enough."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import model_scores
from benchmarks.model_scores import QUALITIES, RECORD, SCALES, SECTION, jpeg_table
from benchmarks.report import fill
from liif_fast.models.catalogue import SHIPPED, SHIPPED_PHOTO

RESULTS = json.loads(RECORD.read_text())["results"]


@pytest.mark.parametrize("document", model_scores.DOCUMENTS, ids=lambda path: path.name)
def test_documents_are_what_the_record_says(document):
    text = document.read_text()
    assert fill(text, SECTION, jpeg_table(json.loads(RECORD.read_text()))) == text


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("quality", [quality for quality in QUALITIES if quality])
def test_it_is_better_on_compressed_photographs(quality, scale):
    key = f"JPEG {quality} x{scale}"
    assert RESULTS[SHIPPED_PHOTO][key] > max(RESULTS["bicubic"][key], RESULTS[SHIPPED][key])


@pytest.mark.parametrize("scale", SCALES)
def test_it_loses_little_on_clean_ones(scale):
    key = f"photographs x{scale}"
    assert RESULTS[SHIPPED_PHOTO][key] >= RESULTS[SHIPPED][key] - 0.4


@pytest.mark.parametrize("model", [SHIPPED, SHIPPED_PHOTO])
def test_text_stays_at_scale_1(model):
    """A page that is not enlarged comes back as it was."""
    pages = {key: value for key, value in RESULTS[model].items() if key.startswith("text: ") and key.endswith(" x1")}
    assert len(pages) == len(model_scores.PAGES) + 1
    assert min(pages.values()) >= 36


def test_measuring_and_drawing(tmp_path, monkeypatch):
    """From an image to a figure and a picture, by bicubic interpolation."""
    high = np.asarray(Image.radial_gradient("L").resize((24, 24)).convert("RGB"))
    case = model_scores.Case(
        "JPEG 50", 2, "a b", model_scores.compressed(model_scores.reduced(high, 2), 50), high, True
    )
    monkeypatch.setattr(model_scores, "cases", lambda wallpapers: iter([case]))
    means, shown = model_scores.measure("bicubic", None, None)
    assert 20 < means["JPEG 50 x2"] < 50
    assert model_scores.table({"bicubic": means}).splitlines()[2].startswith("| JPEG 50 x2 | ")
    model_scores.draw(tmp_path, {"bicubic": shown}, None)
    with Image.open(tmp_path / "JPEG-50-x2-a-b.png") as sheet:
        assert sheet.size == (3 * 28 - 4, 24)
