"""Read the vertices of ascii and binary PLY files (Stanford polygon format); write binary little-endian."""

from __future__ import annotations

from typing import IO

import numpy as np

from liif_fast.lidar.parsing import numbers, value

_KINDS = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_KINDS |= {
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
MAX_HEADER = 1 << 16


def read(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Read the properties of all vertices, [N] each.

    Raises:
        ValueError: the file is damaged or not a PLY, or its first element is not the vertices.
    """
    if file.readline(MAX_HEADER).strip() != b"ply":
        raise ValueError("does not begin with 'ply': not a PLY file")
    form, elements = "", list[tuple[str, int]]()
    properties: list[tuple[str, str]] = []
    while True:
        line = file.readline(MAX_HEADER)
        if not line or file.tell() > MAX_HEADER:
            raise ValueError("no end_header: not a PLY file")
        words = line.decode("ascii", "replace").split()
        if words[:1] == ["end_header"]:
            break
        if words[:1] == ["format"]:
            form = words[1]
        elif words[:1] == ["element"]:
            elements.append((words[1], value(int, f"element {words[1]:.40}", words[2], "a whole number")))
        elif words[:1] == ["property"] and len(elements) == 1:
            if words[1] not in _KINDS:
                raise ValueError(f"a property of its vertices is {words[1]!r:.40}, expected a number")
            properties.append((words[2], _KINDS[words[1]]))
    if not elements or elements[0][0] != "vertex":
        raise ValueError("its first element is not 'vertex'")
    number = elements[0][1]
    order = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}.get(form)
    if order is None or number < 0:
        raise ValueError(f"its format {form!r:.40} is not known, or its number of vertices negative")
    layout = np.dtype([(f"{i}", order + kind) for i, (_, kind) in enumerate(properties)])
    body = file.read()
    if form == "ascii":
        announced = number * len(properties)
        words_of_all = body.split(maxsplit=min(announced, len(body)))[:announced]  # more than 2^63 is no count
        if len(words_of_all) < announced:
            raise ValueError(f"cut short: {len(words_of_all)} numbers, {announced} announced")
        values = numbers(words_of_all).reshape(number, len(properties))
        return {name: values[:, i].astype(kind) for i, (name, kind) in enumerate(properties)}
    if len(body) < number * layout.itemsize:
        raise ValueError(f"cut short: {len(body)} bytes of data, {number * layout.itemsize} announced")
    table = np.frombuffer(body, layout, number)
    return {name: table[f"{i}"].astype(kind) for i, (name, kind) in enumerate(properties)}


def write(file: IO[bytes], table: np.ndarray) -> None:
    """Write a table of points, a structured array [N] in little-endian."""
    names = table.dtype.names or ()
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    lines += [f"property {_NAMES[table.dtype[name].str[1:]]} {name}" for name in names]
    file.write(("\n".join([*lines, "end_header"]) + "\n").encode("ascii"))
    file.write(table.tobytes())
