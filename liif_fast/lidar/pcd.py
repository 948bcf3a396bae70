"""Read PCD, PCL's point clouds, in its forms ascii, binary and binary_compressed (LZF); write binary."""

from __future__ import annotations

import math
from typing import IO

import numpy as np

from liif_fast.lidar.parsing import numbers, value

_KINDS = {"F": "f", "I": "i", "U": "u"}
_NAMES = {kind: name for name, kind in _KINDS.items()}
MAX_HEADER = 1 << 16
MAX_COUNT = 1 << 16  # values of a point in one field


def read(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Read all fields with one value per point, [N] each; raise ValueError if the file is damaged or not a PCD."""
    header: dict[str, list[str]] = {}
    while "DATA" not in header:
        line = file.readline(MAX_HEADER)
        if not line or file.tell() > MAX_HEADER:
            raise ValueError("no DATA line: not a PCD file")
        words = line.decode("ascii", "replace").split("#")[0].split()
        if words:
            header[words[0].upper()] = words[1:]
    lacking = [key for key in ("FIELDS", "SIZE", "TYPE") if key not in header]
    if lacking:
        raise ValueError(f"its header has no {', '.join(lacking)}")
    names, sizes, kinds = header["FIELDS"], header["SIZE"], header["TYPE"]
    counts = _whole("COUNT", header.get("COUNT", ["1"] * len(names)))
    lengths = _whole("SIZE", sizes)
    if not len(names) == len(sizes) == len(kinds) == len(counts) or any(kind not in _KINDS for kind in kinds):
        raise ValueError("its header's FIELDS, SIZE, TYPE and COUNT do not fit together")
    number = math.prod(
        _whole(key, header[key][:1])[0] for key in (("POINTS",) if "POINTS" in header else ("WIDTH", "HEIGHT"))
    )
    if number < 0 or not all(1 <= each <= MAX_COUNT for each in counts):
        raise ValueError(f"its header's POINTS is negative, or a COUNT is not from 1 to {MAX_COUNT}")
    types = [
        value(np.dtype, "SIZE", f"<{_KINDS[kind]}{length}", "the size of a number")
        for kind, length in zip(kinds, lengths, strict=True)
    ]
    form = [(f"{i}", each, (counts[i],)) for i, each in enumerate(types)]
    layout, body = np.dtype(form), file.read()
    data = header["DATA"][0].lower() if header["DATA"] else ""
    if data == "ascii":
        table = _ascii(body, layout, number)
    elif data == "binary":
        table = np.frombuffer(_enough(body, number * layout.itemsize), layout, number)
    elif data == "binary_compressed":
        return _single(_columns(body, form, number), names, counts)
    else:
        raise ValueError(f"DATA must be ascii, binary or binary_compressed, got {data!r:.40}")
    return _single({f"{i}": table[f"{i}"] for i in range(len(names))}, names, counts)


def write(file: IO[bytes], table: np.ndarray) -> None:
    """Write a table of points, a structured array [N] in little-endian, as a binary PCD."""
    names = table.dtype.names or ()
    types = [table.dtype[name] for name in names]
    lines = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        f"FIELDS {' '.join(names)}",
        f"SIZE {' '.join(str(each.itemsize) for each in types)}",
        f"TYPE {' '.join(_NAMES[each.kind] for each in types)}",
        f"COUNT {' '.join('1' for _ in types)}",
        f"WIDTH {len(table)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(table)}",
        "DATA binary",
    ]
    file.write(("\n".join(lines) + "\n").encode("ascii"))
    file.write(table.tobytes())


def _whole(key: str, words: list[str]) -> list[int]:
    return [value(int, key, word, "a whole number") for word in words]


def _single(columns: dict[str, np.ndarray], names: list[str], counts: list[int]) -> dict[str, np.ndarray]:
    single = [i for i, count in enumerate(counts) if count == 1 and names[i] != "_"]
    return {names[i]: columns[f"{i}"][:, 0] for i in single}


def _enough(body: bytes, size: int) -> bytes:
    if len(body) < size:
        raise ValueError(f"cut short: {len(body)} bytes of data, {size} announced")
    return body


def _ascii(body: bytes, layout: np.dtype, number: int) -> np.ndarray:
    words = body.split()
    width = sum(layout[name].shape[0] for name in layout.names or ())
    if len(words) < number * width:
        raise ValueError(f"cut short: {len(words)} numbers, {number * width} announced")
    values = numbers(words[: number * width]).reshape(number, width)
    table, first = np.empty(number, layout), 0
    for name in layout.names or ():
        last = first + layout[name].shape[0]
        with np.errstate(invalid="ignore"):
            table[name] = values[:, first:last]
        first = last
    return table


def _columns(body: bytes, form: list[tuple[str, np.dtype, tuple[int]]], number: int) -> dict[str, np.ndarray]:
    """Unpack the compressed form, in which each field's values are contiguous."""
    packed, size = np.frombuffer(_enough(body, 8), "<u4", 2).tolist()
    wanted = number * sum(kind.itemsize * count[0] for _, kind, count in form)
    if size != wanted:
        raise ValueError(f"{size} bytes announced unpacked, {number} points need {wanted}")
    data, columns, first = lzf(_enough(body, 8 + packed)[8 : 8 + packed], size), {}, 0
    for name, kind, count in form:
        last = first + number * kind.itemsize * count[0]
        columns[name] = np.frombuffer(data[first:last], kind).reshape(number, *count)
        first = last
    return columns


def lzf(packed: bytes, size: int) -> bytes:
    """Unpack LZF (literal runs and copies of earlier output) to `size` bytes; raise ValueError for damaged data."""
    out, at, end = bytearray(), 0, len(packed)
    try:
        while at < end:
            control = packed[at]
            at += 1
            if control < 32:
                out += packed[at : at + control + 1]
                at += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[at]
                at += 1
            distance = ((control & 31) << 8) + packed[at] + 1
            at += 1
            first, length = len(out) - distance, length + 2
            if first < 0 or len(out) + length > size:
                raise ValueError("damaged: its compressed data do not unpack")
            piece = out[first : first + length]
            out += (piece * (length // len(piece) + 1))[:length]  # a copy may overlap its own output
    except IndexError:
        raise ValueError("damaged: its compressed data end too early") from None
    if len(out) != size:
        raise ValueError(f"damaged: {len(out)} bytes unpacked, {size} announced")
    return bytes(out)
