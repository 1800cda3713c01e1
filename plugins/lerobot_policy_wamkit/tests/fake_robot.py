"""A robot that stands still and notes what it is told: `--robot.discover_packages_path=fake_robot`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lerobot.robots import Robot, RobotConfig

__path__: list[str] = []  # LeRobot looks for further modules in what it imports by a name
JOINTS = ("a.pos", "b.pos", "c.pos", "d.pos")
STATE = {joint: 0.1 * i for i, joint in enumerate(JOINTS)}
IMAGE = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)


@RobotConfig.register_subclass("fake")
@dataclass
class FakeConfig(RobotConfig):
    """out: the file to which the commands go.   camera: its name."""

    out: str = ""
    camera: str = "corner2"


class Fake(Robot):
    """Four joints and a camera."""

    config_class, name = FakeConfig, "fake"
    is_calibrated = True

    def __init__(self, config: FakeConfig) -> None:
        super().__init__(config)
        self.config, self.told, self._connected = config, [], False

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def observation_features(self) -> dict:
        return dict.fromkeys(JOINTS, float) | {self.config.camera: IMAGE.shape}

    @property
    def action_features(self) -> dict:
        return dict.fromkeys(JOINTS, float)

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True

    def calibrate(self) -> None:
        self.told = []

    def configure(self) -> None:
        self.told = []

    def get_observation(self) -> dict:
        return STATE | {self.config.camera: IMAGE}

    def send_action(self, action: dict) -> dict:
        self.told.append([float(action[joint]) for joint in JOINTS])
        return action

    def disconnect(self) -> None:
        Path(self.config.out).write_text(json.dumps(self.told))
        self._connected = False
