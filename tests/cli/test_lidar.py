"""Test `liif-fast lidar`: files and folders of scans, options, and one-line errors."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import liif_fast
from liif_fast.cli import main
from liif_fast.lidar import Sensor, unproject
from liif_fast.lidar.scan import read_scan, write_image, write_points
from liif_fast.models import make

LOW = Sensor(tuple(np.linspace(15, -15, 16)), 32)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a tiny ILN with random weights."""
    torch.manual_seed(0)
    limits = {"max_r": 80.0, "min_r": 0.0, "norm_r": 100.0, "max_v": 0.26, "min_v": -0.26, "max_h": 3.1, "min_h": -3.1}
    args = {"d": 0, "h": 2, "encoder_spec": {"name": "edsr-lidar", "args": {"n_resblocks": 1, "n_feats": 4}}}
    args["lidar_in"] = {**limits, "channels": 16, "points_per_ring": 32}
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    liif_fast.save_model(make({"name": "iln", "args": args}), path)
    return str(path)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Make a folder with a scan of every kind."""
    folder = tmp_path / "scans"
    folder.mkdir()
    ranges = np.random.default_rng(0).uniform(3, 60, (16, 32)).astype(np.float32)
    points, pixel = unproject(ranges, LOW)
    channels = {"intensity": np.linspace(0, 1, len(points), dtype=np.float32), "ring": (pixel // 32).astype(np.uint16)}
    for ending in ("bin", "pcd", "ply"):
        write_points(folder / f"{ending}_points.{ending}", points, channels)
    for ending in ("npy", "npz", "rimg"):
        write_image(folder / f"{ending}_image.{ending}", ranges, LOW)
    (folder / "notes.txt").write_text("no scan")
    (folder / ".hidden.bin").write_bytes(b"123")
    return folder


def test_every_kind_to_every_kind(scans: Path, network: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number, source in enumerate(sorted(scans.glob("*_*"))):
        for ending in ("pcd", "npz") if number else ("bin", "pcd", "ply", "npy", "npz", "rimg"):
            out = tmp_path / f"out.{ending}"
            sensor = "vlp-16" if source.suffix in (".npy", ".rimg", ".bin") else "auto"
            options = ["--lines", "x3", "--model", network, "--sensor", sensor, "--input-columns", "32", "--edge", "0"]
            assert main(["lidar", str(source), str(out), *options]) == 0
            made = read_scan(out)
            if made.ranges is not None:
                assert made.ranges.shape == (46, 32) and (made.ranges > 0).mean() > 0.9
            else:
                assert len(made.points) > 1000
            table = capsys.readouterr()
            assert "points in" in table.out and source.name in table.out and "sensor: " in table.err


def test_folders_formats_pictures_and_failures(scans: Path, network: str, tmp_path: Path, capsys) -> None:
    (scans / "broken.pcd").write_bytes(b"hello")
    out = tmp_path / "dense"
    options = ["--lines", "24", "--columns", "48", "--model", network, "--sensor", "vlp-16", "--format", "npz"]
    assert main(["lidar", str(scans), str(out), *options, "--png", "--bench"]) == 1
    err = capsys.readouterr().err
    assert "broken.pcd: no DATA line" in err and "6 written, 1 failed" in err and "model " in err
    assert len(list(out.glob("*.npz"))) == 6 and len(list(out.glob("*.npz.png"))) == 6
    assert read_scan(out / "bin_points.npz").ranges.shape == (24, 48)
    assert not list(out.glob(".*"))


def test_the_packages_own_model(scans: Path, tmp_path: Path) -> None:
    assert main(["lidar", str(scans / "npz_image.npz"), str(tmp_path / "a.ply"), "--lines", "x2"]) == 0
    assert len(read_scan(tmp_path / "a.ply").points) > 512


def test_the_beams_of_another_sensor_and_replacing(scans: Path, network: str, tmp_path: Path) -> None:
    out = tmp_path / "a.npz"
    assert main(["lidar", str(scans / "npz_image.npz"), str(out), "--beams", "os1-32", "--model", network]) == 0
    assert read_scan(out).beams.tolist() == list(Sensor.named("os1-32").beams)
    source, to = str(scans / "ply_points.ply"), str(tmp_path / "b.ply")
    assert main(["lidar", source, to, "--beams", str(out), "--replace", "--model", network, "--edge", "0"]) == 0
    assert not read_scan(to).channels["measured"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{scans}/none.bin", "{out}/a.bin", "--lines", "x2"], "none.bin: no such file"),
        (["{scans}/notes.txt", "{out}/a.bin", "--lines", "x2"], "notes.txt: unknown scan format"),
        (["{scans}", "{out}/a.bin", "--lines", "x2"], "names a file, but"),
        (["{out}", "{out}/b", "--lines", "x2"], "no scans in it"),
        (["{scans}/bin_points.bin", "{out}/a.xyz", "--lines", "x2"], "its extension is not a format"),
        (["{scans}/bin_points.bin", "{scans}/bin_points.bin", "--lines", "x2"], "is an input"),
        (["{scans}/bin_points.bin", "{scans}/", "--lines", "x2"], "is an input"),
        (["{scans}", "{out}/b", "--lines", "x2", "--sensor", "os9"], "no sensor is called 'os9'"),
        (["{scans}/npy_image.npy", "{out}/a.npz", "--lines", "x2"], "npy_image.npy: .* give --sensor"),
        (
            ["{scans}/bin_points.bin", "{out}/a.ply", "--lines", "x2", "--point-floats", "7"],
            "not a whole number of points",
        ),
        (["{scans}/npz_image.npz", "{out}/a.ply", "--lines", "x999"], "beams must be 1 to 4096"),
        (["{scans}/npz_image.npz", "{out}/a.ply", "--lines", "x2", "--format", "bin"], "--format names the files"),
        (["", "{out}/a.ply", "--lines", "x2"], "IN is empty"),
        (["{scans}/bin_points.bin", "{out}/a.ply", "--beams", ""], "no sensor is called ''"),
    ],
)
def test_one_line_for_what_is_wrong(options, message, scans, network, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    before = {path: path.read_bytes() for path in scans.iterdir()}
    filled = [each.format(scans=scans, out=out) for each in options]
    assert main(["lidar", *filled, "--model", network]) == 1
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1

    assert re.search(message, err), err
    assert not list(out.rglob("*.*")) and before == {path: path.read_bytes() for path in scans.iterdir()}


def test_usage(capsys: pytest.CaptureFixture, scans: Path, model: str, tmp_path: Path) -> None:
    for bad in (["--lines", "x0"], ["--lines", "many"], ["--lines", "2", "--beams", "os1-64"], []):
        assert main(["lidar", "a.bin", "b.bin", *bad]) == 2
    assert main(["lidar", "a.bin", "b.bin", "--lines", "4", "--edge", "3"]) == 2
    capsys.readouterr()
    assert main(["lidar", str(scans / "npz_image.npz"), str(tmp_path / "a.ply"), "--lines", "4", "--model", model]) == 1
    assert "expected a model for LiDAR" in capsys.readouterr().err
