"""Densify the point clouds of one topic in a ROS bag and copy everything else, through rosbags (extra [lidar])."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from liif_fast.files import reason
from liif_fast.lidar.scan import Scan, ScanFileError, from_fields, table_of

CLOUD = "sensor_msgs/msg/PointCloud2"
KINDS = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")  # PointField's datatypes 1 to 8
BAGS = (".bag", ".mcap")


def is_bag(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a bag of ROS 1 or 2, by its extension or as a folder with metadata.yaml."""
    path = Path(path)
    return path.suffix.lower() in BAGS or (path / "metadata.yaml").is_file()


def cloud(message: Any) -> Scan:
    """Return the points of a PointCloud2.

    Raises:
        ScanFileError: the message is damaged, or has no x, y and z.
    """
    names, formats, offsets = [], [], []
    for each in message.fields:
        if each.count == 1 and 1 <= each.datatype <= len(KINDS) and each.name not in names:
            names.append(each.name)
            formats.append((">" if message.is_bigendian else "<") + KINDS[each.datatype - 1])
            offsets.append(each.offset)
    step, count = int(message.point_step), int(message.width) * int(message.height)
    sizes = [offset + np.dtype(kind).itemsize for offset, kind in zip(offsets, formats, strict=True)]
    data = np.asarray(message.data, np.uint8)
    if max(sizes, default=0) > step or data.size < count * step or int(message.row_step) != step * int(message.width):
        raise ScanFileError("the fields, steps and data of a PointCloud2 do not fit together")
    layout = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": step})
    table = np.frombuffer(data.tobytes(), layout, count)
    return from_fields({name: table[name].astype(table.dtype[name].newbyteorder("=")) for name in names})


def message_of(types: Any, header: Any, points: np.ndarray, channels: dict[str, np.ndarray]) -> Any:
    """Return a PointCloud2 of points [N, 3] with their channels [N] under a given header."""
    table = table_of(points, channels)
    layout, field = table.dtype, types["sensor_msgs/msg/PointField"]
    fields = [
        field(name=name, offset=offset, datatype=1 + KINDS.index(kind.str[1:]), count=1)
        for name, (kind, offset, *_) in (layout.fields or {}).items()
    ]
    return types[CLOUD](
        header=header,
        height=1,
        width=len(points),
        fields=fields,
        is_bigendian=False,
        point_step=layout.itemsize,
        row_step=layout.itemsize * len(points),
        data=np.frombuffer(table.tobytes(), np.uint8),
        is_dense=bool(np.isfinite(points).all()),
    )


def densify_bag(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    topic: str | None,
    work: Callable[[Scan], tuple[np.ndarray, dict[str, np.ndarray]]],
) -> int:
    """Densify the clouds of a bag and return their number.

    Args:
        source: a `.bag` of ROS 1, an `.mcap`, or the folder of a bag of ROS 2.
        target: path of the same kind; replaced as a whole at the end, unchanged on any failure.
        topic: topic of the clouds; None if only one topic has clouds.
        work: maps a cloud to the points [N, 3] and the channels [N] of the dense one.

    Raises:
        ScanFileError: the bag cannot be read or has no such topic; the message names the bag.
        ImportError: rosbags is not installed.
        OSError: a file cannot be written.
    """
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.rosbag1 import Writer as Writer1
        from rosbags.rosbag2 import StoragePlugin
        from rosbags.rosbag2 import Writer as Writer2
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        raise ImportError("bags of ROS need rosbags: pip install liif-fast[lidar]") from None
    source, target = Path(source), Path(target)
    old = source.suffix.lower() == ".bag"
    if old != (target.suffix.lower() == ".bag"):
        raise ScanFileError(f"{target}: the output must be a bag of the same kind as {source.name}; choose such a name")
    room = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.part")
    part = room / target.name  # the files inside a bag that is a folder take its name
    room.mkdir()
    try:
        # The default, because bags of ROS 2 before Iron do not contain the definitions of their messages.
        with AnyReader([source], default_typestore=get_typestore(Stores.LATEST)) as reader:
            chosen = _topic(source, reader, topic)
            types = reader.typestore
            plain = target.suffix.lower() == ".mcap"
            plugin = StoragePlugin.MCAP if plain or _is_mcap(source) else StoragePlugin.SQLITE3
            with Writer1(part) if old else Writer2(part, version=9, storage_plugin=plugin) as writer:
                out = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=types) for c in reader.connections}
                serialize = types.serialize_ros1 if old else types.serialize_cdr
                count = 0
                for connection, timestamp, raw in reader.messages():
                    if connection.topic == chosen:
                        message: Any = reader.deserialize(raw, connection.msgtype)
                        dense = message_of(types.types, message.header, *work(cloud(message)))
                        raw, count = bytes(serialize(dense, connection.msgtype)), count + 1
                    writer.write(out[connection.id], timestamp, raw)
        _replace(part, target, plain and not old)
        return count
    except (OSError, ScanFileError, ImportError):
        raise
    except Exception as error:  # readers of damaged bags raise anything
        raise ScanFileError(f"{source}: {reason(error)}") from error
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _topic(source: Path, reader: Any, topic: str | None) -> str:
    clouds = sorted({each.topic for each in reader.connections if each.msgtype == CLOUD})
    if topic is None and len(clouds) == 1:
        return clouds[0]
    if topic is None or topic not in clouds:
        listed = ", ".join(clouds) or "none"
        raise ScanFileError(f"{source}: --topic must be one of its PointCloud2 topics ({listed}), got {topic}")
    return topic


def _is_mcap(source: Path) -> bool:
    return source.suffix.lower() == ".mcap" or any(source.glob("*.mcap"))


def _replace(part: Path, target: Path, inner: bool) -> None:
    """Move the bag to its place; with `inner`, only the .mcap file inside its folder."""
    if inner:
        (file,) = part.glob("*.mcap")
        os.replace(file, target)
    elif part.is_dir() and target.is_dir():
        os.replace(target, part.with_name("old"))  # deleted with its parent
        os.replace(part, target)
    else:
        os.replace(part, target)
