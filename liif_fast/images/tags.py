"""Folders of tags as TIFF 6, BigTIFF and EXIF data have them: read as they are, written elsewhere with nothing lost."""

import os
import struct
from array import array
from collections.abc import Callable, Mapping
from typing import IO, NamedTuple, TypeAlias, Union

# Bytes of one value of each type, and of the words in it that follow the byte order.
_TYPES = {
    1: (1, 1), 2: (1, 1), 3: (2, 2), 4: (4, 4), 5: (8, 4), 6: (1, 1), 7: (1, 1), 8: (2, 2), 9: (4, 4), 10: (8, 4),
    11: (4, 4), 12: (8, 8), 13: (4, 4), 16: (8, 8), 17: (8, 8), 18: (8, 8),
}  # fmt: skip
_LONG, _LONG8 = 4, 16  # from LONG8 on BigTIFF only


class Value(NamedTuple):
    """One value: its type and count as TIFF 6 names them, its bytes in little-endian order."""

    kind: int
    number: int
    data: bytes

    @property
    def classic(self) -> bool:
        """Whether any TIFF can hold it, and not BigTIFF alone."""
        return self.kind < _LONG8


Folder: TypeAlias = Mapping[int, Union[Value, "Folder"]]


class Layout(NamedTuple):
    """How the numbers of a file are laid out: byte order, BigTIFF or not."""

    order: str = "<"
    big: bool = False

    @property
    def number(self) -> struct.Struct:
        """Of the entries, before the first of them."""
        return struct.Struct(f"{self.order}{'Q' if self.big else 'H'}")

    @property
    def offset(self) -> struct.Struct:
        """A place in the file."""
        return struct.Struct(f"{self.order}{'Q' if self.big else 'I'}")

    @property
    def entry(self) -> struct.Struct:
        """Tag, type, count, and the value, or the place where it is."""
        return struct.Struct(f"{self.order}{'HHQ8s' if self.big else 'HHI4s'}")


def open_first(file: IO[bytes]) -> tuple[Layout, int]:
    """The layout of a file, and where its first folder is.

    Raises:
        KeyError, struct.error: it is no TIFF, nor EXIF data.
    """
    head = _read(file, 0, 8)
    order = {b"II": "<", b"MM": ">"}[head[:2]]
    big = {42: False, 43: True}[struct.unpack_from(f"{order}H", head, 2)[0]]
    layout = Layout(order, big)
    return layout, layout.offset.unpack(_read(file, 8 if big else 4, layout.offset.size))[0]


def read_folder(file: IO[bytes], layout: Layout, at: int, wanted: Callable[[int], bool]) -> dict[int, Value]:
    """Some values of a folder, without those that are cut or of an unknown type.

    Together they are no longer than the file: entries that share their bytes would make much out of little.

    Args:
        file: to be read.
        layout: of the file.
        at: where the folder is.
        wanted: of a tag, whether to read it.

    Raises:
        struct.error: there is no folder.
    """
    count = layout.number.unpack(_read(file, at, layout.number.size))[0]
    if count > 0xFFFF:
        raise struct.error("too many entries")
    table = _read(file, at + layout.number.size, count * layout.entry.size)
    found, left = {}, file.seek(0, os.SEEK_END)
    for tag, kind, number, inside in layout.entry.iter_unpack(table):
        each, word = _TYPES.get(kind, (0, 1))
        size = each * number
        if each == 0 or size > left or not wanted(tag):
            continue
        try:
            data = inside[:size] if size <= len(inside) else _read(file, layout.offset.unpack(inside)[0], size)
        except struct.error:
            continue
        left -= size
        found[tag] = Value(kind, number, data if layout.order == "<" else _swapped(data, word))
    return found


def place_of(value: Value) -> int:
    """Where the folder is that a value names."""
    return int.from_bytes(value.data, "little")


def pack_folder(folder: Folder, at: int, layout: Layout) -> bytes:
    """A folder for this place of a little-endian file, with all that belongs to it right behind; none follows it."""
    behind_at = at + layout.number.size + len(folder) * layout.entry.size + layout.offset.size
    entries, behind = _entries(folder, behind_at, layout)
    return layout.number.pack(len(entries)) + b"".join(entries) + bytes(layout.offset.size) + behind


def add_to_first(file: IO[bytes], folder: Folder) -> None:
    """Give the first folder of a little-endian TIFF more tags: it moves to the end of the file, its values stay.

    Args:
        file: a whole TIFF, to be read and written; its first folder has none of the tags.
        folder: what to add.
    """
    layout, first = open_first(file)
    number = layout.number.unpack(_read(file, first, layout.number.size))[0]
    old = [file.read(layout.entry.size) for _ in range(number)]
    following = file.read(layout.offset.size)
    end = file.seek(0, os.SEEK_END)
    at = end + end % 2  # a folder begins at an even place
    size = layout.number.size + (len(old) + len(folder)) * layout.entry.size + layout.offset.size
    new, behind = _entries(folder, at + size, layout)
    table = sorted(old + new, key=lambda entry: struct.unpack_from("<H", entry))
    file.write(bytes(at - end) + layout.number.pack(len(table)) + b"".join(table) + following + behind)
    file.seek(8 if layout.big else 4)
    file.write(layout.offset.pack(at))


def _entries(folder: Folder, at: int, layout: Layout) -> tuple[list[bytes], bytes]:
    """The entries in the order of their tags, and what lies behind the folder from `at` on, at even places."""
    entries, behind = [], bytearray()
    for tag, value in sorted(folder.items()):
        here = at + len(behind)
        if isinstance(value, Value):
            kind, count, data = value
        else:
            kind, count, data = _LONG8 if layout.big else _LONG, 1, pack_folder(value, here, layout)
        if isinstance(value, Value) and len(data) <= layout.offset.size:
            inside = data
        else:
            inside = layout.offset.pack(here)
            behind += data + bytes(len(data) % 2)
        entries.append(layout.entry.pack(tag, kind, count, inside))
    return entries, bytes(behind)


def _read(file: IO[bytes], at: int, size: int) -> bytes:
    try:
        file.seek(at)
    except (OSError, ValueError, OverflowError) as error:  # further than any file goes
        raise struct.error(str(error)) from None
    data = file.read(size)
    if len(data) < size:
        raise struct.error("it ends too early")
    return data


def _swapped(data: bytes, word: int) -> bytes:
    words = array({1: "B", 2: "H", 4: "I", 8: "Q"}[word], data)
    words.byteswap()
    return words.tobytes()
