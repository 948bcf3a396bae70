"""Write what people read of a training: log.txt, log.csv, TensorBoard events and validation images."""

import contextlib
import csv
import io
import os
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from liif_fast.files import atomic_file

# epoch, optimizer steps so far, mean L1 loss of the epoch, validation PSNR in dB (pooled by batch, as the original
# reports it, and averaged over images), learning rate of the epoch's last step, seconds of training.
FIELDS = ("epoch", "steps", "loss", "psnr", "psnr_per_image", "lr", "seconds")


class Records:
    """The records of a run folder, written by the main process.

    `tensorboard` is True (raise ValueError if it is not installed), None (write events if it is) or False.
    """

    def __init__(self, folder: Path, tensorboard: bool | None, main: bool, steps: int) -> None:
        self.folder, self.main = folder, main
        self.events: Any = None
        if not main or tensorboard is False:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            if tensorboard:
                raise ValueError(f"tensorboard: pip install tensorboard ({error})") from None
            return
        self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=steps or None)

    def log(self, line: str) -> None:
        """Append a line to log.txt and print it."""
        if self.main:
            with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            with contextlib.suppress(OSError):  # the terminal may be closed
                tqdm.write(line)

    def steps(self, steps: int, loss: float, rate: float) -> None:
        """Record the loss and the learning rate of step number `steps`."""
        if self.events is not None:
            self.events.add_scalar("train/loss", loss, steps)
            self.events.add_scalar("train/lr", rate, steps)

    def epoch(self, record: dict[str, Any]) -> None:
        """Append an epoch's row to log.csv; fields missing from `record` stay empty."""
        if not self.main:
            return
        path = self.folder / "log.csv"
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(record)
            file.flush()
            os.fsync(file.fileno())
        if self.events is not None:
            for key in ("psnr", "psnr_per_image"):
                if key in record:
                    self.events.add_scalar(f"validation/{key}", record[key], record["steps"])
            self.events.flush()

    def image(self, image: Image.Image, name: str, steps: int) -> None:
        """Save a validation picture as `name`.png and as a TensorBoard image."""
        if not self.main:
            return
        with atomic_file(self.folder / f"{name}.png") as file:
            image.save(file, "PNG")
        if self.events is not None and name == "epoch-last":
            import numpy as np

            self.events.add_image("validation", np.asarray(image), steps, dataformats="HWC")

    def trim(self, epoch: int) -> None:
        """Drop the rows of log.csv after an epoch, and an incomplete one."""
        path = self.folder / "log.csv"
        if not self.main or not path.exists():
            return
        kept = [row for row in read_log(path) if row["epoch"] <= epoch]
        table = io.StringIO()
        writer = csv.DictWriter(table, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        with atomic_file(path) as file:
            file.write(table.getvalue().encode())

    def close(self) -> None:
        """Flush and close the event file."""
        if self.events is not None:
            self.events.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a log.csv without their empty fields; skip a row cut short by a kill."""
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise ValueError(f"{path}: not a training log: its first line must be {','.join(FIELDS)}")
        rows = []
        for values in reader:
            try:
                row = {key: int(v) if key in ("epoch", "steps") else float(v) for key, v in values.items() if v}
            except (TypeError, ValueError):
                continue
            if None not in values.values() and {"epoch", "steps", "loss", "lr", "seconds"} <= row.keys():
                rows.append(row)
        return rows
