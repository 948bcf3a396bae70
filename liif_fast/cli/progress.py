"""Show progress and the remaining time, on a terminal only."""

import logging
import sys
from contextlib import ExitStack, suppress
from typing import Any

ENCODING = 0.2  # rough share of all work: 0.05 for the package's model, 0.5 for RDN at a scale of 4


class Bar:
    """One bar per image, weighted between encoding and rendering."""

    def __init__(self, label: str = "") -> None:
        self.label = label
        self.done = {"encode": 0.0, "render": 0.0}
        self.bar: Any = None
        self.open = ExitStack()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self.open.close()

    def update(self, stage: str, done: int, total: int) -> None:
        """Show the progress that `upscale` reports."""
        if sys.stderr is None or not sys.stderr.isatty():  # None if closed by `2>&-`
            return
        with suppress(OSError):  # a closed terminal must not end the work
            self._show(stage, done, total)

    def _show(self, stage: str, done: int, total: int) -> None:
        if self.bar is None:
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            form = "{desc}{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
            self.bar = self.open.enter_context(tqdm(total=1.0, desc=self.label, bar_format=form, leave=False))
            self.open.enter_context(logging_redirect_tqdm([logging.getLogger("liif_fast")]))  # notices above the bar
        self.done[stage] = done / max(total, 1)
        work = ENCODING * self.done["encode"] + (1 - ENCODING) * self.done["render"]
        if stage == "render":
            self.bar.set_postfix_str(f"row {done} of {total}", refresh=False)
        self.bar.update(min(work, 1.0) - self.bar.n)
