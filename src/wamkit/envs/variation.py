"""Factors of variation: light, camera, colours, distractors and the hand's start, each with a severity in [0, 1].

What a factor changes is drawn from (seed, factor) alone, and the severity says how far it goes: the same seed is lit from the same
side at every severity, so that a policy's success can be followed from the plain environment outwards. All but `initial_pose` act
on the drawn scene and never on the simulated one, so the physics cannot differ. LIBERO-Plus (2025) varies the like.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from wamkit.config import check_bounds
from wamkit.types import WamkitError

FACTORS: Mapping[str, str] = {
    "lighting": "all light 2.5 times darker or 1.6 times brighter, a quarter warmer or colder, from 90 degrees elsewhere",
    "camera_shift": "the first camera 15 degrees around what it looks at, and up to 15 % nearer or farther",
    "colours": "table, floor, walls and objects in other colours; textures keep their pattern, the robot its colours",
    "distractors": "8 objects beside the workspace, which nothing touches",
    "initial_pose": "the hand begins 10 cm from its usual start",
}
"""Every factor, and what it is at severity 1."""

DIMMER, BRIGHTER, TINT, LIGHT_TURN = 0.4, 1.6, 0.25, 90.0
CAMERA_TURN, CAMERA_DISTANCE = 15.0, 0.15
OBJECTS = 8
HAND = 0.10


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Strengths of the factors, in [0, 1]; 0 is the plain environment, to the byte. Raises ConfigError outside of that."""

    lighting: float = 0.0
    """Brightness, colour and direction of the light. At 1 all lights, the camera's own among them, are multiplied by 0.4 or 1.6, red by
    0.75 to 1.25 and blue by the opposite, and the lamps stand 90 degrees further around the vertical; in between by powers and shares."""
    camera_shift: float = 0.0
    """The first camera goes around the point of the table that it looks at, by 15 degrees at 1, in a direction drawn at right angles
    to its view, still looking there, and comes up to 15 % nearer or farther."""
    colours: float = 0.0
    """Materials of table, floor, walls and objects move towards colours drawn for each, and have them at 1. A texture is multiplied, so it
    keeps its pattern; the robot and what is behind everything (the sky) stay."""
    distractors: float = 0.0
    """Boxes, cylinders and balls on the table beside the workspace: 8 at 1, of which smaller severities show the first. They are
    drawn only: nothing touches them, and a depth camera (`points`) would not see them, so the two exclude each other."""
    initial_pose: float = 0.0
    """The hand begins so far from the task's own start: 10 cm at 1, sideways and upwards, in a direction drawn from the half sphere;
    where that leaves the hand's range, the other way. Objects and goals begin where they do without."""

    def __post_init__(self) -> None:
        check_bounds(self, **dict.fromkeys(FACTORS, (0.0, 1.0)))

    @property
    def varies(self) -> bool:
        """Whether any severity is above 0."""
        return any(getattr(self, name) for name in FACTORS)

    @property
    def changes_scene(self) -> bool:
        """Whether `Variation.change` has anything to do."""
        return bool(self.lighting or self.colours or self.distractors)


@dataclass(frozen=True)
class Direction:
    """What one seed draws, of which a severity takes a share.

    brightness: factor of all light.   warmth: in [-1, 1].   light_turn: 1 or -1.   orbit: radians, from the picture's right.
    nearer: in [-1, 1].   colour: (surfaces, 3) in [0, 1].   hand: unit vector, not downwards.   objects: one row each.
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
    """One object. shape: MuJoCo's name of a geom type.   size: half extents, m.   place: of its centre, m.   turn: radians, vertical."""

    shape: str
    size: tuple[float, float, float]
    place: tuple[float, float, float]
    turn: float
    colour: tuple[float, float, float]


def draw(seed: int, surfaces: int) -> Direction:
    """The directions of `seed`, for a scene of so many surfaces. Every factor has its own stream, so none depends on the others."""
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
    """(n, 3) RGB: any hue, never pale, never dark."""
    hue, saturation, value = rng.uniform((0, 0.55, 0.7), (6, 0.95, 1.0), (n, 3)).T[..., None]
    ramp = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation * (1 - ramp))


_STRIPS = ((-0.60, -0.36), (0.38, 0.56))
"""Where distractors stand, along x, left and right of where MetaWorld puts things; metres."""

_DEPTHS = (0.32, 0.86)
"""Along y, inside of the table's rim."""

_APART = 0.12


def _objects(rng: np.random.Generator) -> tuple[Distractor, ...]:
    """OBJECTS of them, in turn on the left and on the right."""
    out: list[Distractor] = []
    colours = _strong_colours(rng, OBJECTS)
    while len(out) < OBJECTS:
        x, y = rng.uniform(*_STRIPS[len(out) % 2]), rng.uniform(*_DEPTHS)
        if any(np.hypot(x - o.place[0], y - o.place[1]) < _APART for o in out):
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
    """The factors of one simulator of MetaWorld. Its only state, the episode's seed, is an attribute of the simulator: snapshots hold it."""

    def __init__(self, mujoco: Any, factors: Factors, sim: Any, camera: str):
        self._mujoco, self._factors, self._sim = mujoco, factors, sim
        model = sim.model
        self._camera = model.camera(camera).id
        material = model.geom_matid
        self._surface = np.where(material >= 0, material, model.nmat + model.geom_bodyid)
        self._surface[model.body_rootid[model.geom_bodyid] == model.body("base").id] = -1  # the robot
        self._surfaces = model.nmat + model.nbody
        self._drawn: tuple[int, Direction] | None = None

    def begin(self, seed: int) -> None:
        """Before the simulator's own reset: says which episode this is, and where the hand begins."""
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
        """Within, the first camera is where `camera_shift` puts it."""
        severity, data, k = self._factors.camera_shift, self._sim.data, self._camera
        if not severity:
            yield
            return
        direction, place, turn = self._direction(), data.cam_xpos[k].copy(), data.cam_xmat[k].copy()
        right, up, back = turn.reshape(3, 3).T
        # Along the view to the table, whose top is at 0; for a camera that looks up, or away over it, to some place before it.
        distance = np.clip(place[2] / back[2], 0.1, 2.0) if back[2] > 0 else 1.0
        axis = np.cos(direction.orbit) * up + np.sin(direction.orbit) * right
        orbit = Rotation.from_rotvec(np.radians(CAMERA_TURN) * severity * axis)
        farther = 1 + CAMERA_DISTANCE * severity * direction.nearer
        data.cam_xpos[k] = place - distance * back + farther * distance * orbit.apply(back)
        data.cam_xmat[k] = (orbit.as_matrix() @ turn.reshape(3, 3)).reshape(-1)
        try:
            yield
        finally:
            data.cam_xpos[k], data.cam_xmat[k] = place, turn

    def change(self, scene: Any) -> None:
        """Light, colours and distractors of a scene that MuJoCo has just made and is about to draw."""
        factors, direction = self._factors, self._direction()
        if factors.lighting:
            self._light(scene, factors.lighting, direction)
        if factors.colours:
            for geom in (scene.geoms[i] for i in range(scene.ngeom)):
                surface = self._surface[geom.objid] if geom.objtype == self._mujoco.mjtObj.mjOBJ_GEOM else -1
                if surface >= 0:
                    geom.rgba[:3] += factors.colours * (direction.colour[surface] - geom.rgba[:3])
        for thing in direction.objects[: ceil(OBJECTS * factors.distractors)]:
            self._mujoco.mjv_initGeom(
                scene.geoms[scene.ngeom],
                getattr(self._mujoco.mjtGeom, f"mjGEOM_{thing.shape.upper()}"),
                np.array(thing.size),
                np.array(thing.place),
                Rotation.from_rotvec((0, 0, thing.turn)).as_matrix().reshape(-1),
                np.array((*thing.colour, 1.0), np.float32),
            )
            scene.ngeom += 1

    @staticmethod
    def _light(scene: Any, severity: float, direction: Direction) -> None:
        gain = direction.brightness**severity * (1 + TINT * severity * direction.warmth * np.array([1, 0, -1]))
        turn = Rotation.from_euler("z", LIGHT_TURN * severity * direction.light_turn, degrees=True)
        for light in (scene.lights[i] for i in range(scene.nlight)):
            for part in (light.ambient, light.diffuse, light.specular):
                part[:] = part * gain
            if not light.headlight:  # that one is the camera's
                light.dir[:], light.pos[:] = turn.apply(light.dir), turn.apply(light.pos)

    def _direction(self) -> Direction:
        seed = getattr(self._sim, "variation_seed", None)
        if seed is None:
            raise WamkitError(
                "this snapshot was taken without factors of variation, so it does not say what they draw; restore it where all are 0"
            )
        if self._drawn is None or self._drawn[0] != seed:
            self._drawn = seed, draw(seed, self._surfaces)
        return self._drawn[1]
