"""Write and read scans in every format, and refuse other files."""

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest

from liif_fast.lidar import Sensor, pcd
from liif_fast.lidar.scan import ScanFileError, read_scan, write_image, write_points

RNG = np.random.default_rng(0)
POINTS = RNG.normal(0, 20, (57, 3)).astype(np.float32)
CHANNELS = {
    "intensity": RNG.random(57).astype(np.float32),
    "ring": RNG.integers(0, 300, 57).astype(np.uint16),
    "measured": RNG.integers(0, 2, 57).astype(np.uint8),
}


@pytest.mark.parametrize("ending", ["bin", "pcd", "ply"])
def test_points_there_and_back(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"scan.{ending}"
    write_points(path, POINTS, CHANNELS)
    scan = read_scan(path)
    assert np.array_equal(scan.points, POINTS)
    for name in ("intensity",) if ending == "bin" else CHANNELS:
        assert np.array_equal(scan.channels[name], CHANNELS[name])
    write_points(path, POINTS[:0], {name: values[:0] for name, values in CHANNELS.items()})
    assert len(read_scan(path).points) == 0


@pytest.mark.parametrize("ending", ["npy", "npz", "rimg"])
@pytest.mark.parametrize("beams", [(-3.0, 0.0, 5.0), (5.0, 0.0, -3.0)])
def test_images_there_and_back(ending: str, beams: tuple[float, ...], tmp_path: Path) -> None:
    ranges = RNG.uniform(1, 60, (3, 14)).astype(np.float16).astype(np.float32)
    ranges[1, 3] = 0
    path = tmp_path / f"scan.{ending}"
    write_image(path, ranges, Sensor(beams, 14))
    scan = read_scan(path)
    ascends = beams[0] < beams[1]
    flipped = (ending == "npz" and ascends) or (ending == "rimg" and not ascends)
    assert np.array_equal(scan.ranges, ranges[::-1] if flipped else ranges)
    if ending == "npz":
        assert scan.beams is not None and scan.beams.tolist() == [5, 0, -3]
    if ending == "rimg":  # ILN's authors store height, width, then half precision column by column
        raw = path.read_bytes()
        assert struct.unpack("<QQ", raw[:16]) == (3, 14)
        lowest = ranges if ascends else ranges[::-1]
        assert np.array_equal(np.frombuffer(raw[16:], "<f2")[:3], lowest[:, 0].astype(np.float16))


def test_other_bins_and_arrays(tmp_path: Path) -> None:
    five = np.column_stack((POINTS, CHANNELS["intensity"], CHANNELS["ring"])).astype("<f4")
    five.tofile(tmp_path / "a.pcd.bin")
    five.tofile(tmp_path / "b.bin")
    for scan in (read_scan(tmp_path / "a.pcd.bin"), read_scan(tmp_path / "b.bin", point_floats=5)):
        assert np.array_equal(scan.points, POINTS) and np.array_equal(scan.channels["ring"], CHANNELS["ring"])
    np.save(tmp_path / "points.npy", five[:, :4])
    assert np.array_equal(read_scan(tmp_path / "points.npy").points, POINTS)
    ranges = RNG.normal(0, 1, (4, 9))
    ranges[0, 0] = np.nan
    np.save(tmp_path / "image.npy", ranges)
    read = read_scan(tmp_path / "image.npy").ranges
    assert read is not None and read[0, 0] == 0 and (read >= 0).all()


def packed(data: bytes) -> bytes:
    """Pack LZF with copies only for runs of one byte, which overlap their own output."""
    out, at = bytearray(), 0
    while at < len(data):
        run = 1
        while at + run < len(data) and data[at + run] == data[at] and run < 200:
            run += 1
        if run > 4:
            out += bytes([0, data[at]])
            length = run - 1 - 2
            out += (
                bytes([(length << 5) if length < 7 else (7 << 5)])
                + (bytes([length - 7]) if length >= 7 else b"")
                + b"\0"
            )
            at += run
        else:
            out += bytes([0, data[at]])
            at += 1
    return bytes(out)


@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
def test_forms_of_pcd(data: str, tmp_path: Path) -> None:
    table = np.zeros(40, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("i", "<u1"), ("_", "<f4", (2,))])
    table["x"], table["y"], table["z"] = POINTS[:40].T
    table["i"] = 7
    header = "# .PCD\nVERSION 0.7\nFIELDS x y z i _\nSIZE 4 4 4 1 4\nTYPE F F F U F\nCOUNT 1 1 1 1 2\n"
    header += f"WIDTH 40\nHEIGHT 1\nPOINTS 40\nDATA {data}\n"
    if data == "ascii":
        rows = (
            f"{r['x']!r} {r['y']!r} {r['z']!r} {r['i']} 0 0".replace("np.float32(", "").replace(")", "") for r in table
        )
        body = "\n".join(rows).encode()
    elif data == "binary":
        body = table.tobytes()
    else:
        raw = b"".join(table[name].tobytes() for name in table.dtype.names)
        small = packed(raw)
        assert pcd.lzf(small, len(raw)) == raw and len(small) < 2 * len(raw)
        body = struct.pack("<II", len(small), len(raw)) + small
    (tmp_path / "a.pcd").write_bytes(header.encode() + body)
    scan = read_scan(tmp_path / "a.pcd")
    assert np.array_equal(scan.points, POINTS[:40]) and (scan.channels["intensity"] == 7).all()
    assert "_" not in scan.channels
    (tmp_path / "a.pcd").write_bytes(header.encode() + body[:-9])
    with pytest.raises(ScanFileError, match=r"a.pcd: (cut short|damaged)"):
        read_scan(tmp_path / "a.pcd")


@pytest.mark.parametrize("form", ["ascii", "binary_big_endian", "binary_little_endian"])
def test_forms_of_ply(form: str, tmp_path: Path) -> None:
    header = f"ply\nformat {form} 1.0\ncomment by hand\nelement vertex 5\nproperty double x\nproperty float y\n"
    header += "property float z\nproperty uchar reflectivity\nelement face 1\nproperty list uchar int vertex_indices\n"
    order = ">" if "big" in form else "<"
    table = np.zeros(5, [("x", f"{order}f8"), ("y", f"{order}f4"), ("z", f"{order}f4"), ("r", "u1")])
    table["x"], table["y"], table["z"] = POINTS[:5].T
    table["r"] = 9
    rows = "\n".join(f"{r['x']} {r['y']} {r['z']} {r['r']}" for r in table) + "\n3 0 1 2\n"
    body = rows.encode() if form == "ascii" else table.tobytes() + b"\3" + bytes(12)
    (tmp_path / "a.ply").write_bytes(header.encode() + b"end_header\n" + body)
    scan = read_scan(tmp_path / "a.ply")
    np.testing.assert_allclose(scan.points, POINTS[:5], rtol=1e-6)
    assert (scan.channels["intensity"] == 9).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"123", "not a whole number of points"),
        ("a.pcd", b"hello", "no DATA line"),
        ("a.pcd", b"FIELDS x y\nSIZE 4 4\nTYPE F F\nPOINTS 9\nDATA binary\n", "cut short"),
        ("a.pcd", b"FIELDS x y\nSIZE 4 4\nTYPE F F\nPOINTS 0\nDATA binary\n", "no field z"),
        ("a.pcd", b"FIELDS x\nSIZE 4 4\nTYPE F\nPOINTS 0\nDATA ascii\n", "do not fit together"),
        ("a.pcd", b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS -1\nDATA binary\n", "negative"),
        ("a.pcd", b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS 99999999999999\nDATA binary\n", "cut short"),
        ("a.pcd", b"FIELDS x\nSIZE 3\nTYPE F\nPOINTS 1\nDATA binary\n1234", "a.pcd: "),
        ("a.pcd", b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS 1\nDATA\n", "DATA must be ascii"),
        ("a.pcd", b"FIELDS x\nSIZE 4\nTYPE F\nDATA binary\n", "its header is damaged or lacks a part"),
        ("a.pcd", b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS\nDATA binary\n", "its header is damaged or lacks a part"),
        ("a.pcd", b"FIELDS x\nSIZE 4\nTYPE F\nCOUNT 1000000000\nPOINTS 1\nDATA binary\n", "not from 1 to 65536"),
        ("a.pcd", b"FIELDS x\nSIZE a\nTYPE F\nPOINTS 1\nDATA ascii\n", "SIZE must be a whole number, got 'a'"),
        ("a.pcd", b"FIELDS x\nSIZE 3\nTYPE F\nPOINTS 1\nDATA ascii\n", "SIZE must be the size of a number"),
        ("a.pcd", b"FIELDS x\nSIZE 4\nTYPE F\nCOUNT x\nPOINTS 1\nDATA ascii\n", "COUNT must be a whole number"),
        ("a.pcd", b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS nan\nDATA ascii\n", "POINTS must be a whole number, got 'nan'"),
        ("a.pcd", b"FIELDS x\nSIZE 4\nTYPE F\nWIDTH 1\nHEIGHT x\nDATA ascii\n", "HEIGHT must be a whole number"),
        ("a.pcd", b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS 1\nDATA ascii\nx", "number 1 of its data must be a number"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex x\nend_header\n", "element vertex must be a whole number"),
        (
            "a.ply",
            b"ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nend_header\n1 b\n",
            "number 2 of its data must be a number, got 'b'",
        ),
        ("a.ply", b"plywood", "not a PLY file"),
        ("a.ply", b"ply\nformat\nend_header\n", "its header is damaged or lacks a part"),
        (
            "a.ply",
            b"ply\nformat ascii 1.0\nelement vertex 9223372036854775808\nproperty float x\nend_header\n1",
            "cut short",
        ),
        ("a.ply", b"ply\nformat ascii 1.0\nelement face 3\nend_header\n", "not 'vertex'"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nend_header\n1 2", "cut short"),
        ("a.ply", b"ply\nformat odd 1.0\nelement vertex 3\nend_header\n", "not known"),
        (
            "a.ply",
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n",
            "expected a number",
        ),
        ("a.npy", b"123", "a.npy: "),
        ("a.npz", b"123", "a.npz: "),
        ("a.rimg", b"123", "do not make a .rimg"),
        ("a.rimg", struct.pack("<QQ", 1 << 62, 4), "do not make a .rimg"),
        ("a.xyz", b"", "unknown scan format"),
    ],
)
def test_what_is_no_scan_says_so_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanFileError, match=message) as caught:
        read_scan(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_in_other_parsers_is_no_damaged_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise KeyError("its own words")

    monkeypatch.setattr("liif_fast.lidar.scan._read_npy", fail)
    (tmp_path / "a.npy").touch()
    with pytest.raises(ScanFileError, match=r"a\.npy: 'its own words'"):
        read_scan(tmp_path / "a.npy")


def test_pickles_and_odd_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "b.npy", np.zeros((2, 3, 4)))
    np.savez(tmp_path / "c.npz", other=np.zeros(3))
    np.savez(tmp_path / "d.npz", range_m=np.zeros((3, 4)), altitude_deg=np.zeros(2))
    for name, message in (
        ("a.npy", "pickle"),
        ("b.npy", "H, W"),
        ("c.npz", "no range_m"),
        ("d.npz", "one value a row"),
    ):
        with pytest.raises(ScanFileError, match=message):
            read_scan(tmp_path / name)


def test_random_bytes_raise_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    good: dict[str, bytes] = {}
    for ending in ("pcd", "ply", "bin", "npz", "rimg"):
        path = tmp_path / f"a.{ending}"
        if ending in ("npz", "rimg"):
            write_image(path, np.ones((3, 8), np.float32), Sensor((0.0, 1.0, 2.0), 8))
        else:
            write_points(path, POINTS, CHANNELS)
        good[ending] = path.read_bytes()
    for _ in range(300):
        ending = str(rng.choice(list(good)))
        content = bytearray(good[ending])
        for _ in range(rng.integers(1, 6)):
            content[rng.integers(len(content))] = rng.integers(256)
        (tmp_path / f"b.{ending}").write_bytes(content[: rng.integers(len(content))] if rng.random() < 0.3 else content)
        with contextlib.suppress(ScanFileError):
            read_scan(tmp_path / f"b.{ending}")


def test_unpacking_never_makes_more_than_announced() -> None:
    assert pcd.lzf(b"\x02abc", 3) == b"abc"
    for bad in (b"\x02ab", b"\x20\xff", b"\x00a\xe0", b"\x00a\xe0\xff\x00"):
        with pytest.raises(ValueError, match="damaged"):
            pcd.lzf(bad, 3)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pcd"
    path.write_bytes(b"old")

    def fail(file: io.BytesIO, table: np.ndarray) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pcd, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        write_points(path, POINTS, CHANNELS)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
