"""Scenes of the physics suite: for each task and seed one or two objects, and MuJoCo's model of them.

Lengths are metres. x runs from left to right in the image, y away from the camera, z up; the table's top is z = 0.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

GRAVITY = 9.81
TIMESTEP = 0.001
OBJECTS = 2
"""Largest number of objects in a scene. The first has a warm colour, the second a cold one, so images identify them."""

TEXTS = {
    "drop": "an object falls onto the table",
    "slide": "an object slides over the table until it stops",
    "collide": "the warm object runs into the cold one",
    "topple": "a tilted object falls over, or back",
    "occlude": "an object passes behind the wall",
    "push": "push the object",
}
"""Tasks and their instructions."""

PUSHER_RADIUS, PUSHER_HEIGHT = 0.025, 0.07  # half the height

_CONTACT_TIME = 0.004  # seconds: twice the shortest that the step allows, so that impacts stay shallow
_ROLLING = 0.3  # of rolling objects, see `SceneObject`; with a tenth, as in reality, they would roll out of the image


@dataclass(frozen=True)
class SceneObject:
    """An object that moves.

    size: half extents along its own axes.   friction: coefficient of sliding friction, on anything.
    rolling: resistance to rolling relative to that to sliding.   damping: damping ratio of its contacts, 1 does not
        bounce.
    velocity, spin: m/s and rad/s in world axes.   quaternion: (w, x, y, z).
    """

    shape: str
    size: np.ndarray
    colour: tuple[float, float, float]
    mass: float
    friction: float
    position: np.ndarray
    quaternion: np.ndarray = field(default_factory=lambda: np.array([1.0, 0, 0, 0]))
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(3))
    spin: np.ndarray = field(default_factory=lambda: np.zeros(3))
    rolling: float = 0.0
    damping: float = 1.0

    @property
    def deceleration(self) -> float:
        """Deceleration on the table, m/s^2: mu g, or 5/7 of the rolling resistance for a sphere that rolls."""
        return self.friction * GRAVITY * (5 / 7 * self.rolling if self.shape == "sphere" else 1.0)

    def moving(self, velocity: np.ndarray) -> SceneObject:
        """The same object with this horizontal velocity; a sphere rolls without slip: spin = z x velocity / radius."""
        rolls = self.shape == "sphere"
        spin = np.array([-velocity[1], velocity[0], 0]) / self.size[2] if rolls else np.zeros(3)
        return replace(self, velocity=velocity, spin=spin)


@dataclass(frozen=True)
class Scene:
    """One scene.

    wall: its centre on the table and its half extents, or None.   pusher: its initial position (x, y), or None.
    camera, target: positions of the camera and of the point that it looks at.
    """

    objects: tuple[SceneObject, ...]
    camera: np.ndarray
    target: np.ndarray
    wall: tuple[np.ndarray, np.ndarray] | None = None
    pusher: np.ndarray | None = None


def sample_scene(task: str, seed: int, jitter: float = 0.0, take: int = 0) -> Scene:
    """The scene of `task` and `seed`.

    jitter: above 0, another `take` of the same scene, as a laboratory would repeat it. Mass, friction and speed differ
        by this share (standard deviation, log-normal) and the horizontal position by this share of 5 cm.
    """
    rng = np.random.default_rng([seed, list(TEXTS).index(task)])
    scene = _TASKS[task](rng, _camera(rng))
    if not jitter:
        return scene
    rng = np.random.default_rng([seed, take, 1])
    return replace(scene, objects=tuple(_jittered(item, jitter, rng) for item in scene.objects))


def _jittered(item: SceneObject, jitter: float, rng: np.random.Generator) -> SceneObject:
    mass, friction, speed = np.exp(jitter * rng.standard_normal(3))
    position = item.position + np.append(0.05 * jitter * rng.standard_normal(2), 0)
    return replace(
        item,
        mass=item.mass * mass,
        friction=item.friction * friction,
        velocity=item.velocity * speed,
        spin=item.spin * speed,
        position=position,
    )


def _camera(rng: np.random.Generator) -> Scene:
    """A scene without objects, seen from a camera position that varies by centimetres."""
    camera = np.array([0, -1.1, 0.45]) + rng.uniform(-0.02, 0.02, 3)
    return Scene((), camera, np.array([0, 0, 0.17]) + rng.uniform(-0.01, 0.01, 3))


def _object(rng: np.random.Generator, index: int, friction: tuple[float, float], shapes: str = "bsc") -> SceneObject:
    """An object that rests at the centre of the table."""
    shape = {"b": "box", "s": "sphere", "c": "cylinder"}[rng.choice(list(shapes))]
    size = rng.uniform(0.045, 0.065) * rng.uniform(0.8, 1.2, 3)
    if shape == "sphere":
        size[:] = size[2]
    if shape == "cylinder":
        size[1] = size[0]
    hue = rng.uniform(0.95, 1.13) % 1 if index == 0 else rng.uniform(0.52, 0.70)
    return SceneObject(
        shape=shape,
        size=size,
        colour=colorsys.hsv_to_rgb(hue, rng.uniform(0.8, 1), rng.uniform(0.75, 1)),
        mass=float(np.exp(rng.uniform(np.log(0.1), np.log(0.6)))),
        friction=rng.uniform(*friction),
        position=np.array([0, 0, size[2]]),
        rolling=_ROLLING if shape == "sphere" else 0.0,
    )


def _at(item: SceneObject, x: float, y: float) -> SceneObject:
    return replace(item, position=np.array([x, y, item.position[2]]))


def _drop(rng: np.random.Generator, scene: Scene) -> Scene:
    item = _object(rng, 0, (0.3, 0.8))
    height, turned = rng.uniform(0.27, 0.40) + item.size.max(), rng.standard_normal(4)
    falling = replace(
        item,
        position=np.array([rng.uniform(-0.2, 0.2), rng.uniform(-0.05, 0.1), height]),
        quaternion=turned / np.linalg.norm(turned),
        velocity=np.array([rng.uniform(-0.3, 0.3), 0, 0]),
        spin=rng.uniform(-2, 2, 3),
        damping=rng.uniform(0.1, 1),
        rolling=0.0 if item.shape == "box" else _ROLLING,  # a cylinder may come to lie on its side
    )
    if rng.random() < 0.5:
        return replace(scene, objects=(falling,))
    away = falling.position[0] + rng.uniform(-0.15, 0.15)
    below = _at(_object(rng, 1, (0.3, 0.8)), away, falling.position[1])
    return replace(scene, objects=(falling, below))


def _slide(rng: np.random.Generator, scene: Scene) -> Scene:
    item, side = _object(rng, 0, (0.15, 0.5)), rng.choice([-1, 1])
    speed, angle = np.sqrt(2 * item.deceleration * rng.uniform(0.2, 0.42)), rng.uniform(-0.35, 0.35)
    placed = _at(item, -side * 0.22, rng.uniform(-0.08, 0.12))
    moving = placed.moving(speed * np.array([side * np.cos(angle), np.sin(angle), 0]))
    return replace(scene, objects=(moving,))


def _collide(rng: np.random.Generator, scene: Scene) -> Scene:
    damping = rng.uniform(0.1, 1)
    first, second = (replace(_object(rng, k, (0.1, 0.2)), damping=damping) for k in range(2))
    side, y = rng.choice([-1, 1]), rng.uniform(-0.05, 0.1)
    speed = np.sqrt(
        rng.uniform(0.4, 0.7) ** 2 + 2 * first.deceleration * 0.2
    )  # friction takes some of it before they meet
    first = _at(first, -side * 0.25, y).moving(np.array([side * speed, 0, 0]))
    second = _at(second, side * rng.uniform(0, 0.05), y + 0.3 * rng.uniform(-1, 1) * second.size[1])
    return replace(scene, objects=(first, second))


def _topple(rng: np.random.Generator, scene: Scene) -> Scene:
    item = _object(rng, 0, (0.6, 1.0), shapes="bc")
    width, height = rng.uniform(0.03, 0.045), rng.uniform(0.09, 0.13)
    size = np.array([width, width if item.shape == "cylinder" else rng.uniform(0.03, 0.06), height])
    tilt = np.arctan(width / height) * rng.uniform(0.6, 1.4)  # at 1 its centre is right above the edge
    yaw = rng.uniform(-0.5, 0.5) + rng.choice([0, np.pi])
    axis = np.array([-np.sin(yaw), np.cos(yaw), 0])  # about which it topples
    c, s = np.cos(tilt), np.sin(tilt)
    out, up = -c * width + s * height, s * width + c * height  # of its centre, from the edge that it stands on
    centre = np.array([np.cos(yaw) * out, np.sin(yaw) * out, up])
    half_yaw, half_tilt = yaw / 2, tilt / 2
    quaternion = np.array(
        [
            np.cos(half_yaw) * np.cos(half_tilt),
            -np.sin(half_yaw) * np.sin(half_tilt),
            np.cos(half_yaw) * np.sin(half_tilt),
            np.sin(half_yaw) * np.cos(half_tilt),
        ]
    )
    spin = axis * rng.uniform(0.3, 1.0)
    edge = np.array([rng.uniform(-0.1, 0.1), rng.uniform(-0.05, 0.05), 0])
    place = {"position": edge + centre, "quaternion": quaternion, "velocity": np.cross(spin, centre), "spin": spin}
    return replace(scene, objects=(replace(item, size=size, **place),))


def _occlude(rng: np.random.Generator, scene: Scene) -> Scene:
    item, side = _object(rng, 0, (0.1, 0.25)), rng.choice([-1, 1])
    speed = np.sqrt(2 * item.deceleration * rng.uniform(0.46, 0.56))
    moving = _at(item, -side * 0.28, rng.uniform(0, 0.05)).moving(np.array([side * speed, 0, 0]))
    wall = np.array([rng.uniform(-0.04, 0.04), -0.13, 0]), np.array([rng.uniform(0.09, 0.12), 0.01, 0.11])
    return replace(scene, objects=(moving,), wall=wall)


def _push(rng: np.random.Generator, scene: Scene) -> Scene:
    item, side = (
        _at(_object(rng, 0, (0.3, 0.6)), rng.uniform(-0.08, 0.08), rng.uniform(-0.05, 0.1)),
        rng.choice([-1, 1]),
    )
    return replace(scene, objects=(item,), pusher=np.array([-side * 0.27, rng.uniform(-0.08, 0.15)]))


_TASKS = {"drop": _drop, "slide": _slide, "collide": _collide, "topple": _topple, "occlude": _occlude, "push": _push}


def build(mujoco: Any, scene: Scene, height: int, width: int) -> Any:
    """The compiled model of a scene: bodies `object0`, ... with one geom of the same name each, and the geoms `table`,
    `backdrop` (visual only), `wall` and `pusher`.

    height, width: pixels of the largest image to be rendered.
    """
    spec = mujoco.MjSpec()
    spec.option.timestep, spec.option.gravity = TIMESTEP, [0, 0, -GRAVITY]
    spec.option.cone, spec.option.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, 10  # else resting objects creep
    world, solref = spec.worldbody, [_CONTACT_TIME, 1]
    world.add_light(pos=[-0.6, -0.9, 2.5], dir=[0.2, 0.35, -1], cutoff=60)
    plane, box = mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX
    world.add_geom(name="table", type=plane, size=[2, 1.2, 0.1], rgba=[0.5, 0.48, 0.45, 1], solref=solref)
    back = {"pos": [0, 1.25, 0], "size": [3, 0.02, 2], "rgba": [0.72, 0.72, 0.68, 1]}
    world.add_geom(name="backdrop", type=box, contype=0, conaffinity=0, **back)
    if scene.wall is not None:
        (position, size) = scene.wall
        wall = {"pos": position + [0, 0, size[2]], "size": size, "rgba": [0.93, 0.93, 0.9, 1]}
        world.add_geom(name="wall", type=box, solref=solref, **wall)
    if scene.pusher is not None:
        _add_pusher(mujoco, spec, scene.pusher)
    for k, item in enumerate(scene.objects):
        body = world.add_body(name=f"object{k}", pos=item.position, quat=item.quaternion)
        body.add_freejoint()
        shape = getattr(mujoco.mjtGeom, f"mjGEOM_{item.shape.upper()}")
        size = [item.size[0], item.size[2], 0] if item.shape == "cylinder" else item.size
        geom = body.add_geom(name=f"object{k}", type=shape, size=size, mass=item.mass, rgba=[*item.colour, 1])
        geom.priority = 1  # on the table its own parameters count
        geom.solref = [_CONTACT_TIME / item.damping, item.damping]  # stiffness is the same for all
        lever = item.friction * item.size.min()
        geom.condim, geom.friction = 6, [item.friction, 0.3 * lever, max(item.rolling * lever, 1e-5)]
    _add_camera(mujoco, world, scene)
    model = spec.compile()
    model.vis.quality.offsamples = 0
    model.vis.headlight.ambient, model.vis.headlight.diffuse = [0.3] * 3, [0.5] * 3
    model.vis.global_.offheight, model.vis.global_.offwidth = height, width
    return model


def _add_pusher(mujoco: Any, spec: Any, position: np.ndarray) -> None:
    """Adds a rod that slides over the table and follows a velocity."""
    body = spec.worldbody.add_body(name="pusher", pos=[*position, PUSHER_HEIGHT + 0.002])
    for name, axis in (("pusher_x", [1, 0, 0]), ("pusher_y", [0, 1, 0])):
        body.add_joint(name=name, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=axis)
        motor = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        motor.gainprm[0], motor.biastype, motor.biasprm[2] = 100, mujoco.mjtBias.mjBIAS_AFFINE, -100
    size = [PUSHER_RADIUS, PUSHER_HEIGHT, 0]
    rod = body.add_geom(name="pusher", type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=size, mass=1, rgba=[0.1, 0.55, 0.2, 1])
    rod.solref = [_CONTACT_TIME, 1]


def _add_camera(mujoco: Any, world: Any, scene: Scene) -> None:
    ahead = scene.target - scene.camera
    right = np.cross(ahead, [0, 0, 1])
    axes = np.stack([right, np.cross(right, ahead), -ahead], 1)  # a MuJoCo camera's: right, up, backwards
    mujoco.mju_mat2Quat(quaternion := np.empty(4), (axes / np.linalg.norm(axes, axis=0)).reshape(9))
    world.add_camera(name="front", pos=scene.camera, quat=quaternion, fovy=40)
