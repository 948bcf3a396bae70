"""Compare sensors, projection and scores with numbers computed by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from liif_fast.lidar import Sensor, project, scores, unproject
from liif_fast.lidar.detection import detect
from liif_fast.lidar.sensor import _table

UNEVEN = Sensor((-10.0, -4.0, -1.0, 0.0, 2.5), 36, name="uneven")


def test_named_sensors_have_their_beams() -> None:
    vlp = Sensor.named("VLP-16")
    assert vlp.lines == 16 and vlp.beams[0] == -15 and vlp.beams[-1] == 15
    assert Sensor.named("os1-32").beams == Sensor.named("os1-128").beams[::4]
    assert Sensor.named("hdl-64e").lines == 64 and Sensor.named("vlp-32c").lines == 32
    assert Sensor.named("puck-hi-res").lines == 16 and Sensor.named("vlp-32a").lines == 32
    vls = Sensor.named("vls-128")
    assert (vls.lines, vls.beams[0], vls.beams[-1]) == (128, -25, 15)
    assert np.diff(vls.beams).min() == pytest.approx(0.11) and np.diff(vls.beams).max() > 5  # dense at the horizon
    for name in ("os3-128", "os1-0", "os1-77", "", "vlp"):
        with pytest.raises(ValueError, match="no sensor is called"):
            Sensor.named(name)


def test_every_named_sensor_states_its_source_and_is_documented() -> None:
    known = {name: entry for name, entry in _table().items() if not name.startswith("os")}
    assert all(entry["source"] for entry in _table().values())
    text = (Path(__file__).parents[2] / "docs" / "lidar.md").read_text()
    assert [name for name in known if f"`{name}`" not in text] == []


def test_a_row_is_a_place_in_beam_index_whatever_the_spacing() -> None:
    for sensor in (UNEVEN, Sensor(UNEVEN.beams[::-1], 36)):
        np.testing.assert_allclose(sensor.row_of(sensor.elevations), np.arange(5), atol=1e-12)
        rows = np.array([-0.5, 0.25, 1.5, 3.9, 4.5])
        np.testing.assert_allclose(sensor.row_of(sensor.elevation_of(rows)), rows, atol=1e-12)
    assert UNEVEN.row_of(np.radians(-7.0)) == pytest.approx(0.5)
    assert Sensor((3.0,), 4).row_of(Sensor((3.0,), 4).elevations) == 0


def test_an_even_table_gives_the_queries_of_ilns_authors() -> None:
    """Check row = (v - (min_v - res/2)) / ((max_v + res/2) - (min_v - res/2)) * 2 - 1, and columns from -pi on."""
    sensor = Sensor(tuple(np.linspace(-25, 3, 16)), 64)
    v = np.linspace(*np.radians([-25, 3]), 37)
    res = math.radians(28) / 15
    low, high = math.radians(-25) - res / 2, math.radians(3) + res / 2
    expected = (v - low) / (high - low) * 2 - 1
    np.testing.assert_allclose((2 * sensor.row_of(v) + 1) / 16 - 1, expected, atol=1e-12)


def test_derived_sensors() -> None:
    assert UNEVEN.between(2).beams == pytest.approx((-10, -7, -4, -2.5, -1, -0.5, 0, 1.25, 2.5))
    assert UNEVEN.with_lines(3).beams == pytest.approx((-10, -3.75, 2.5))
    assert UNEVEN.every(2).beams == (-10, -1, 2.5)
    limits = UNEVEN.lidar_in(100.0)
    assert limits["channels"] == 5 and limits["max_v"] == math.radians(2.5) and limits["norm_r"] == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beams": ()}, "beams must be 1 to"),
        ({"beams": (1.0, 1.0)}, "must ascend or descend"),
        ({"beams": (1.0, 3.0, 2.0)}, "must ascend or descend"),
        ({"beams": (float("nan"), 1.0)}, "must be finite"),
        ({"beams": (0.0, 95.0)}, "within -90 and 90"),
        ({"columns": 0}, "columns must be a whole number"),
        ({"columns": 10.5}, "columns must be a whole number"),
        ({"min_range": 9.0, "max_range": 3.0}, "ranges must have"),
    ],
)
def test_sensors_that_cannot_be(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sensor(**{"beams": (0.0, 1.0), "columns": 8, **change})


def test_files_of_sensors(tmp_path: Path) -> None:
    authors = tmp_path / "carla.yaml"
    authors.write_text("lidar:\n  {min_v: -15, max_v: 15, channels: 16, points_per_ring: 1024, min_r: 2, max_r: 80}\n")
    assert Sensor.load(authors).beams == tuple(np.linspace(-15, 15, 16)) and Sensor.load(authors).max_range == 80
    table = tmp_path / "own.yaml"
    table.write_text("beams: [3, -1, 0]\ncolumns: 90\n")
    assert Sensor.load(table).beams == (-1, 0, 3) and Sensor.load(table).columns == 90
    ouster = tmp_path / "meta.json"
    ouster.write_text(json.dumps({"beam_altitude_angles": [5.0, 0.0, -5.0], "lidar_mode": "512x20"}))
    assert Sensor.load(ouster).beams == (5, 0, -5) and Sensor.load(ouster).columns == 512
    new = {"beam_intrinsics": {"beam_altitude_angles": [5.0, 0.0]}, "lidar_data_format": {"columns_per_frame": 2048}}
    ouster.write_text(json.dumps(new))
    assert Sensor.load(ouster).columns == 2048
    for name, text, message in (
        ("a.yaml", "channels: 3", "no min_v, max_v"),
        ("b.yaml", "[1, 2", "is not YAML: expected ',' or ']'"),
        ("b.yaml", "a: &a [*a]", "is not YAML: it refers to itself"),
        ("b.yaml", "beams: [1]\nbeams: [2]", "is not YAML: the key 'beams' is repeated"),
        ("c.yaml", "beams: [a, b]", r"beams must be a list of elevations in degrees, got \['a', 'b'\]"),
        ("c.yaml", "beams: 5", "beams must be a list of elevations in degrees, got 5"),
        ("c.yaml", "{min_v: 1, max_v: 2, channels: [3]}", r"channels must be a whole number, got \[3\]"),
        ("c.yaml", "{min_v: a, max_v: 2, channels: 3}", "min_v must be an elevation in degrees, got 'a'"),
        ("c.yaml", "{beams: [1], columns: .inf}", "columns must be a whole number, got inf"),
        ("c.yaml", "{beams: [1], points_per_ring: .nan}", "points_per_ring must be a whole number, got nan"),
        ("c.yaml", "{beams: [1], max_r: far}", "max_r must be a range in metres, got 'far'"),
        ("d.json", "[1]", "expected an Ouster's metadata, a mapping, got list"),
        ("deep.json", "[" * 10**5, "nested too deep"),
        ("d.json", '{"beam_altitude_angles": 5}', "beam_altitude_angles must be a list of degrees, got 5"),
        ("d.json", '{"beam_altitude_angles": [1], "lidar_mode": "x"}', "lidar_mode must be a whole number of columns"),
        (
            "d.json",
            '{"beam_altitude_angles": [1], "columns_per_frame": Infinity}',
            "columns_per_frame must be a whole number of columns, got 'inf'",
        ),
        ("d.json", "{}", "no beam_altitude_angles"),
        ("e.json", "{", "Expecting"),
        ("f.yaml", "{min_v: -9, max_v: 9, channels: 10000000000}", "channels must be 1 to 4096"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name}(, line \d+)?(, column \d+)?: .*{message}") as caught:
            Sensor.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    for text, place in (("beams: [1]\ncolumns: 0\n", ", line 2"), ("beams: [1\n", ", line 2, column 1")):
        table.write_text(text)
        with pytest.raises(ValueError, match=rf"^{table}{place}: "):
            Sensor.load(table)
    table.write_text("lidar:\n  min_v: -9\n  max_v: 9\n  channels: many\n")
    with pytest.raises(ValueError, match=rf"^{table}, line 4: channels must be a whole number, got 'many'$"):
        Sensor.load(table)
    np.savez(tmp_path / "nan.npz", range_m=np.ones((2, 8)), altitude_deg=np.array([np.nan, 1]))
    with pytest.raises(ValueError, match=r"nan\.npz: beams must be finite"):
        Sensor.load(tmp_path / "nan.npz")


@pytest.mark.parametrize("sensor", [UNEVEN, Sensor(UNEVEN.beams[::-1], 36), Sensor((1.0,), 1)])
def test_points_come_back_to_their_pixels(sensor: Sensor) -> None:
    rng = np.random.default_rng(0)
    ranges = rng.uniform(1, 50, (sensor.lines, sensor.columns)).astype(np.float32)
    ranges[rng.random(ranges.shape) < 0.3] = 0
    points, pixel = unproject(ranges, sensor)
    back = project(points, sensor, {"pixel": pixel})
    np.testing.assert_allclose(back.ranges, ranges, rtol=1e-6)
    assert np.array_equal(back.channels["pixel"].ravel()[pixel], pixel)
    assert (back.invalid, back.outside, back.hidden) == (0, 0, 0)


def test_the_nearest_point_wins_and_losses_are_counted() -> None:
    far, near = np.array([0.0, 20.0, 0.0]), np.array([0.0, 5.0, 0.0])
    odd = [[np.nan, 0, 0], [np.inf, 1, 1], [0, 0, 0], [0, 1, 5.0], [0, 1, -5.0]]
    result = project(np.array([far, near, far * 2, *odd]), UNEVEN)
    row, column = np.argwhere(result.ranges)[0]
    assert (row, column) == (3, 18) and result.ranges[row, column] == 5 and result.point[row, column] == 1
    assert (result.points, result.invalid, result.outside, result.hidden) == (8, 3, 2, 2)
    for bad in (np.zeros((3, 2)), np.zeros(3)):
        with pytest.raises(ValueError, match=r"points must have shape \[N, 3\]"):
            project(bad, UNEVEN)
    with pytest.raises(ValueError, match="rings must be from -1 to 4"):
        project(np.ones((2, 3)), UNEVEN, rings=np.array([0, 5]))
    assert project(np.zeros((0, 3)), UNEVEN).filled == 0


def test_scores_by_hand() -> None:
    sensor = Sensor((0.0, 1.0), 4)
    truth = np.array([[10.0, 0, 90.0, 20.0], [5, 5, 5, 5]])
    made = np.array([[10.1, 50.0, 0, 0], [5, 5, 6, 5.3]])
    result = scores(made, truth, sensor)
    errors = np.array([0.1, 50, 0, 80, 0, 0, 1, 0.3])
    assert result.mae == pytest.approx(errors.mean())
    assert result.mae_returns == pytest.approx(errors[[0, 3, 4, 5, 6, 7]].mean())
    assert result.within == pytest.approx(3 / 6)
    assert result.precision == pytest.approx(2 / 6) and result.recall == pytest.approx(2 / 6)
    assert result.iou == pytest.approx(2 / 10) and result.f1 == pytest.approx(4 / 12)
    assert math.isnan(scores(made, truth).iou) and math.isnan(scores(made * 0, truth * 0).mae_returns)
    with pytest.raises(ValueError, match="must have one shape"):
        scores(made, truth[:1])


def scan(sensor: Sensor, seed: int = 0, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a random scan, beam by beam, and the row of each."""
    rng = np.random.default_rng(seed)
    points, pixel = unproject(rng.uniform(5, 40, (sensor.lines, sensor.columns)), sensor)
    row = pixel // sensor.columns
    tilt = rng.normal(0, noise, len(points))
    points[:, 2] += tilt * np.linalg.norm(points, axis=1)
    kept = rng.random(len(points)) > 0.1
    return points[kept], row[kept]


def test_beams_are_found_from_rings_order_and_elevations() -> None:
    uneven = Sensor(tuple(np.cumsum(np.linspace(0.3, 2, 24)) - 20), 900)
    points, row = scan(uneven, noise=0.001)
    shuffled = np.random.default_rng(1).permutation(len(points))
    labels = np.random.default_rng(2).permutation(24)  # numbers unrelated to the order
    by_ring = detect(points[shuffled], labels[row][shuffled])
    by_order = detect(points)
    exact, exact_row = scan(uneven)
    by_elevation = detect(exact[shuffled[shuffled < len(exact)]])
    for found, rows, word in (
        (by_ring, row[shuffled], "ring"),
        (by_order, row, "order"),
        (by_elevation, exact_row[shuffled[shuffled < len(exact)]], "elevations"),
    ):
        assert word in found.how and found.sensor.lines == 24 and found.sensor.columns == 900
        np.testing.assert_allclose(found.sensor.beams, uneven.beams, atol=0.02)
        assert np.array_equal(found.rings, rows)


def test_what_has_no_beams_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="cannot be separated"):
        detect(rng.standard_normal((5000, 3)))
    for few in (np.zeros((0, 3)), np.full((100, 3), np.nan), np.zeros((100, 3))):
        with pytest.raises(ValueError, match="too few"):
            detect(few)
