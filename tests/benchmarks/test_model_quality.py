"""The documents show the measured figures of the shipped model, and these are good enough."""

import json
from pathlib import Path

import pytest

from benchmarks.model_quality import END, START, table

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "benchmarks/results/model_quality.json").read_text())
RESULTS = RECORD["results"]


@pytest.mark.parametrize("document", ["docs/evaluation.md", "liif_fast/assets/MODEL_CARD.md"])
def test_tables_are_those_of_the_record(document: str) -> None:
    written = (ROOT / document).read_text().split(START)[1].split(END)[0].strip()
    assert written == table(RESULTS, list(dict.fromkeys(r["scale"] for r in RESULTS)))


def test_the_record_is_of_whole_photographs_at_every_scale() -> None:
    assert RECORD["model"] == "edsr-small-liif.safetensors"
    assert RECORD["crop"] is None
    assert {2, 3, 4} <= {r["scale"] for r in RESULTS}
    assert len(RESULTS) == len({r["image"] for r in RESULTS}) * len({r["scale"] for r in RESULTS})


def test_the_model_is_better_than_bicubic() -> None:
    """It beats bicubic by 0.5 dB on average over scales 2, 3 and 4, and on every photograph from 2 to 4."""
    gains = {(r["image"], r["scale"]): r["model"] - r["bicubic"] for r in RESULTS}
    at_whole_scales = [gain for (_, scale), gain in gains.items() if scale in (2, 3, 4)]
    assert sum(at_whole_scales) / len(at_whole_scales) >= 0.5
    assert min(gain for (_, scale), gain in gains.items() if 2 <= scale <= 4) >= 0
