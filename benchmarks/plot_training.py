"""Draw loss and validation PSNR of a training.

python benchmarks/plot_training.py save/_edsr-small-liif/log.jsonl curve.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="log.jsonl of a run folder")
    parser.add_argument("out", type=Path, help="PNG to write")
    args = parser.parse_args()

    records = [json.loads(line) for line in args.log.read_text().splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
    left.plot([r["steps"] for r in records], [r["loss"] for r in records])
    left.set(xlabel="step", ylabel="L1 loss")
    validated = [r for r in records if "psnr" in r]
    right.plot([r["steps"] for r in validated], [r["psnr"] for r in validated], color="tab:green")
    right.set(xlabel="step", ylabel="validation PSNR in dB")
    figure.savefig(args.out, dpi=90)


if __name__ == "__main__":
    main()
