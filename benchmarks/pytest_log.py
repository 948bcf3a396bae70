"""Log the beginning and the end of each test, as a pytest plugin, so that a test that hangs or dies is known.

LIIF_FAST_TEST_LOG=FILE python -m pytest -p benchmarks.pytest_log ...
"""

import json
import os
from pathlib import Path
from typing import Any


def _write(**line: str) -> None:
    with open(os.environ["LIIF_FAST_TEST_LOG"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(test=nodeid, outcome="running")


def pytest_runtest_logreport(report: Any) -> None:
    if report.outcome == "skipped":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _write(test=report.nodeid, outcome="skipped", why=reason.removeprefix("Skipped: "))
    elif report.outcome == "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        _write(test=report.nodeid, outcome="failed", why=(crash.message if crash else str(report.longrepr))[:400])
    elif report.when == "call":
        _write(test=report.nodeid, outcome="passed")


def pytest_collectreport(report: Any) -> None:
    if report.outcome == "failed":
        _write(test=report.nodeid, outcome="failed", why=str(report.longrepr)[-400:])


def read(path: Path) -> dict[str, Any]:
    """Return the number passed, the reasons of tests that failed or never ended, and the number skipped by reason."""
    found: dict[str, Any] = {"passed": 0, "failed": {}, "skipped": {}}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    last = {line["test"]: line for line in (json.loads(each) for each in lines if each.endswith("\n"))}
    for line in last.values():
        if line["outcome"] == "passed":
            found["passed"] += 1
        elif line["outcome"] == "skipped":
            found["skipped"][line["why"]] = found["skipped"].get(line["why"], 0) + 1
        else:
            found["failed"][line["test"]] = line.get("why", "did not end")
    return found
