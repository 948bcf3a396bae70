"""Fetch free photographs for training from Debian's wallpaper packages, halve them, and list their licences.

    python -m benchmarks.wallpapers FOLDER

The script writes

* FOLDER/train and FOLDER/held-out, the pictures as PNG at half the size, so that few traces of JPEG are left;
* FOLDER/LICENCES.md, the author and licence of each picture;
* FOLDER/copyright, the packages' own files.

It needs Debian or a derivative, because `apt-get download` takes the packages from the system's mirror. It installs
nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from liif_fast.data.datasets import read_image
from liif_fast.data.resize import resize

GPL, BY, SA3, SA4, LGPL = "GPL-2+", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "LGPLv3"


class Picture(NamedTuple):
    """Describe a picture as its package does."""

    path: str  # below the package's folder
    author: str
    licence: str
    held_out: bool = False


class Package(NamedTuple):
    """Describe a Debian package, whose pictures are in a folder below /usr/share."""

    name: str
    folder: str
    pictures: tuple[Picture, ...]


PACKAGES = (
    Package(
        "lomiri-wallpapers-16.04",
        "backgrounds",
        (
            Picture("Bridge_by_Sander_Klootwijk.jpg", "Sander Klootwijk", SA4),
            Picture("Dragonfly_by_Bolly.jpg", "Bolly", SA4),
            Picture("Picture_0B_by_freespace.jpg", 'Trevor "Freespace"', BY),
            Picture("Picture_1A_by_freespace.jpg", 'Trevor "Freespace"', BY),
            Picture("Wine_by_Jakkub_Mede.jpg", "Jakub Mede", BY),
            Picture("aitzgorri_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", BY),
            Picture("free_by_Peter_Nerlich.jpg", "Peter Nerlich", SA4),
            Picture("friends_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", BY),
            Picture("greentock_by_Peter_Nerlich.jpg", "Peter Nerlich", SA4),
            Picture("life_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", BY),
            Picture("picosdeeuropa_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", BY, held_out=True),
            Picture("seeding_by_Clements_Engelhardt.jpg", "Clemens Engelhardt", "CC0-1.0"),
            Picture("sunset_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", BY),
        ),
    ),
    Package(
        "lomiri-wallpapers-20.04",
        "backgrounds",
        (Picture("Kleiber_by_Lukas_Baubkus.jpg", "Lukas Baubkus", SA3, held_out=True),),
    ),
    Package(
        "mate-backgrounds",
        "backgrounds/mate",
        (
            Picture("abstract/Elephants_3840x2160.jpg", "Wyng Stancikaite", GPL),
            Picture("nature/Blinds.jpg", "Lennart Poettering, Andrea Cimitan", GPL),
            Picture("nature/Dune.jpg", "Marco Cogoni, Hylke Bons", GPL),
            Picture("nature/Garden.jpg", "Charles Barbin", GPL),
            Picture("nature/LadyBird.jpg", "Charles Barbin", GPL, held_out=True),
            Picture("nature/RainDrops.jpg", "blackcombwhistler07", GPL),
            Picture("nature/Storm.jpg", "Sergey Nazarov", GPL),
            Picture("nature/TwoWings.jpg", "Charles Barbin, Hylke Bons", GPL),
            Picture("nature/Wood.jpg", "Jean-François Fortin Tam", GPL),
            Picture("nature/YellowFlower.jpg", "Charles Barbin", GPL),
        ),
    ),
    Package(
        "plasma-workspace-wallpapers",
        "wallpapers",
        (
            Picture("Autumn/contents/images/2560x1600.jpg", "RJ Quiralta", LGPL),
            Picture("BytheWater/contents/images/2560x1600.jpg", "Maciej Wiklo", LGPL),
            Picture("ColorfulCups/contents/images/2560x1600.jpg", "Dmitri Popov", LGPL),
            Picture("EveningGlow/contents/images/2560x1600.jpg", "Ian Hex", LGPL, held_out=True),
            Picture("FallenLeaf/contents/images/2560x1600.jpg", "Martin Klapetek", LGPL),
            Picture("Grey/contents/images/2560x1600.jpg", "Sigi Sagi", LGPL),
            Picture("Kite/contents/images/2560x1600.jpg", "Risto Saukonpää", LGPL),
            Picture("OneStandsOut/contents/images/2560x1600.jpg", "Risto Saukonpää", LGPL),
            Picture("Path/contents/images/2560x1600.jpg", "Risto Saukonpää", LGPL),
            Picture("Volna/contents/images/5120x2880.jpg", "Nikita Babin", SA4),
        ),
    ),
    Package("ukui-wallpapers", "backgrounds", (Picture("rhythm.jpg", "Ubuntu Kylin community", SA3),)),
)


def title(picture: Picture) -> str:
    """Return a picture's title: the name of its file, or of its folder if the file's name is only a size."""
    path = Path(picture.path)
    return path.parts[0] if "contents" in path.parts else path.stem


def fetch(package: Package, folder: Path) -> Path:
    """Download and unpack a package into a folder and return its /usr/share.

    Raises:
        RuntimeError: apt-get or dpkg-deb is missing, or fails.
    """
    for command in (["apt-get", "download", package.name], ["dpkg-deb", "-x", f"{package.name}_*.deb", package.name]):
        if shutil.which(command[0]) is None:
            raise RuntimeError(f"{command[0]}: not found; this script needs Debian or a derivative")
        words = [str(next(folder.glob(word))) if "*" in word else word for word in command]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}; try `apt-get update`")
    return folder / package.name / "usr" / "share"


def halved(path: Path) -> np.ndarray:
    """Read a picture at half its size, uint8 [H, W, 3]."""
    image = read_image(path)
    return resize(image, (image.shape[0] // 2, image.shape[1] // 2))


def write(out: Path) -> None:
    """Fetch every package and write the pictures and their licences into a folder."""
    lines = ["| picture | for | author | licence | package |", "|---|---|---|---|---|"]
    for name in ("train", "held-out", "copyright"):
        (out / name).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for package in PACKAGES:
            share = fetch(package, Path(folder))
            shutil.copy(share / "doc" / package.name / "copyright", out / "copyright" / package.name)
            for picture in package.pictures:
                use = "held-out" if picture.held_out else "train"
                Image.fromarray(halved(share / package.folder / picture.path)).save(
                    out / use / f"{title(picture)}.png", compress_level=1
                )
                lines.append(f"| {title(picture)} | {use} | {picture.author} | {picture.licence} | {package.name} |")
            print(f"{package.name}: {len(package.pictures)} pictures", file=sys.stderr)
    (out / "LICENCES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wallpapers", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
