"""What the numbers of a robot mean: kinds, units, frames, rotations, clocks, cameras, licence.

LeRobot's format names the dimensions of a vector and says no more; a policy that reads axis-angle as Euler angles trains without
an error. Environments and importers state what the source's own code and documents say, and leave empty what they do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from wamkit.config import ConfigError


@dataclass(frozen=True)
class Field:
    """Numbers `start` .. `stop` - 1 of `observation.state` or `action`.

    representation: of actions, "absolute" values, "delta" from one step to the next, "relative" to where the robot was when the chunk
    began, or a "velocity".   rotation: how a turn is written, where this is one.   frame: what it is measured in.
    unit: "m", "rad", "1" for what has none (a command between -1 and 1), "" where the source does not say.
    """

    name: str
    start: int
    stop: int
    kind: Literal["joint", "position", "rotation", "pose", "gripper", "base", "hand", "other"]
    representation: Literal["absolute", "delta", "relative", "velocity"] = "absolute"
    rotation: Literal["", "quat_xyzw", "quat_wxyz", "axis_angle", "euler_xyz", "rot6d", "matrix"] = ""
    frame: Literal["", "base", "world", "camera", "tool"] = ""
    unit: str = ""


@dataclass(frozen=True)
class CameraFacts:
    """role: what it looks at.   turned: what an importer did to bring pictures upright.   intrinsics: the 3x3 matrix, row by
    row, in pixels of the stored pictures; empty where unknown."""

    role: Literal["scene", "wrist", "ego", "other"] = "scene"
    turned: Literal["", "flipped", "rotated"] = ""
    intrinsics: tuple[float, ...] = ()


@dataclass(frozen=True)
class DatasetMetadata:
    """See the module's docstring.

    source: the format and what is known of where it came from.   licence: of the data; "" where the source does not say.
    embodiment, control_mode: statistics are shared by data sets in which both are equal.   rate: control steps a second.
    offset: 1 if the source recorded what was seen *after* each action. Importers shift: in a store, row t was seen before action t.
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

    def check(self, state: int, action: int) -> None:
        """Raises ConfigError unless the fields lie within vectors of these sizes and do not overlap."""
        for name, fields_, size in (("state", self.state, state), ("action", self.action, action)):
            at = 0
            for f in sorted(fields_, key=lambda f: f.start):
                if not at <= f.start < f.stop <= size:
                    raise ConfigError(
                        f"{name}.{f.name} is said to be {f.start} .. {f.stop} of {size} numbers, after {at}; correct the meaning"
                    )
                at = f.stop
