"""What a training leaves for people: log.txt, log.csv, TensorBoard's events, and images of the validation."""

import contextlib
import csv
import io
import os
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from liif_fast.files import atomic_file

# epoch, steps of the optimizer in all, mean L1 loss of the epoch, validation PSNR in dB (pooled by batch as the
# original reports it, and the mean over images), learning rate of the epoch's last step, seconds of training.
FIELDS = ("epoch", "steps", "loss", "psnr", "psnr_per_image", "lr", "seconds")


class Records:
    """The records of a run folder, kept by the main process; TensorBoard's where it is installed, or demanded."""

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
            with contextlib.suppress(OSError):  # a terminal that has been closed
                tqdm.write(line)

    def steps(self, steps: int, loss: float, rate: float) -> None:
        """Record the loss of the last of so many steps."""
        if self.events is not None:
            self.events.add_scalar("train/loss", loss, steps)
            self.events.add_scalar("train/lr", rate, steps)

    def epoch(self, record: dict[str, Any]) -> None:
        """Record the figures of an epoch, by FIELDS; those that are absent stay empty."""
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
        """Keep a picture of the validation as a PNG of that name, and among TensorBoard's."""
        if not self.main:
            return
        with atomic_file(self.folder / f"{name}.png") as file:
            image.save(file, "PNG")
        if self.events is not None and name == "epoch-last":
            import numpy as np

            self.events.add_image("validation", np.asarray(image), steps, dataformats="HWC")

    def trim(self, epoch: int) -> None:
        """Drop the rows of log.csv beyond an epoch, and one that was not finished."""
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
        """Write what is not written yet."""
        if self.events is not None:
            self.events.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a log.csv, without empty fields; a row that a kill has cut is left out."""
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise ValueError(f"{path}: no log of a training: its first line must be {','.join(FIELDS)}")
        rows = []
        for values in reader:
            try:
                row = {key: int(v) if key in ("epoch", "steps") else float(v) for key, v in values.items() if v}
            except (TypeError, ValueError):
                continue
            if None not in values.values() and {"epoch", "steps", "loss", "lr", "seconds"} <= row.keys():
                rows.append(row)
        return rows
