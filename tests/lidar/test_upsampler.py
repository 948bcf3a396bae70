"""Compare the upsampler with the model itself, and densify odd scans of every kind."""

import numpy as np
import pytest
import torch

from liif_fast import models
from liif_fast.lidar import Sensor, Upsampler, project, unproject
from liif_fast.lidar.densify import Densifier
from liif_fast.lidar.scan import Scan

SENSOR = {"max_r": 80.0, "min_r": 0.0, "norm_r": 100.0, "max_v": 0.2, "min_v": -0.2, "max_h": 3.14, "min_h": -3.14}
SENSOR |= {"channels": 8, "points_per_ring": 24}
BEAMS = (-12.0, -9.0, -5.0, -3.0, 0.0, 1.0, 4.0, 11.0)
LOW = Sensor(BEAMS, 24, 0.5, 80.0, "low")


def small(name: str = "iln", **args) -> models.ILN:
    torch.manual_seed(0)
    encoder = {"name": "edsr-lidar", "args": {"n_resblocks": 1, "n_feats": 8}}
    own = {"d": 1, "h": 2, "wrap": True} if name == "iln" else {"hidden_list": [8]}
    return models.make({"name": name, "args": {**own, "encoder_spec": encoder, "lidar_in": SENSOR, **args}}).eval()


def image(seed: int = 0, sensor: Sensor = LOW) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ranges = rng.uniform(0.1, 110, (sensor.lines, sensor.columns)).astype(np.float32)
    ranges[rng.random(ranges.shape) < 0.2] = 0
    return ranges


def test_it_asks_the_model_where_the_beams_point() -> None:
    model, ranges = small(), image()
    out = Sensor((-10.0, 2.0, 5.0), 36)
    made = Upsampler(model, LOW, out, edge=0)(ranges)
    cropped = np.where(ranges == 0, 100, ranges)
    cropped = np.where(cropped < 0.5, 0, cropped)
    cropped = np.where(cropped > 80, 100, cropped)
    rows = np.interp(out.beams, BEAMS, np.arange(8))
    coord = np.stack(np.meshgrid((2 * rows + 1) / 8 - 1, np.arange(36) / 36 * 2 - 1 + 1 / 24, indexing="ij"), -1)
    with torch.no_grad():
        inp = torch.tensor(cropped * 0.02 - 1, dtype=torch.float32)[None, None]
        expected = (model(inp, torch.tensor(coord, dtype=torch.float32).view(1, -1, 2)) + 1) * 50
    torch.testing.assert_close(made.ranges.flatten(), expected.flatten(), rtol=0, atol=1e-3)
    inside = (made.ranges >= 0.5) & (made.ranges <= 80)
    assert torch.equal(made.kept, inside) and not made.edge.any() and 0 < inside.sum() < inside.numel()


@pytest.mark.parametrize("name", ["iln", "liif_lidar"])
def test_the_order_of_the_beams_is_the_users_affair(name: str) -> None:
    model, ranges = small(name), image()
    upside_down = Sensor(BEAMS[::-1], 24, 0.5, 80.0)
    one = Upsampler(model, LOW, LOW.between(3))(ranges, ranges[None])
    other = Upsampler(model, upside_down, LOW.between(3))(ranges[::-1].copy(), ranges[None, ::-1].copy())
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_batches_plans_and_channels() -> None:
    model = small()
    upsampler = Upsampler(model, LOW, LOW.between(2).with_columns(48))
    ranges = np.stack([image(seed) for seed in range(3)])
    together = upsampler(ranges, ranges[:, None] * 2)
    for number in range(3):
        alone = upsampler(ranges[number], ranges[number][None] * 2)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[0], b[number])
    torch.testing.assert_close(together.weights.sum(-1), torch.ones(3, 15, 48))
    assert together.channels.shape == (3, 1, 15, 48) and model.feat is None
    for bad in (image()[:, :9], np.zeros((2, 3, 4, 5))):
        with pytest.raises(ValueError, match=r"ranges must have shape \[B, 8, 24\]"):
            upsampler(bad)
    with pytest.raises(ValueError, match=r"channels must have shape \[1, V, 8, 24\]"):
        upsampler(image(), np.zeros((1, 8, 9)))


def test_edges_are_where_the_corners_differ_and_no_weight_decides() -> None:
    model, out = small(), LOW.between(2)
    ranges = np.full((8, 24), 10.0, np.float32)
    ranges[:, 12:] = 40
    made = Upsampler(model, LOW, out, edge=0.999)(ranges)
    decided = made.weights.amax(-1) >= 0.999
    assert not made.edge[..., 1:11].any() and not made.edge[..., 13:23].any()
    assert torch.equal(made.edge[..., 11], ~decided[..., 11]) and made.edge[..., 11].any()
    assert not Upsampler(model, LOW, out, edge=0.0)(ranges).edge.any()
    near = np.where(ranges > 20, 11.2, 10).astype(np.float32)  # a step of 1.2 m at 10 m is not an edge
    assert not Upsampler(model, LOW, out, edge=1.0)(near).edge.any()


def test_remarks_about_other_sensors() -> None:
    assert Upsampler(small(), Sensor(BEAMS, 24, 0.5, 70.0), LOW).remarks == []
    dense = Sensor(tuple(np.linspace(-1, 1, 32)), 24, 0.5, 200.0)
    remarks = " ".join(Upsampler(small(), dense, LOW).remarks)
    assert "lines are 0.06 degrees apart" in remarks and "beyond 80 m are dropped" in remarks
    with pytest.raises(TypeError, match="must be an ILN or a LiDAR-LIIF, got Linear"):
        Upsampler(torch.nn.Linear(1, 1), LOW, LOW)
    with pytest.raises(ValueError, match=r"edge must be in \[0, 1\]"):
        Upsampler(small(), LOW, LOW, edge=2.0)


def test_measured_points_stay_and_new_ones_lie_between() -> None:
    ranges = image()
    points, _ = unproject(ranges, LOW)
    more = np.vstack((points, [[np.nan, 0, 0], [0, 0, 90.0]])).astype(np.float32)  # kept, although in no pixel
    intensity = np.arange(len(more), dtype=np.float32)
    dense = Densifier(small(), lambda own: own.between(4), LOW, edge=0)(Scan(more, {"intensity": intensity}))
    assert np.array_equal(dense.points[: len(more)], more, equal_nan=True)
    assert np.array_equal(dense.channels["intensity"][: len(more)], intensity)
    assert dense.channels["measured"].sum() == len(more) and len(dense.points) == len(more) + dense.new
    old = dense.ranges[::4]
    assert np.array_equal(old[ranges > 0], dense.source.ranges[ranges > 0])
    back = project(dense.points[len(more) :], dense.sensor)
    assert back.hidden == 0 and (back.ranges > 0).sum() == dense.new
    assert not (back.ranges[::4] * (ranges > 0)).any()  # no second point in a measured direction
    assert (dense.source.invalid, dense.source.outside) == (1, 1)

    alone = Densifier(small(), lambda own: own.between(4), LOW, edge=0, replace=True)(Scan(more, {}))
    assert alone.channels["measured"].sum() == 0 and list(alone.channels) == ["ring", "measured"]
    assert len(alone.points) + alone.beyond == alone.ranges.size


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((0, 3)),
        np.full((5, 3), np.nan),
        np.zeros((5, 3)),
        np.full((4, 3), 1e30),
        np.array([[0.0, 5.0, 0.0]]),
        np.random.default_rng(0).normal(0, 30, (5000, 3)),
    ],
)
def test_hostile_scans(points: np.ndarray) -> None:
    dense = Densifier(small(), lambda own: own.with_lines(5), LOW)(Scan(points.astype(np.float32), {}))
    assert np.array_equal(dense.points[: len(points)], points.astype(np.float32), equal_nan=True)
    assert np.isfinite(dense.points[len(points) :]).all() and np.isfinite(dense.ranges).all()


@pytest.mark.parametrize("shape", [(1, 24), (8, 1), (1, 1), (2, 3)])
def test_one_line_one_column(shape: tuple[int, int]) -> None:
    sensor = Sensor(BEAMS[: shape[0]], shape[1])
    dense = Densifier(small(), lambda own: own.with_lines(4).with_columns(7) if shape[0] > 1 else own, sensor)(
        Scan(np.zeros((0, 3), np.float32), {}, np.full(shape, 9.0, np.float32), None)
    )
    assert np.isfinite(dense.ranges).all() and (dense.ranges > 0).any()


def test_a_stream_keeps_its_plan() -> None:
    densifier = Densifier(small(), lambda own: own.between(2))
    plans = []
    for seed in range(3):
        ranges = np.random.default_rng(seed).uniform(5, 60, (8, 24)).astype(np.float32)
        points, pixel = unproject(ranges, LOW)
        densifier(Scan(points, {"ring": pixel // 24}))
        plans.append(densifier.upsampler)
    assert plans[0] is plans[1] is plans[2] and "8 beams from its ring field" in densifier.found
    with pytest.raises(ValueError, match="8 lines, the sensor low has 3"):
        Densifier(small(), lambda own: own, Sensor(BEAMS[:3], 24, name="low"))(Scan(points, {}, image(), None))
    with pytest.raises(ValueError, match="give --sensor"):
        Densifier(small(), lambda own: own)(Scan(points, {}, image(), None))
