"""Ray-cast random streets of boxes, cylinders and leaves with a sensor's own beams; needs embreex, [lidar-train].

A scene consists of triangles, each with a reflectivity. A ray has no return if the reflectivity, the angle of incidence
and the distance leave too little light.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

REACH = 150.0  # metres up to which a white surface at a right angle is detected
HEIGHT = (1.4, 2.4)  # height of the sensor above the road in metres


class Scene:
    """Triangles float32 [N, 3, 3] in metres, z up, and their reflectivity float32 [N]; the sensor is at the origin."""

    def __init__(self) -> None:
        self.triangles: list[np.ndarray] = []
        self.reflectivity: list[np.ndarray] = []

    def add(self, triangles: np.ndarray, reflectivity: float | np.ndarray) -> None:
        """Add triangles [n, 3, 3]."""
        self.triangles.append(triangles.astype(np.float32))
        self.reflectivity.append(np.broadcast_to(np.float32(reflectivity), len(triangles)).astype(np.float32))

    def box(self, centre: tuple[float, ...], size: tuple[float, ...], yaw: float, reflectivity: float) -> None:
        """Add an upright box, turned by `yaw` radians."""
        corners = (_CUBE - 0.5) * np.asarray(size)
        self.add((_turn(corners, yaw) + np.asarray(centre))[_FACES], reflectivity)

    def rod(self, start: np.ndarray, end: np.ndarray, radius: float, reflectivity: float) -> None:
        """Add an open cylinder of eight faces."""
        axis = end - start
        across = np.cross(axis, (1.0, 0, 0) if abs(axis[0]) < abs(axis[2]) else (0, 0, 1.0))
        across /= max(np.linalg.norm(across), 1e-9)
        around = np.cross(axis / max(np.linalg.norm(axis), 1e-9), across)
        ring = radius * (_CIRCLE[:, :1] * across + _CIRCLE[:, 1:] * around)
        low, high = start + ring, end + ring
        after_low, after_high = np.roll(low, -1, 0), np.roll(high, -1, 0)
        sides = [np.stack(three, 1) for three in ((low, after_low, high), (after_low, after_high, high))]
        self.add(np.concatenate(sides), reflectivity)

    def leaves(self, rng: Generator, centre: np.ndarray, radii: np.ndarray, count: int, reflectivity: float) -> None:
        """Add small, randomly oriented triangles, denser towards the surface of an ellipsoid."""
        place = rng.standard_normal((count, 1, 3))
        place *= rng.uniform(0.3, 1, (count, 1, 1)) ** 0.4 / np.linalg.norm(place, axis=2, keepdims=True)
        self.add(centre + place * radii + rng.normal(0, rng.uniform(0.06, 0.2), (count, 3, 3)), reflectivity)


_CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
_CIRCLE = np.stack([f(np.arange(8) * np.pi / 4) for f in (np.cos, np.sin)], -1)
_FACES = np.array(
    [0, 1, 3, 0, 3, 2, 4, 6, 7, 4, 7, 5, 0, 4, 5, 0, 5, 1, 2, 3, 7, 2, 7, 6, 0, 2, 6, 0, 6, 4, 1, 5, 7, 1, 7, 3]
).reshape(12, 3)


def _turn(points: np.ndarray, yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def street(rng: Generator) -> Scene:
    """Draw a random street with buildings, parked cars, poles, trees and people from `rng`."""
    scene = Scene()
    ground = -rng.uniform(*HEIGHT)
    half = rng.uniform(3.5, rng.choice([8, 16]))  # half the road's width
    walk = half + rng.uniform(2, 6)  # the buildings begin here
    cross = rng.uniform(-40, 40) if rng.random() < 0.6 else None
    _floor(scene, rng, ground, half)
    for side in (-1, 1):
        if rng.random() < 0.85:
            _buildings(scene, rng, ground, side, walk, cross)
    for _ in range(rng.integers(0, 8)):  # behind the first row
        a, far = rng.uniform(0, 2 * np.pi), rng.uniform(40, 130)
        at = (far * np.cos(a), far * np.sin(a))
        if abs(at[1]) > walk + 15:
            _house(scene, rng, at, (rng.uniform(10, 40), rng.uniform(10, 30), rng.uniform(10, 50)), ground, a)
    for _ in range(rng.integers(8, 45)):
        side = rng.choice([-1, 1])
        lane = half - 1.1 if rng.random() < 0.7 else rng.uniform(1.6, max(half - 1.5, 1.7))
        along = rng.uniform(2.5, 50) * rng.choice([-1, 1])
        _car(scene, rng, (along, side * lane), rng.normal(0, 0.04), ground)
    for _ in range(rng.integers(5, 35)):
        at = (rng.uniform(-70, 70), rng.choice([-1, 1]) * (half + rng.uniform(0.3, 1.5)))
        _pole(scene, rng, at, ground)
    kind = rng.choice(["leaves", "bare", "both"])
    for _ in range(rng.integers(3, 45)):
        at = (rng.uniform(-70, 70), rng.choice([-1, 1]) * (half + rng.exponential(6)))
        _tree(scene, rng, at, ground, kind == "leaves" or (kind == "both" and rng.random() < 0.5))
    for _ in range(rng.integers(2, 25)):
        place = np.array([rng.uniform(-40, 40), rng.choice([-1, 1]) * rng.uniform(half, walk + 3), ground + 0.5])
        scene.leaves(
            rng, place, rng.uniform((0.5, 0.5, 0.4), (4, 1.5, 1.2)), int(rng.integers(200, 1500)), rng.uniform(0.2, 0.6)
        )
    for _ in range(rng.integers(0, 12)):
        at = (rng.uniform(-30, 30), rng.choice([-1, 1]) * rng.uniform(2, walk))
        _person(scene, rng, at, ground)
    for _ in range(rng.integers(0, 5)):
        _fence(scene, rng, rng.choice([-1, 1]) * rng.uniform(half, walk), ground)
    if rng.random() < 0.3:  # the roof below the sensor
        size = (rng.uniform(1, 4), rng.uniform(0.8, 1.7), 0.3)
        scene.box((rng.uniform(-0.5, 0.5), 0, -0.15 - rng.uniform(0.25, 0.7)), size, 0, rng.uniform(0.01, 0.3))
    yaw, tilt = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.02, 2)
    for triangles in scene.triangles:
        turned = _turn(triangles.astype(np.float64), yaw)
        turned[..., 2] += turned[..., 0] * tilt[0] + turned[..., 1] * tilt[1]
        triangles[:] = turned
    return scene


def _floor(scene: Scene, rng: Generator, ground: float, half: float) -> None:
    """Add a road and two slightly higher pavements, with long waves."""
    x = np.linspace(-200, 200, 81)
    y = np.unique(np.concatenate((np.linspace(-200, 200, 41), [-half, half, -half - 0.01, half + 0.01])))
    phase, length = rng.uniform(0, 2 * np.pi, 2), rng.uniform(20, 80, 2)
    height = rng.uniform(0, 0.25) * np.sin(x[:, None] / length[0] + phase[0]) * np.sin(y / length[1] + phase[1])
    height = height - rng.uniform(0, 0.03) * np.abs(y) * (np.abs(y) < half) + (np.abs(y) > half) * rng.uniform(0, 0.2)
    grid = np.stack(np.broadcast_arrays(x[:, None], y, height + ground), -1)
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[:-1, 1:], grid[1:, 1:]
    faces = np.concatenate([np.stack(three, -2).reshape(-1, 3, 3) for three in ((a, b, c), (b, d, c))])
    scene.add(faces, rng.uniform(0.15, 0.5))


def _buildings(scene: Scene, rng: Generator, ground: float, side: int, walk: float, cross: float | None) -> None:
    x = -120.0
    while x < 120:
        width, depth, height = rng.uniform(8, 30), rng.uniform(8, 20), rng.uniform(4, 30)
        if cross is None or not x - 12 < cross < x + width + 12:
            offset = walk + rng.uniform(0, 2) + depth / 2
            _house(scene, rng, (x + width / 2, side * offset), (width, depth, height), ground, rng.normal(0, 0.01))
        x += width + rng.choice([0, 0, 0.5, 4, 10])


def _house(
    scene: Scene, rng: Generator, at: tuple[float, float], size: tuple[float, float, float], ground: float, yaw: float
) -> None:
    """Add a box, often with pillars and bands in front, so that its windows are recessed, or with balconies."""
    width, depth, height = size
    wall = rng.uniform(0.2, 0.9)
    relief = rng.choice(["plain", "windows", "balconies"], p=[0.15, 0.6, 0.25])
    inner = rng.uniform(0.004, 0.3) if relief == "windows" else wall
    scene.box((*at, ground + height / 2), size, yaw, inner)

    def part(x: float, y: float, z: float, extent: tuple[float, float, float]) -> None:
        offset = _turn(np.array([x, y, 0.0]), yaw)
        scene.box((at[0] + offset[0], at[1] + offset[1], ground + z), extent, yaw, wall)

    if relief == "windows":
        step, floor, deep = rng.uniform(1, 4), rng.uniform(2.5, 4), rng.choice([0.15, 0.4, 1.5]) * rng.uniform(0.6, 1.4)
        pillar, band = step * rng.uniform(0.3, 0.7), floor * rng.uniform(0.3, 0.7)
        for x in np.arange(-width / 2 + step / 2, width / 2, step):
            part(x, 0, height / 2, (pillar, depth + 2 * deep, height))
        for z in np.arange(band / 2, height, floor):
            part(0, 0, z, (width, depth + 2 * deep, band))
    elif relief == "balconies":
        floor, step = rng.uniform(2.8, 4), rng.uniform(3, 7)
        for z in np.arange(floor, height, floor):
            for x in np.arange(-width / 2 + step / 2, width / 2, step):
                part(x, 0, z, (step * 0.6, depth + 2.4, rng.uniform(0.1, 1.1)))


def _car(scene: Scene, rng: Generator, at: tuple[float, float], yaw: float, ground: float) -> None:
    length, width, height = rng.uniform(3.5, 5.2), rng.uniform(1.6, 2), rng.uniform(1.35, 2)
    if rng.random() < 0.1:  # a van or a lorry
        length, height = rng.uniform(5, 9), rng.uniform(2.2, 3.6)
    waist = height * rng.uniform(0.5, 0.65)
    paint = np.exp(rng.uniform(np.log(0.005), np.log(0.7)))
    scene.box((*at, ground + 0.2 + (waist - 0.2) / 2), (length, width, waist - 0.2), yaw, paint)
    for x in (-0.3, 0.3):
        for y in (-0.42, 0.42):
            offset = _turn(np.array([x * length, y * width, 0.0]), yaw)
            scene.box((at[0] + offset[0], at[1] + offset[1], ground + 0.3), (0.6, 0.2, 0.6), yaw, 0.05)
    front, back = rng.uniform(0.1, 0.28), rng.uniform(-0.5, -0.3)  # of the cabin, relative to the length
    corners = np.array(
        [
            [(x + 0.06 - 0.12 * z) * length, y * width / 2 * (0.95 - 0.15 * z), waist + z * (height - waist)]
            for x in (back, front)
            for y in (-1, 1)
            for z in (0, 1)
        ]
    )
    corners[1::2, 0] = np.clip(corners[1::2, 0], (back + 0.05) * length, None)
    hull = corners[_FACES]
    flat = np.ptp(hull[..., 2], axis=1) < 0.01  # the roof is painted
    glass = np.exp(rng.uniform(np.log(0.001), np.log(0.05)))
    colours = np.where(flat, np.float32(paint), np.float32(glass))
    scene.add(_turn(hull, yaw) + np.array([*at, ground]), colours)


def _pole(scene: Scene, rng: Generator, at: tuple[float, float], ground: float) -> None:
    top = rng.choice([1.0, 2.5, 4.0, 8.0]) * rng.uniform(0.8, 1.2)
    foot = np.array([*at, ground])
    scene.rod(foot, foot + np.array((0, 0, top)), rng.uniform(0.03, 0.2), rng.uniform(0.1, 0.8))
    if top > 2 and rng.random() < 0.5:
        size = (0.05, rng.uniform(0.3, 1.2), rng.uniform(0.3, 1))
        scene.box((at[0], at[1], ground + top - 0.5), size, rng.uniform(-0.3, 0.3), 0.9)
    if top > 5:
        scene.rod(foot + np.array((0, 0, top)), foot + np.array((0, -np.sign(at[1]) * 3, top + 0.3)), 0.06, 0.4)


def _tree(scene: Scene, rng: Generator, at: tuple[float, float], ground: float, green: bool) -> None:
    height, radius = rng.uniform(4, 14), rng.uniform(0.08, 0.35)
    foot = np.array([*at, ground])
    fork = foot + np.array((*rng.normal(0, 0.2, 2), height * rng.uniform(0.25, 0.5)))
    bark = rng.uniform(0.15, 0.5)
    scene.rod(foot, fork, radius, bark)
    spread = height * rng.uniform(0.2, 0.4)
    for _ in range(rng.integers(4, 10)):
        end = fork + np.array((*rng.normal(0, spread / 1.5, 2), (height - fork[2] + ground) * rng.uniform(0.3, 1)))
        scene.rod(fork, end, radius * rng.uniform(0.2, 0.6), bark)
        for _ in range(rng.integers(0, 6)):
            start = fork + np.array(end - fork) * rng.uniform(0.3, 1)
            scene.rod(start, start + rng.normal(0, 0.8, 3) + np.array((0, 0, 0.4)), radius * 0.12, bark)
    if green:
        centre = np.array([fork[0], fork[1], ground + height * 0.7])
        scene.leaves(
            rng, centre, np.array([spread, spread, height * 0.35]), int(rng.integers(800, 8000)), rng.uniform(0.2, 0.6)
        )


def _person(scene: Scene, rng: Generator, at: tuple[float, float], ground: float) -> None:
    tall = rng.uniform(1.5, 1.9)
    foot = np.array([*at, ground])
    cloth, step = rng.uniform(0.05, 0.7), rng.uniform(0.05, 0.3)
    hip = foot + np.array((0, 0, tall * 0.5))
    for sign in (-1, 1):
        scene.rod(foot + np.array((sign * step, 0.05 * sign, 0)), hip, 0.08, cloth)
    scene.rod(hip, foot + np.array((0, 0, tall * 0.85)), 0.2, cloth)
    scene.rod(foot + np.array((0, 0, tall * 0.85)), foot + np.array((0, 0, tall)), 0.1, 0.5)


def _fence(scene: Scene, rng: Generator, y: float, ground: float) -> None:
    begin, length, height, step = (
        rng.uniform(-40, 30),
        rng.uniform(5, 30),
        rng.uniform(0.8, 2.2),
        rng.uniform(0.12, 0.5),
    )
    metal = rng.uniform(0.1, 0.6)
    for x in np.arange(begin, begin + length, step):
        scene.box((x, y, ground + height / 2), (0.04, 0.04, height), 0, metal)
    for z in (0.15, height):
        scene.box((begin + length / 2, y, ground + z), (length, 0.05, 0.06), 0, metal)


class Caster:
    """Cast rays into a scene."""

    def __init__(self, scene: Scene) -> None:
        try:
            from embreex import rtcore_scene
            from embreex.mesh_construction import TriangleMesh
        except ImportError:
            raise ImportError("ray casting needs embreex: pip install liif-fast[lidar-train]") from None
        self.reflectivity = np.concatenate(scene.reflectivity)
        self.scene = rtcore_scene.EmbreeScene()
        self.mesh = TriangleMesh(self.scene, np.concatenate(scene.triangles))

    def cast(self, elevation: np.ndarray, azimuth: np.ndarray, rng: Generator | None = None) -> np.ndarray:
        """Measure the ranges of an image.

        Args:
            elevation: elevations of the rows in radians [H].
            azimuth: azimuths of the columns in radians [W]; 0 along +y, growing towards +x.
            rng: randomises the limit of detection slightly; None makes it sharp.

        Returns:
            float32 [H, W] in metres, 0 without a return.
        """
        elevation, azimuth = np.broadcast_arrays(elevation[:, None], azimuth)
        flat = np.cos(elevation)
        rays = np.stack((np.sin(azimuth) * flat, np.cos(azimuth) * flat, np.sin(elevation)), -1)
        rays = rays.reshape(-1, 3).astype(np.float32)
        hit = self.scene.run(np.zeros_like(rays), rays, output=True)
        normal = hit["Ng"]
        cosine = np.abs((normal * rays).sum(1)) / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
        light = self.reflectivity[np.maximum(hit["primID"], 0)] * np.sqrt(cosine)
        reach = REACH * np.sqrt(light)
        if rng is not None:
            reach *= np.exp(rng.normal(0, 0.15, len(reach)))
        found = (hit["primID"] >= 0) & (hit["tfar"] < reach)
        return np.where(found, hit["tfar"], 0).astype(np.float32).reshape(elevation.shape)
