"""Metadata of a data set: the meaning of its state and action dimensions, its cameras, its licence.

LeRobot's format names the dimensions of a vector and nothing else, and a policy that reads axis-angle as Euler angles
trains without an error. Environments and importers therefore state what the source's own code and documents say. What
they do not say stays empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from wamkit.config import ConfigError, shown


@dataclass(frozen=True)
class Field:
    """Dimensions `start` to `stop` - 1 of `observation.state` or `action`, which belong together.

    name: unique within the vector.
    kind: the physical quantity. A "pose" is a position and a rotation in one.
    representation: for actions, "absolute" targets, "delta" from one step to the next, "relative" to the robot's pose
        at the start of the chunk, or "velocity"; "" where it is not known.
    rotation: representation of a rotation; "" for other kinds.
    frame: reference frame; "" where the source does not say.
    unit: "m", "rad", "1" for dimensionless values such as a command in [-1, 1]; "" where the source does not say.
    larger: effect of a larger value in a gripper, of the first value where there are several; "" where the source does
        not say, and for other kinds.
    reference: state that a "delta" is added to: the measured "state", or the "target" of the step before; "" where the
        source does not say, and for other representations.
    """

    name: str
    start: int
    stop: int
    kind: Literal["joint", "position", "rotation", "pose", "gripper", "base", "hand", "other"]
    representation: Literal["absolute", "delta", "relative", "velocity", ""] = "absolute"
    rotation: Literal["", "quat_xyzw", "quat_wxyz", "axis_angle", "euler_xyz", "rot6d", "matrix"] = ""
    frame: Literal["", "base", "world", "camera", "tool"] = ""
    unit: str = ""
    larger: Literal["", "opens", "closes"] = ""
    reference: Literal["", "state", "target"] = ""


@dataclass(frozen=True)
class CameraFacts:
    """Metadata of one camera.

    role: what it is mounted to look at.
    turned: how an importer brought its images upright.
    intrinsics: the 3x3 camera matrix, row by row, in pixels of the stored images; empty where unknown.
    """

    role: Literal["scene", "wrist", "ego", "other"] = "scene"
    turned: Literal["", "flipped", "rotated"] = ""
    intrinsics: tuple[float, ...] = ()


def check_action_bounds(bounds: Sequence[tuple[float, float]], action: int) -> None:
    """Raises ConfigError unless `bounds` are finite, ascending and as many as there are action dimensions."""
    if len(bounds) != action or not all(-inf < low < high < inf for low, high in bounds):
        raise ConfigError(
            f"action_bounds are {shown([list(b) for b in bounds])}: expected one [lowest, highest] for each of the "
            f"{action} action dimensions; correct the metadata, or leave them out"
        )


@dataclass(frozen=True)
class Labels:
    """The run that read the actions of a data set off its videos (`wamkit label`): they are no recordings.

    Step by step, the data set's columns `action.spread` and `action.windows` say how far to trust them.

    run, digest, family: of the run: its path or name, the digest of its weights, its family.
    state: true if the state was read off the images as well; false if it was recorded, or there is none.
    """

    run: str
    digest: str
    family: str
    state: bool = False


@dataclass(frozen=True)
class DatasetMetadata:
    """Metadata of a whole data set; see the module.

    source: the format, and the origin as far as it is known.
    embodiment, control_mode: data sets that agree in both share their normalisation statistics.
    rate: control steps a second.
    licence: of the data; "" where the source does not say.
    offset: 1 if the source recorded each observation *after* the action of its row. Importers shift such rows: in a
        store, row t was always observed before action t.
    state, action: the fields of both vectors.
    cameras: by name.
    action_bounds: (lowest, highest) value of each dimension of the action that the robot accepts; empty where unknown.
        Models trained on the data clip their actions to it.
    columns: "state" and "action" -> the columns of the data files that form them, side by side, where they do not
        have LeRobot's names.
    inferred: entries above that were inferred from names and values rather than stated, as "state.gripper.larger".
    labels: the run that read the actions off the videos; None where they were recorded.
    """

    source: str
    embodiment: str
    control_mode: str = ""
    rate: float = 0.0
    licence: str = ""
    offset: Literal[0, 1] = 0
    state: tuple[Field, ...] = ()
    action: tuple[Field, ...] = ()
    cameras: Mapping[str, CameraFacts] = field(default_factory=dict)
    action_bounds: tuple[tuple[float, float], ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    inferred: tuple[str, ...] = ()
    labels: Labels | None = None

    def check(self, state: int, action: int) -> None:
        """Raises ConfigError unless the fields lie within vectors of these sizes and do not overlap.

        Also for intrinsics that are no camera's.
        """
        for name, fields_, size in (("state", self.state, state), ("action", self.action, action)):
            at = 0
            for f in sorted(fields_, key=lambda f: f.start):
                if not at <= f.start < f.stop <= size:
                    raise ConfigError(
                        f"{name}.{f.name} covers dimensions {f.start} to {f.stop} of {size}, after {at}; "
                        "correct the metadata"
                    )
                at = f.stop
        if self.action_bounds:
            check_action_bounds(self.action_bounds, action)
        for name, camera in self.cameras.items():
            K = camera.intrinsics
            if K and not (len(K) == 9 and all(map(math.isfinite, K)) and min(K[0], K[4], K[8]) > 0 and max(K) < 1e6):
                raise ConfigError(
                    f"camera {name} has intrinsics {list(K)}, which are no 3x3 camera matrix; correct the metadata, "
                    "or leave them out"
                )
