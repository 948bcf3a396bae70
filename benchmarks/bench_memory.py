"""Peak memory of rendering a large image, each variant in a process of its own (benchmarks/peak.py)."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.common import EAGER, FACTORISED, OURS, ROOT
from benchmarks.peak import CLEAR_REFS


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="needs Linux's /proc to measure a peak")
@pytest.mark.parametrize("latents", [188, 375])
def test_memory(latents: int, pick: Callable[..., Any], report: Callable[[dict[str, Any]], None]) -> None:
    side = pick(latents, latents // 3, latents // 20)
    size = 4 * side
    figures = {}
    for name in (OURS, FACTORISED, EAGER):
        command = [sys.executable, "-m", "benchmarks.peak", name, str(side), str(torch.get_num_threads())]
        answer = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
        mib = {key: round(answer[key] / 2**20, 1) for key in ("beyond_output", "p")}
        once = dict.fromkeys(("q20", "median", "q80"), mib["beyond_output"])
        figures[name] = {**once, "p": mib["p"], "error": answer["error"]}
    for name in (FACTORISED, EAGER):
        ratio = float(f"{figures[name]['median'] / max(figures[OURS]['median'], 0.1):.4g}")
        figures[name]["ratio"] = dict.fromkeys(("q20", "median", "q80"), ratio)
    title = f"memory beyond the output, render x4 of {size}x{size}"
    report({"name": f"memory-{latents}", "title": title, "unit": "MiB", "rounds": 1, "figures": figures, "missing": {}})
