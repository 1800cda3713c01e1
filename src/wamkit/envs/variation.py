"""Factors of variation: light, camera, colours, distractors and the hand's initial position, each with a severity in
[0, 1].

The direction of a change is sampled from (seed, factor) alone, and the severity scales it: a seed is lit from the same
side at every severity, so that a policy's success can be followed from the plain environment outwards. All factors but
`initial_pose` change the rendered scene and never the simulated one, so the physics cannot differ. LIBERO-Plus (2025)
has similar factors.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from wamkit.config import Checked, Share
from wamkit.types import WamkitError

FACTORS: Mapping[str, str] = {
    "lighting": "all light 2.5 times darker or 1.6 times brighter, a quarter warmer or colder, rotated by 90 degrees",
    "camera_shift": "the first camera 15 degrees around what it looks at, and up to 15 % nearer or farther",
    "colours": "table, floor, walls and objects in other colours; textures keep their pattern, the robot its colours",
    "distractors": "8 objects beside the workspace, without contacts",
    "initial_pose": "the hand starts 10 cm from its usual position",
}
"""Every factor with a description of severity 1."""

DIMMER, BRIGHTER, TINT, LIGHT_TURN = 0.4, 1.6, 0.25, 90.0
CAMERA_TURN, CAMERA_DISTANCE = 15.0, 0.15
OBJECTS = 8
HAND = 0.10


@dataclass(frozen=True, kw_only=True)
class Factors(Checked):
    """Severities of the factors in [0, 1]; 0 is the plain environment, to the byte. Raises ConfigError outside that
    range."""

    lighting: Share = 0.0
    """Brightness, colour and direction of the light. At 1 all lights, the camera's own among them, are multiplied by
    0.4 or 1.6, red by 0.75 to 1.25 and blue by the opposite, and the lamps are rotated by 90 degrees about the
    vertical. In between, brightness is interpolated geometrically and the others linearly."""
    camera_shift: Share = 0.0
    """The first camera orbits the point of the table that it looks at, by 15 degrees at 1, in a random direction at
    right angles to its view, and moves up to 15 % nearer or farther."""
    colours: Share = 0.0
    """Materials of table, floor, walls and objects are blended with a random colour each, which they have at 1. A
    texture is multiplied, so it keeps its pattern. The robot and the sky do not change."""
    distractors: Share = 0.0
    """Boxes, cylinders and balls on the table beside the workspace: 8 at 1, the first few of them at smaller
    severities. They are visual only: nothing touches them. A depth camera (`point_grid`) would not see them, so
    the two exclude each other."""
    initial_pose: Share = 0.0
    """Offset of the hand's initial position: 10 cm at 1, in a random direction of the upper half sphere; reversed along
    axes on which it would leave the hand's range. Objects and goals start where they do without it."""

    @property
    def varies(self) -> bool:
        """True if any severity is above 0."""
        return any(getattr(self, name) for name in FACTORS)

    @property
    def changes_scene(self) -> bool:
        """True if `Variation.change` changes anything."""
        return bool(self.lighting or self.colours or self.distractors)


@dataclass(frozen=True)
class Direction:
    """Directions of all changes for one seed, which severities scale.

    brightness: factor of all light.   warmth: in [-1, 1].   light_turn: 1 or -1.   orbit: radians, from the image's
        right.
    nearer: in [-1, 1].   colour: (surfaces, 3) in [0, 1].   hand: unit vector, not downwards.
    objects: the distractors.
    """

    brightness: float
    warmth: float
    light_turn: float
    orbit: float
    nearer: float
    colour: np.ndarray
    hand: np.ndarray
    objects: tuple[Distractor, ...]


@dataclass(frozen=True)
class Distractor:
    """One object beside the workspace.

    shape: MuJoCo's name of a geom type.   size: half extents, m.   position: of its centre, m.
    angle: rotation about the vertical, radians.   colour: RGB in [0, 1].
    """

    shape: str
    size: tuple[float, float, float]
    position: tuple[float, float, float]
    angle: float
    colour: tuple[float, float, float]


def sample_direction(seed: int, surfaces: int) -> Direction:
    """The directions of `seed` for a scene with `surfaces` surfaces. Each factor has its own random stream."""
    light, camera, colours, objects, pose = (
        np.random.default_rng((seed, zlib.crc32(name.encode()))) for name in FACTORS
    )
    hand = pose.normal(size=3)
    hand[2] = abs(hand[2])
    return Direction(
        brightness=(DIMMER, BRIGHTER)[light.integers(2)],
        warmth=light.uniform(-1, 1),
        light_turn=light.choice((-1.0, 1.0)),
        orbit=camera.uniform(0, 2 * np.pi),
        nearer=camera.uniform(-1, 1),
        colour=_strong_colours(colours, surfaces),
        hand=hand / np.linalg.norm(hand),
        objects=_objects(objects),
    )


def _strong_colours(rng: np.random.Generator, n: int) -> np.ndarray:
    """Random RGB colours (n, 3) of any hue, neither pale nor dark."""
    hue, saturation, value = rng.uniform((0, 0.55, 0.7), (6, 0.95, 1.0), (n, 3)).T[..., None]
    ramp = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation * (1 - ramp))


_STRIPS = ((-0.60, -0.36), (0.38, 0.56))
"""Ranges of x for distractors, left and right of MetaWorld's objects; metres."""

_DEPTHS = (0.32, 0.86)
"""Range of y for distractors, inside the table's rim; metres."""

_SPACING = 0.12
"""Least distance between distractors; metres."""


def _objects(rng: np.random.Generator) -> tuple[Distractor, ...]:
    """OBJECTS distractors, alternately on the left and on the right."""
    out: list[Distractor] = []
    colours = _strong_colours(rng, OBJECTS)
    while len(out) < OBJECTS:
        x, y = rng.uniform(*_STRIPS[len(out) % 2]), rng.uniform(*_DEPTHS)
        if any(np.hypot(x - o.position[0], y - o.position[1]) < _SPACING for o in out):
            continue
        shape = ("box", "cylinder", "sphere")[rng.integers(3)]
        wide, deep, high = rng.uniform((0.025, 0.025, 0.03), (0.05, 0.05, 0.08))
        size = {"box": (wide, deep, high), "cylinder": (wide, high, 0.0), "sphere": (wide, 0.0, 0.0)}[shape]
        out.append(
            Distractor(
                shape,
                size,
                (x, y, wide if shape == "sphere" else high),
                rng.uniform(0, np.pi),
                tuple(colours[len(out)].tolist()),
            )
        )
    return tuple(out)


class Variation:
    """The factors of variation of one MetaWorld simulator.

    Its only state, the episode's seed, is an attribute of the simulator, so snapshots hold it.
    """

    def __init__(self, mujoco: Any, factors: Factors, sim: Any, camera: str):
        self._mujoco, self._factors, self._sim = mujoco, factors, sim
        model = sim.model
        self._camera = model.camera(camera).id
        material = model.geom_matid
        self._surface = np.where(material >= 0, material, model.nmat + model.geom_bodyid)
        self._surface[model.body_rootid[model.geom_bodyid] == model.body("base").id] = -1  # the robot
        self._surfaces = model.nmat + model.nbody
        self._sampled: tuple[int, Direction] | None = None

    def begin(self, seed: int) -> None:
        """Sets the episode's seed and the hand's initial position; called before the simulator's own reset."""
        if not self._factors.varies:
            return
        self._sim.variation_seed = seed
        if severity := self._factors.initial_pose:
            start, low, high = np.float64(self._sim.hand_init_pos), self._sim.mocap_low, self._sim.mocap_high
            hand, full = self._direction().hand, start + HAND * self._direction().hand
            hand = np.where((full < low) | (full > high), -hand, hand)
            self._sim.hand_init_pos = np.clip(start + severity * HAND * hand, low, high)

    @contextmanager
    def camera(self) -> Iterator[None]:
        """Context in which the first camera is displaced by `camera_shift`."""
        from scipy.spatial.transform import Rotation

        severity, data, k = self._factors.camera_shift, self._sim.data, self._camera
        if not severity:
            yield
            return
        direction, position, turn = self._direction(), data.cam_xpos[k].copy(), data.cam_xmat[k].copy()
        right, up, back = turn.reshape(3, 3).T
        # Distance along the view to the table, whose top is at 0; of a camera that does not look down, a fixed
        # distance.
        distance = np.clip(position[2] / back[2], 0.1, 2.0) if back[2] > 0 else 1.0
        axis = np.cos(direction.orbit) * up + np.sin(direction.orbit) * right
        orbit = Rotation.from_rotvec(np.radians(CAMERA_TURN) * severity * axis)
        farther = 1 + CAMERA_DISTANCE * severity * direction.nearer
        data.cam_xpos[k] = position - distance * back + farther * distance * orbit.apply(back)
        data.cam_xmat[k] = (orbit.as_matrix() @ turn.reshape(3, 3)).reshape(-1)
        try:
            yield
        finally:
            data.cam_xpos[k], data.cam_xmat[k] = position, turn

    def change(self, scene: Any) -> None:
        """Changes light, colours and distractors of a scene that MuJoCo has just made and is about to render."""
        from scipy.spatial.transform import Rotation

        factors, direction = self._factors, self._direction()
        if factors.lighting:
            self._light(scene, factors.lighting, direction)
        if factors.colours:
            for geom in (scene.geoms[i] for i in range(scene.ngeom)):
                surface = self._surface[geom.objid] if geom.objtype == self._mujoco.mjtObj.mjOBJ_GEOM else -1
                if surface >= 0:
                    geom.rgba[:3] += factors.colours * (direction.colour[surface] - geom.rgba[:3])
        for distractor in direction.objects[: ceil(OBJECTS * factors.distractors)]:
            self._mujoco.mjv_initGeom(
                scene.geoms[scene.ngeom],
                getattr(self._mujoco.mjtGeom, f"mjGEOM_{distractor.shape.upper()}"),
                np.array(distractor.size),
                np.array(distractor.position),
                Rotation.from_rotvec((0, 0, distractor.angle)).as_matrix().reshape(-1),
                np.array((*distractor.colour, 1.0), np.float32),
            )
            scene.ngeom += 1

    @staticmethod
    def _light(scene: Any, severity: float, direction: Direction) -> None:
        from scipy.spatial.transform import Rotation

        gain = direction.brightness**severity * (1 + TINT * severity * direction.warmth * np.array([1, 0, -1]))
        turn = Rotation.from_euler("z", LIGHT_TURN * severity * direction.light_turn, degrees=True)
        for light in (scene.lights[i] for i in range(scene.nlight)):
            for part in (light.ambient, light.diffuse, light.specular):
                part[:] = part * gain
            if not light.headlight:  # the headlight belongs to the camera
                light.dir[:], light.pos[:] = turn.apply(light.dir), turn.apply(light.pos)

    def _direction(self) -> Direction:
        seed = getattr(self._sim, "variation_seed", None)
        if seed is None:
            raise WamkitError(
                "this snapshot was taken without factors of variation, so it holds no seed: restore it with all at 0"
            )
        if self._sampled is None or self._sampled[0] != seed:
            self._sampled = seed, sample_direction(seed, self._surfaces)
        return self._sampled[1]
