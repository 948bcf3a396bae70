"""Write and read bags of ROS 1 and 2, and refuse damaged messages."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from liif_fast.lidar.bags import cloud, densify_bag, is_bag
from liif_fast.lidar.scan import ScanFileError

needs_rosbags = pytest.mark.skipif(
    importlib.util.find_spec("rosbags") is None, reason="needs rosbags (pip install liif-fast[lidar])"
)
POINTS = np.random.default_rng(0).normal(0, 9, (20, 3)).astype(np.float32)


def message(**changes):
    """Return a PointCloud2 of big-endian points with a gap, an intensity and a field of three values."""
    layout = np.dtype(
        {
            "names": ["z", "x", "y", "intensity"],
            "formats": [">f4", ">f4", ">f8", ">u2"],
            "offsets": [0, 4, 8, 20],
            "itemsize": 40,
        }
    )
    table = np.zeros(20, layout)
    table["x"], table["y"], table["z"] = POINTS.T
    table["intensity"] = np.arange(20)
    fields = [("z", 0, 7, 1), ("x", 4, 7, 1), ("y", 8, 8, 1), ("intensity", 20, 4, 1), ("normal", 24, 7, 3)]
    whole = {
        "fields": [SimpleNamespace(name=n, offset=o, datatype=d, count=c) for n, o, d, c in fields],
        "is_bigendian": True,
        "point_step": 40,
        "row_step": 400,
        "width": 10,
        "height": 2,
        "data": np.frombuffer(table.tobytes(), np.uint8),
    }
    return SimpleNamespace(**{**whole, **changes})


def test_points_of_a_message() -> None:
    scan = cloud(message())
    assert np.array_equal(scan.points, POINTS) and list(scan.channels) == ["intensity"]
    assert np.array_equal(scan.channels["intensity"], np.arange(20))


@pytest.mark.parametrize(
    "changes", [{"point_step": 10}, {"data": np.zeros(5, np.uint8)}, {"row_step": 3}, {"width": 999}]
)
def test_a_damaged_message(changes: dict) -> None:
    with pytest.raises(ScanFileError, match="do not fit together"):
        cloud(message(**changes))
    with pytest.raises(ScanFileError, match="no field x, y, z"):
        cloud(message(fields=[]))


def write(path: Path, topics: tuple[str, ...]) -> None:
    """Write a bag with two clouds in each topic, and a string."""
    from rosbags.rosbag1 import Writer as Writer1
    from rosbags.rosbag2 import StoragePlugin
    from rosbags.rosbag2 import Writer as Writer2
    from rosbags.typesys import Stores, get_typestore

    from liif_fast.lidar.bags import CLOUD, message_of

    old = path.suffix == ".bag"
    store = get_typestore(Stores.ROS1_NOETIC if old else Stores.LATEST)
    time = store.types["builtin_interfaces/msg/Time"](sec=7, nanosec=9)
    number = {"seq": 3} if old else {}
    header = store.types["std_msgs/msg/Header"](stamp=time, frame_id="velodyne", **number)
    serialize = store.serialize_ros1 if old else store.serialize_cdr
    plugin = StoragePlugin.MCAP if path.suffix == ".mcap" else StoragePlugin.SQLITE3
    folder = path.with_suffix(".d") if path.suffix == ".mcap" else path
    with Writer1(folder) if old else Writer2(folder, version=9, storage_plugin=plugin) as writer:
        text = writer.add_connection("/note", "std_msgs/msg/String", typestore=store)
        writer.write(text, 5, serialize(store.types["std_msgs/msg/String"](data="hello"), "std_msgs/msg/String"))
        for topic in topics:
            connection = writer.add_connection(topic, CLOUD, typestore=store)
            for number in range(2):
                made = message_of(
                    store.types, header, POINTS[: 10 + number], {"ring": np.arange(10 + number).astype("<u2")}
                )
                writer.write(connection, 10 + number, serialize(made, CLOUD))
    if path.suffix == ".mcap":
        next(folder.glob("*.mcap")).rename(path)


def doubled(scan) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return np.concatenate((scan.points, scan.points * 2)), {"ring": np.tile(scan.channels["ring"], 2)}


@needs_rosbags
@pytest.mark.parametrize("name", ["a.bag", "a.mcap", "folder"])
def test_bags_there_and_back(name: str, tmp_path: Path) -> None:
    from rosbags.highlevel import AnyReader

    source, target = tmp_path / name, tmp_path / f"dense_{name}"
    write(source, ("/points",))
    assert is_bag(source)
    for _ in range(2):  # the second time it is replaced
        assert densify_bag(source, target, None, doubled) == 2
    with AnyReader([target]) as reader:
        found = [(c.topic, t, reader.deserialize(raw, c.msgtype)) for c, t, raw in reader.messages()]
    assert [(topic, time) for topic, time, _ in found] == [("/note", 5), ("/points", 10), ("/points", 11)]
    assert found[0][2].data == "hello" and found[1][2].header.frame_id == "velodyne"
    scan = cloud(found[2][2])
    assert np.array_equal(scan.points, np.concatenate((POINTS[:11], POINTS[:11] * 2)))
    assert np.array_equal(scan.channels["ring"], np.tile(np.arange(11), 2))
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith(".")) == []


@needs_rosbags
def test_topics_kinds_and_failures_leave_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "a.bag", tmp_path / "b.bag"
    write(source, ("/one", "/two"))
    for topic in (None, "/three"):
        with pytest.raises(ScanFileError, match=r"a\.bag: --topic must be one of .*\(/one, /two\)"):
            densify_bag(source, target, topic, doubled)
    with pytest.raises(ScanFileError, match=r"the same kind as a\.bag"):
        densify_bag(source, tmp_path / "b.mcap", "/one", doubled)

    def fails(scan):
        raise ValueError("no beams can be told apart")

    with pytest.raises(ScanFileError, match=r"a\.bag: no beams can be told apart"):
        densify_bag(source, target, "/one", fails)
    (tmp_path / "c.bag").write_bytes(b"#ROSBAG V2.0\nrubbish")
    with pytest.raises(ScanFileError, match=r"c\.bag: "):
        densify_bag(tmp_path / "c.bag", target, None, doubled)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.bag", "c.bag"]


@pytest.mark.skipif(importlib.util.find_spec("rosbags") is not None, reason="rosbags is installed")
def test_without_rosbags_the_message_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"pip install liif-fast\[lidar\]"):
        densify_bag(tmp_path / "a.bag", tmp_path / "b.bag", None, doubled)
