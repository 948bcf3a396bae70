"""Test the messages of `liif-fast upscale` on a terminal, and on streams that are closed or break."""

import errno
import functools
import io
import logging
import os
import re
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from liif_fast.cli import main
from liif_fast.cli.progress import Bar
from liif_fast.upscaling import strips

from .test_upscale import run


def test_progress_bar_on_a_terminal_only(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    args = (photo, tmp_path / "out.png", "--scale", 2, "--model", model)
    assert run(capsys, *args)[1] == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(strips, "STRIP_QUERIES", 30)
    monkeypatch.setattr(tqdm, "__init__", functools.partialmethod(tqdm.__init__, mininterval=0))
    err = run(capsys, *args)[1]
    assert re.search(r"row \d+ of 20", err)
    assert re.search(r"\d\d:\d\d left", err)
    fractions = [int(found) for found in re.findall(r"(\d+)%", err)]
    assert fractions == sorted(fractions)
    assert max(fractions) > 50


@pytest.mark.parametrize("after", [0, 3])
def test_a_terminal_that_goes_takes_no_image_along(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, model: str, after: int
) -> None:
    """Under nohup a connection may break, so that the bar cannot be drawn any more."""

    class Terminal(io.StringIO):
        calls = 0

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            self.calls += 1
            if self.calls > after:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return len(text)

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(tqdm, "__init__", functools.partialmethod(tqdm.__init__, mininterval=0))
    handlers = list(logging.getLogger("liif_fast").handlers)
    for target in ("one.png", "two.png"):
        assert main(["upscale", str(photo), str(tmp_path / target), "--scale=2", f"--model={model}"]) == 0
        assert (tmp_path / target).exists()
    assert main(["upscale", "missing.png", str(tmp_path / "no.png"), "--scale=2", f"--model={model}"]) == 1
    assert logging.getLogger("liif_fast").handlers == handlers


def test_closed_stderr(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    """After `2>&-` Python's stderr is None."""
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["upscale", str(photo), str(tmp_path / "out.png"), "--scale=2", f"--model={model}"]) == 0
    assert (tmp_path / "out.png").exists()
    assert main(["upscale", "missing.png", str(tmp_path / "out.png"), "--scale=2", f"--model={model}"]) == 1
    assert capsys.readouterr().out == ""


def test_a_notice_does_not_break_the_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The bar is erased, the notice printed on its own line, and the bar drawn below; then logging is restored."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(tqdm, "__init__", functools.partialmethod(tqdm.__init__, ncols=60, mininterval=0))
    logger, handler = logging.getLogger("liif_fast"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("liif-fast: %(message)s"))
    monkeypatch.setattr(logger, "handlers", [handler])
    with Bar("photo ") as bar:
        bar.update("render", 1, 10)
        logger.warning("mind this")
        bar.update("render", 9, 10)
    assert logger.handlers == [handler]
    before, after = capsys.readouterr().err.split("liif-fast: mind this\n")
    assert before.endswith(" \r")
    assert "photo " in before
    assert "row 9 of 10" in after
