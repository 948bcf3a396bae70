"""Plot loss, validation PSNR and learning rate by step from a training's log.csv."""

from pathlib import Path

from liif_fast.files import atomic_file
from liif_fast.train.records import read_log


def plot(run: str | Path, out: str | Path | None = None) -> Path:
    """Draw the curves of a run folder or a log.csv as a PNG (default: curves.png beside the log) and return its path.

    Raises:
        FileNotFoundError: there is no log.
        ValueError: the file is not a training log, or no epoch is complete yet.
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot, which looks for a screen
    except ImportError:
        raise ImportError("plotting needs matplotlib: pip install 'liif-fast[train]'") from None
    log = Path(run)
    log = log / "log.csv" if log.is_dir() else log
    if not log.is_file():
        raise FileNotFoundError(f"{log}: no training log here; expected a run folder or its log.csv")
    rows = read_log(log)
    if not rows:
        raise ValueError(f"{log}: no epoch is complete yet")
    target = log.with_name("curves.png") if out is None else Path(out)

    figure = Figure(figsize=(11, 3), dpi=100, layout="constrained")
    panels = figure.subplots(1, 3)
    marker = "o" if len(rows) == 1 else None
    for axes, (key, label) in zip(
        panels, (("loss", "L1 loss"), ("psnr", "validation PSNR in dB"), ("lr", "learning rate")), strict=True
    ):
        known = [row for row in rows if key in row]
        axes.plot([row["steps"] for row in known], [row[key] for row in known], color="black", marker=marker)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        if key == "lr":
            axes.set_ylim(bottom=0)
            axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        if not known:
            axes.text(0.5, 0.5, "no validation", ha="center", va="center", transform=axes.transAxes)
    best = max((row for row in rows if "psnr" in row), key=lambda row: row["psnr"], default=None)
    if best is not None:
        panels[1].plot([best["steps"]], [best["psnr"]], "o", color="black")
        panels[1].set_title(f"best: {best['psnr']:.2f} dB, epoch {best['epoch']}", fontsize="medium")
    with atomic_file(target) as file:
        figure.savefig(file, format="png")
    return target
