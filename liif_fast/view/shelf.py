"""Find the photographs that a server may show by their names, and encode answers as files."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from liif_fast.files import is_litter
from liif_fast.images import FORMATS, endings
from liif_fast.images.colour import COLOUR
from liif_fast.view.iiif import Identifier, RequestError, parse_identifier


class Entry(NamedTuple):
    """A photograph's file and its present state."""

    path: Path
    stamp: tuple[str | int, ...]  # equal as long as the file is: path, bytes, times in nanoseconds, and inode

    def tag(self, *parts: Any) -> str:
        """Return a validator (ETag) for an answer that is made from the file and the given parts."""
        return f'"{hashlib.sha256(repr((self.stamp, parts)).encode()).hexdigest()[:32]}"'


def served_name(path: Path) -> str:
    """Return the name under which a single file is served: in UTF-8, and none that an enlarged image could have."""
    name = os.fsencode(path.name).decode(errors="replace")
    return name if parse_identifier(name) == Identifier(name) else f"{name}.file"


class Shelf:
    """The photographs that are served: those of a folder, or one file.

    Args:
        root: the folder or the file.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        root = Path(root).resolve()
        self.only = served_name(root) if root.is_file() else None
        self.root = root
        self._endings = endings()

    def find(self, name: str) -> Entry:
        """Return the file of a name, which is its path in the folder with / between the parts.

        Hidden files, files without an image's ending, links that lead outside, and anything but regular files do not
        exist for a client.

        Raises:
            RequestError: there is none.
        """
        missing = RequestError(404, f"no photograph is called {name!r:.120}")
        parts = name.split("/")
        if self.only is not None:
            if name != self.only:
                raise missing
        elif "\\" in name or any(part in ("", "..") or is_litter(part) for part in parts):
            raise missing
        try:
            path = (self.root if self.only is not None else self.root.joinpath(*parts)).resolve(strict=True)
            status = path.stat()
        except (OSError, ValueError, RuntimeError):
            raise missing from None
        if not path.is_file() or (self.only is None and not self._serves(path, name)):
            raise missing
        # A copy that keeps the time of the file it replaces (`cp -p`, `tar`) has another time of status change.
        return Entry(
            path, (str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino)
        )

    def _serves(self, path: Path, name: str) -> bool:
        """Say whether a file in a folder, to which a name leads, is an image and neither outside nor hidden."""
        if not path.is_relative_to(self.root) or any(is_litter(part) for part in path.relative_to(self.root).parts):
            return False
        return Path(name).suffix.lower() in self._endings

    def names(self, most: int = 1000) -> list[str]:
        """Return the names of the photographs, folder by folder, up to a number of them."""
        if self.only is not None:
            return [self.only]
        found: list[str] = []
        for folder, folders, files in os.walk(self.root):
            folders[:] = sorted(each for each in folders if not is_litter(each))
            for file in sorted(files):
                name = (Path(folder) / file).relative_to(self.root).as_posix()
                try:
                    name.encode()  # no address can hold a name that is not UTF-8
                    self.find(name)
                except (RequestError, UnicodeEncodeError):
                    continue
                found.append(name)
                if len(found) == most:
                    return found
        return found


def encode(pixels: Any, kind: str, info: Mapping[Any, Any]) -> bytes:
    """Encode pixels [h, w, C] of uint8 or uint16 as an image file.

    PNG keeps 16 bits; JPEG and WebP have 8. JPEG has no alpha: visible colours are laid on white. WebP is lossless.

    Args:
        kind: jpg, png or webp.
        info: that of a `Picture`; the colour metadata that the format can store are kept.
    """
    import io

    import numpy as np

    from liif_fast.images.png import with_colour, write_png
    from liif_fast.images.writing import colours

    file = io.BytesIO()
    channels = pixels.shape[2]
    kept = colours(info, FORMATS[f".{kind}"], channels)
    if kind == "png" and pixels.dtype == np.uint16:
        write_png(file, [pixels], pixels.shape, 16, kept)
        return file.getvalue()
    chunks = kept.pop(COLOUR, {})
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else np.ascontiguousarray(pixels))
    if kind == "png":
        image.save(file, "PNG", compress_level=1, **kept)
        return with_colour(file.getvalue(), chunks)
    if kind == "webp":
        image.save(file, "WEBP", lossless=True, method=0, quality=0, exact=True, **kept)
    else:
        if channels in (2, 4):
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB" if channels == 4 else "L")
        image.save(file, "JPEG", quality=95, subsampling=0, **kept)
    return file.getvalue()
