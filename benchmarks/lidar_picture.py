"""Draw the pictures of docs/lidar.md: an OS1-128 scan with every fourth line kept, densified, and as measured.

python -m benchmarks.lidar_picture [MODEL]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.lidar_quality import ROOT, SHIPPED, read
from liif_fast import load_model
from liif_fast.lidar import Sensor, unproject
from liif_fast.lidar.densify import Densifier, colours
from liif_fast.lidar.scan import Scan

SIDE, REACH = 420, 35.0  # pixels per side of a view from above, and metres from its middle to its edge


def captioned(image: np.ndarray, text: str) -> np.ndarray:
    picture = Image.new("RGB", (image.shape[1], image.shape[0] + 16), "white")
    ImageDraw.Draw(picture).text((2, 2), text, fill="black")
    picture.paste(Image.fromarray(image), (0, 16))
    return np.asarray(picture)


def from_above(points: np.ndarray) -> np.ndarray:
    """Draw points by height, dark on white: [SIDE, SIDE, 3]."""
    picture = np.full((SIDE, SIDE, 3), 255, np.uint8)
    points = points[np.argsort(points[:, 2])]
    column, row = (np.floor((sign * points[:, i] / REACH + 1) * SIDE / 2).astype(int) for i, sign in ((0, 1), (1, -1)))
    inside = (column >= 0) & (column < SIDE) & (row >= 0) & (row < SIDE)
    height = np.clip((points[inside, 2] + 2) / 6, 0, 1)
    picture[row[inside], column[inside]] = np.stack((200 * height, 60 + 60 * height, 200 * (1 - height)), -1)
    return picture


def main() -> None:
    ranges, full = read("os1-128")
    low = full.every(4)
    model = load_model(sys.argv[1] if len(sys.argv) > 1 else SHIPPED)
    given = Scan(np.zeros((0, 3), np.float32), {}, ranges[::4], None)
    dense = Densifier(model, lambda own: Sensor(full.beams, own.columns, 0.3, 80.0), low)(given)
    kept = np.repeat(colours(ranges[::4]), 4, 0)
    rows = [
        captioned(kept, "32 lines of an OS1-128"),
        captioned(colours(dense.ranges), "128 lines by iln-small-streets, points at undecided edges left out"),
        captioned(colours(ranges), "the 128 lines that were measured"),
    ]
    folder = ROOT / "docs" / "images"
    save(np.concatenate(rows), folder / "lidar-range.png")
    views = [
        captioned(from_above(points), text)
        for points, text in (
            (unproject(ranges[::4], low)[0], "32 lines"),
            (dense.points, "made dense"),
            (unproject(ranges, full)[0], "measured, 128 lines"),
        )
    ]
    save(np.concatenate(views, 1), folder / "lidar-top.png")


def save(picture: np.ndarray, path: Path) -> None:
    Image.fromarray(picture).quantize(192).save(path, optimize=True)


if __name__ == "__main__":
    main()
