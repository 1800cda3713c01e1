"""From the entries of a request to an observation, and what a client is told to send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wamkit.data.image_transform import ImageTransform
from wamkit.errors import nearest
from wamkit.inference.checks import fitted_images
from wamkit.metadata import DatasetMetadata, Field
from wamkit.runs.run import Run
from wamkit.types import Observation, ObservationError, Spec, WamkitError

IMAGES, STATE, PROMPT = "observation/images/", "observation/state", "prompt"
"""Keys of a request, unless `Keys` say otherwise."""
MAX_SIDE, MAX_TEXT = 4096, 4096
"""Most pixels of a side of an image, and characters of an instruction."""


@dataclass(frozen=True)
class Keys:
    """The entries of a request that hold an observation.

    images: camera of the model -> entry; of cameras that are not named, `observation/images/CAMERA`.
    state: entries whose values form the state, side by side.
    prompt: entry of the instruction.
    """

    images: Mapping[str, str] = field(default_factory=dict)
    state: tuple[str, ...] = (STATE,)
    prompt: str = PROMPT

    def image(self, camera: str) -> str:
        """The entry of a camera."""
        return self.images.get(camera, IMAGES + camera)


EXAMPLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "libero": (("observation/image", "observation/wrist_image"), ("observation/state",), "prompt"),
    "droid": (
        ("observation/exterior_image_1_left", "observation/wrist_image_left"),
        ("observation/joint_position", "observation/gripper_position"),
        "prompt",
    ),
    "roboarena": (
        (
            "observation/exterior_image_0_left",
            "observation/exterior_image_1_left",
            "observation/wrist_image_left",
        ),
        ("observation/joint_position", "observation/gripper_position"),
        "prompt",
    ),
    "aloha": (
        ("images/cam_high", "images/cam_low", "images/cam_left_wrist", "images/cam_right_wrist"),
        ("state",),
        "prompt",
    ),
}
"""Entries of openpi's examples and of RoboArena: those of cameras in the order of the model's own, of the state, and of
the instruction. `images/cam_high` is the entry `cam_high` of the entry `images`."""


def example_keys(name: str, cameras: Sequence[str]) -> Keys:
    """The keys of one of `EXAMPLES`, for a model with these cameras.

    A camera goes by its name where the example has one of that name, else by its place.
    Raises WamkitError for an unknown name, and for more cameras than the example has.
    """
    if name not in EXAMPLES:
        raise WamkitError(f"unknown keys {name!r}{nearest(name, EXAMPLES)}; known: {', '.join(EXAMPLES)}")
    images, state, prompt = EXAMPLES[name]
    short = {key.rpartition("/")[2]: key for key in images}
    if all(camera in short for camera in cameras):
        return Keys({camera: short[camera] for camera in cameras}, state, prompt)
    if len(cameras) > len(images):
        raise WamkitError(f"the keys of {name} have {len(images)} cameras, the model {len(cameras)}")
    return Keys(dict(zip(cameras, images, strict=False)), state, prompt)


def given_keys(words: Sequence[str], cameras: Sequence[str]) -> Keys:
    """`Keys` from words "CAMERA=KEY", "state=KEY,KEY" and "prompt=KEY", or from the name of one of `EXAMPLES`.

    Raises WamkitError for what is neither a camera of the model nor one of these.
    """
    if len(words) == 1 and "=" not in words[0]:
        return example_keys(words[0], cameras)
    images, prompt = dict[str, str](), PROMPT
    state: tuple[str, ...] = (STATE,)
    for word in words:
        name, _, key = word.partition("=")
        if not key:
            raise WamkitError(f"--keys {word}: expected NAME=KEY, or alone one of {', '.join(EXAMPLES)}")
        if name == "state":
            state = tuple(k for k in key.split(",") if k)
            if not state:
                raise WamkitError(f"--keys {word}: it names no entry")
        elif name == "prompt":
            prompt = key
        elif name in cameras:
            images[name] = key
        else:
            known = [*cameras, "state", "prompt"]
            raise WamkitError(f"--keys {word}: there is no {name!r}{nearest(name, known)}; there is {', '.join(known)}")
    return Keys(images, state, prompt)


class Inputs:
    """Observations from requests, for a model's cameras and state. Every refusal names the entry, what came, what fits.

    cameras: names of the model's views.   optional: those that a request may lack.
    state: number of values of the state.   action: of an action.   keys: see `Keys`.
    metadata: of the data that the model learned from, for names and units; None if it is not known.
    image: resizes images to those of the model as they come, so that nothing larger waits; None to leave them.
    prompt: instruction of requests that have none; "" to refuse these.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        optional: Sequence[str],
        state: int,
        action: int,
        keys: Keys | None = None,
        metadata: DatasetMetadata | None = None,
        image: ImageTransform | None = None,
        prompt: str = "",
    ):
        self.cameras, self.optional, self.state, self.action = tuple(cameras), tuple(optional), state, action
        self.keys, self.metadata, self.image, self.prompt = keys or Keys(), metadata, image, prompt
        every = [self.keys.image(c) for c in self.cameras] + [*self.keys.state, self.keys.prompt]
        if twice := {k for k in every if every.count(k) > 1}:
            raise WamkitError(f"the entry {min(twice)!r} of a request would hold two things: name others, --keys")

    @classmethod
    def of(cls, run: Run, embodiment: str = "", words: Sequence[str] = (), prompt: str = "") -> Inputs:
        """The inputs of a run; of a mixture, those of the robot of the data set `embodiment`.

        words: see `given_keys`.   prompt: see `Inputs`.   Raises WamkitError where they do not fit.
        """
        metadata = run.metadata.get(embodiment) or run.metadata.get("")
        cameras, state, action = run.spec.cameras, run.spec.proprio_dim, run.spec.action_dim
        optional: Sequence[str] = run.optional_views
        if embodiment:
            robot = run.embodiments[embodiment]
            state, action = robot.own_state_size, robot.own_action_size
            cameras = tuple(metadata.cameras)[: max(robot.views) + 1] if metadata else ()
            if len(cameras) != max(robot.views) + 1:
                raise WamkitError(f"{run.label}: the cameras of {embodiment!r} have no names in its metadata")
            optional = ()
        keys = given_keys(words, cameras) if words else None
        return cls(cameras, optional, state, action, keys, metadata, run.image, prompt)

    def observation(self, request: Mapping[Any, Any]) -> Observation:
        """The observation of a request, its images as the network takes them. Raises ObservationError."""
        views, obs = self._read(request)
        images = _stacked(views) if self.image is None else fitted_images(views, self.image, "request")
        return replace(obs, images=images)

    def read(self, request: Mapping[Any, Any]) -> Observation:
        """The observation of a request, its images as they came. Raises ObservationError."""
        views, obs = self._read(request)
        return replace(obs, images=_stacked(views))

    def _read(self, request: Mapping[Any, Any]) -> tuple[tuple[np.ndarray, ...], Observation]:
        """The images as they came, and an observation without them. Raises ObservationError."""
        images, seen = [], []
        for camera in self.cameras:
            key = self.keys.image(camera)
            found = _entry(request, key)
            if found is None and camera not in self.optional:
                raise ObservationError(f"{key} is missing{self._near(request, key)}: expected uint8 (H, W, 3)")
            images.append(None if found is None else _image(key, found))
            seen.append(found is not None)
        if not any(seen):
            raise ObservationError(
                f"there is no image: expected one of {', '.join(map(self.keys.image, self.cameras))}"
            )
        size = next(x.shape for x in images if x is not None)
        views = tuple(np.zeros(size, np.uint8) if x is None else x for x in images)
        text = _entry(request, self.keys.prompt)
        if text is None and self.prompt:
            text = self.prompt
        if isinstance(text, np.str_) or not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
            raise ObservationError(
                f"{self.keys.prompt}: expected an instruction of 1 to {MAX_TEXT} characters, got {_said(text)}"
            )
        valid = None if all(seen) else np.array(seen)
        return views, Observation(np.zeros(0, np.uint8), self._state(request), text, view_valid=valid)

    def _state(self, request: Mapping[Any, Any]) -> np.ndarray:
        parts = []
        for key in self.keys.state:
            found = _entry(request, key)
            if found is None:
                raise ObservationError(f"{key} is missing{self._near(request, key)}: expected {self._fits()}")
            if not isinstance(found, (np.ndarray, np.floating)) or found.dtype.kind != "f" or found.ndim > 1:
                raise ObservationError(f"{key}: expected {self._fits()}, got {_said(found)}")
            parts.append(np.atleast_1d(found))
        with np.errstate(over="ignore"):  # what is too large is not finite then
            state = np.concatenate(parts).astype(np.float32)
        if state.shape != (self.state,):
            named = " and ".join(self.keys.state)
            raise ObservationError(f"{named}: expected {self._fits()}, got {state.size} values")
        if not np.isfinite(state).all():
            raise ObservationError(
                f"{' and '.join(self.keys.state)}: value {int(np.isfinite(state).argmin())} is not finite"
            )
        return state

    def _near(self, request: Mapping[Any, Any], key: str) -> str:
        """The entry that may be meant: one that is none of the others."""
        own = {*map(self.keys.image, self.cameras), *self.keys.state, self.keys.prompt}
        return nearest(key, [k for k in request if isinstance(k, str) and len(k) <= 100 and k not in own][:64])

    def _fits(self) -> str:
        return f"float32 ({self.state},)" if len(self.keys.state) == 1 else f"float32, {self.state} values in all"

    def described(self, spec: Spec, bounds: Sequence[tuple[float, float]]) -> dict[str, Any]:
        """The entries "inputs" and "actions" of the server's metadata. "still" says of each dimension whether it
        stands still at zero; it is left out where the metadata do not say what all of them are.

        bounds: (lowest, highest) value of each action dimension; empty where unknown.
        """
        states, actions = (self.metadata.state, self.metadata.action) if self.metadata else ((), ())
        inputs: dict[str, Any] = {
            self.keys.image(c): {"shape": [None, None, 3], "dtype": "uint8", "optional": c in self.optional}
            for c in self.cameras
        }
        inputs[" + ".join(self.keys.state)] = {"shape": [self.state], "dtype": "float32"} | _named(states, self.state)
        inputs[self.keys.prompt] = {"shape": [], "dtype": "str"}
        told = {"shape": [spec.chunk, self.action], "dtype": "float32"} | _named(actions, self.action)
        if actions:
            said = {i: f.representation for f in actions for i in range(f.start, f.stop)}
            kinds = [said.get(i, "") for i in range(self.action)]
            if all(kind in ("absolute", "delta", "velocity") for kind in kinds):
                told["still"] = [kind != "absolute" for kind in kinds]
        if bounds:
            low, high = zip(*bounds, strict=True)
            told |= {"low": list(map(float, low)), "high": list(map(float, high))}
        return {"inputs": inputs, "actions": told}

    def action_space(self) -> str:
        """RoboArena's name for what actions are. Raises WamkitError where it has none, or the metadata do not say."""
        fields = [f for f in (self.metadata.action if self.metadata else ()) if f.kind != "gripper"]
        found = {(f.kind, f.representation) for f in fields}
        joints = {("joint", "absolute"): "joint_position", ("joint", "velocity"): "joint_velocity"}
        if len(found) == 1 and (name := joints.get(next(iter(found)))):
            return name
        if found and {kind for kind, _ in found} <= {"position", "rotation", "pose"}:
            ways = {representation for _, representation in found}
            if name := {"absolute": "cartesian_position", "velocity": "cartesian_velocity"}.get("".join(ways)):
                return name
        said = ", ".join(sorted(f"{kind} {representation}".strip() for kind, representation in found))
        raise WamkitError(
            "RoboArena has joint or cartesian positions or velocities, and these actions are "
            f"{said or 'not described'}: leave out --dialect roboarena"
        )


def _named(fields: Sequence[Field], size: int) -> dict[str, list[str]]:
    """Names and units of a vector's dimensions, as far as they are known."""
    names, units = [str(i) for i in range(size)], [""] * size
    for part in fields:
        for i in range(part.start, min(part.stop, size)):
            names[i] = part.name if part.stop - part.start == 1 else f"{part.name}_{i - part.start}"
            units[i] = part.unit
    return {"names": names, "units": units}


def _entry(request: Mapping[Any, Any], key: str) -> Any:
    """The entry of a request: `a/b` for its key `a/b`, or for the entry `b` of its entry `a`."""
    if key in request:
        return request[key]
    first, _, rest = key.partition("/")
    inner = request.get(first)
    return _entry(inner, rest) if rest and isinstance(inner, Mapping) else None


def _image(key: str, value: Any) -> np.ndarray:
    """A view of an image as uint8 (3, H, W), from (H, W, 3) or (3, H, W)."""
    good = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3
    if not good or 3 not in (value.shape[0], value.shape[-1]):
        raise ObservationError(f"{key}: expected uint8 (H, W, 3), got {_said(value)}")
    image = value.transpose(2, 0, 1) if value.shape[-1] == 3 else value
    if not all(1 <= side <= MAX_SIDE for side in image.shape[1:]):
        raise ObservationError(f"{key}: sides of 1 to {MAX_SIDE} pixels are taken, got {_said(value)}")
    return image


def _stacked(views: Sequence[np.ndarray]) -> Any:
    """Copies of images, as one array where they have one size."""
    return np.stack(views) if len({x.shape for x in views}) == 1 else tuple(map(np.ascontiguousarray, views))


def _said(value: Any) -> str:
    """Words for a value that does not fit, short whatever it holds."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} ({', '.join(map(str, value.shape))})"
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    return "nothing" if value is None else f"a {type(value).__name__}"
