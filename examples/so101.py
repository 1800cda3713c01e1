"""A simulated arm like LeRobot's SO-101 in MuJoCo, with the interface of LeRobot's robots, and a program that leads it.

    wamkit record --robot examples.so101:SimulatedArm --leader examples.so101:Touch --hands-free \\
        --text "touch the block" --episodes 20 --fps 15 --seconds 6 --out data/arm

Joints are in degrees, the gripper from 0 (closed) to 100, as LeRobot calibrates them. `examples.so101` is found from
the folder above this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wamkit.envs.rendering import Renderer, load_mujoco

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
HOME = np.array([0.0, -60.0, 60.0, 50.0, 0.0, 50.0])
"""Degrees of the joints at rest, and the gripper's opening."""

_LINK = '<geom type="capsule" fromto="0 0 0 {0}" size="0.014" rgba="0.95 0.75 0.2 1" mass="0.08"/>'
_MODEL = f"""
<mujoco>
  <option timestep="0.005" integrator="implicitfast"/>
  <visual><global offwidth="1280" offheight="1280"/></visual>
  <default>
    <joint damping="0.6" armature="0.02"/>
    <geom contype="1" conaffinity="0"/>
    <position kp="20" forcerange="-8 8"/>
  </default>
  <worldbody>
    <light pos="0.2 -0.4 1.2" dir="-0.1 0.3 -1"/>
    <geom name="table" type="plane" size="0.6 0.6 0.1" rgba="0.75 0.78 0.8 1" contype="0" conaffinity="3"/>
    <body name="base" pos="0 0 0.05">
      <geom type="cylinder" size="0.035 0.05" rgba="0.2 0.2 0.25 1"/>
      <body name="pan" pos="0 0 0.05">
        <joint name="shoulder_pan" axis="0 0 1" range="-100 100"/>
        <geom type="sphere" size="0.02" mass="0.05"/>
        <body name="upper">
          <joint name="shoulder_lift" axis="0 1 0" range="-100 100"/>
          {_LINK.format("0.03 0 0.115")}
          <body name="fore" pos="0.03 0 0.115">
            <joint name="elbow_flex" axis="0 1 0" range="-100 100"/>
            {_LINK.format("0.135 0 0")}
            <body name="wrist" pos="0.135 0 0">
              <joint name="wrist_flex" axis="0 1 0" range="-100 100"/>
              {_LINK.format("0.06 0 0")}
              <camera name="wrist" pos="0.02 0 0.05" xyaxes="0 -1 0 0.5 0 0.86" fovy="70"/>
              <body name="hand" pos="0.06 0 0">
                <joint name="wrist_roll" axis="1 0 0" range="-100 100"/>
                <geom type="box" size="0.03 0.004 0.01" pos="0.03 -0.014 0" rgba="0.2 0.2 0.25 1" mass="0.02"/>
                <site name="tip" pos="0.055 0 0" size="0.004"/>
                <body name="jaw" pos="0 0.014 0">
                  <joint name="gripper" axis="0 0 1" range="0 60"/>
                  <geom type="box" size="0.03 0.004 0.01" pos="0.03 0 0" rgba="0.2 0.2 0.25 1" mass="0.02"/>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
    <body name="block" pos="0.22 0 0.015">
      <freejoint/>
      <geom type="box" size="0.015 0.015 0.015" rgba="0.8 0.15 0.15 1" mass="0.03" contype="2" conaffinity="1"/>
    </body>
  </worldbody>
  <actuator>{"".join(f'<position name="{j}" joint="{j}"/>' for j in JOINTS)}</actuator>
</mujoco>
"""
_FRONT = {"lookat": [0.14, 0, 0.06], "distance": 0.55, "azimuth": 150, "elevation": -30}


class SimulatedArm:
    """The arm with a block on a table, and two cameras.

    height, width: of the images.   seed: of the block's places.   hz: actions a second of simulated time.
    """

    name = "simulated_so101"

    def __init__(self, height: int = 96, width: int = 128, seed: int = 0, hz: float = 15.0):
        mujoco = self._mujoco = load_mujoco()
        self.model = mujoco.MjModel.from_xml_string(_MODEL)
        self.data = mujoco.MjData(self.model)
        self._rng, self._steps = np.random.default_rng(seed), max(1, round(1 / hz / self.model.opt.timestep))
        size = {"height": height, "width": width, "supersample": 1}
        self._renderer = Renderer(mujoco, self.model, self.data, cameras=[_FRONT, "wrist"], **size)
        values = {f"{j}.pos": float for j in JOINTS}
        self.action_features: dict[str, Any] = dict(values)
        self.observation_features: dict[str, Any] = {**values, "front": (height, width, 3), "wrist": (height, width, 3)}
        self.reset()

    def reset(self) -> None:
        """Puts the arm at rest, and the block somewhere in front of it."""
        self._mujoco.mj_resetData(self.model, self.data)
        angle, reach = self._rng.uniform(-0.6, 0.6), self._rng.uniform(0.17, 0.24)
        block = self.data.joint(self.model.body("block").jntadr[0])
        block.qpos[:3] = reach * np.cos(angle), reach * np.sin(angle), 0.015
        for joint, value in zip(JOINTS, _to_radians(HOME), strict=True):
            self.data.joint(joint).qpos = value
        self.data.ctrl[:] = _to_radians(HOME)
        self._mujoco.mj_forward(self.model, self.data)

    def connect(self) -> None:
        """Nothing is to be connected."""

    def disconnect(self) -> None:
        """Nothing is to be disconnected."""

    def get_observation(self) -> dict[str, Any]:
        """Joints in degrees, the gripper's opening, and both images."""
        joints = _to_degrees(np.array([self.data.joint(j).qpos[0] for j in JOINTS]))
        images = self._renderer.render()
        front, wrist = (np.ascontiguousarray(np.moveaxis(x, 0, -1)) for x in images)
        return {**{f"{j}.pos": float(x) for j, x in zip(JOINTS, joints, strict=True)}, "front": front, "wrist": wrist}

    def send_action(self, action: Mapping[str, float]) -> dict[str, float]:
        """Moves towards the targets for one step; returns them, clipped to the joints' ranges."""
        limits = np.array([self.model.joint(j).range for j in JOINTS]).T
        target = np.clip(_to_radians(np.array([action[f"{j}.pos"] for j in JOINTS])), *limits)
        self.data.ctrl[:] = target
        self._mujoco.mj_step(self.model, self.data, self._steps)
        return {f"{j}.pos": float(x) for j, x in zip(JOINTS, _to_degrees(target), strict=True)}


class Touch:
    """Leads a `SimulatedArm` to touch its block, and puts it back once it has.

    near: distance of the tip from the block's top, in metres, that counts.
    """

    def __init__(self, robot: SimulatedArm, near: float = 0.012):
        self._robot, self._near, self._done = robot, near, False
        self._plan = robot._mujoco.MjData(robot.model)

    def get_action(self, observation: Mapping[str, Any]) -> dict[str, float] | None:
        """The targets; None once the block is touched."""
        arm = self._robot
        if self._done:
            arm.reset()
            self._done = False
        tip, block = arm.data.site("tip").xpos, arm.data.body("block").xpos + [0, 0, 0.02]
        if np.linalg.norm(tip - block) < self._near:
            self._done = True
            return None
        above = np.linalg.norm(tip[:2] - block[:2]) > 0.03
        return self._towards(block + [0, 0, 0.05 if above else 0.0])

    def _towards(self, place: np.ndarray) -> dict[str, float]:
        """Joint targets that bring the tip a step nearer: damped least squares on the Jacobian."""
        arm, plan = self._robot, self._plan
        plan.qpos[:] = arm.data.qpos
        arm._mujoco.mj_forward(arm.model, plan)
        dofs = [arm.model.joint(j).dofadr[0] for j in JOINTS[:4]]
        jacobian = np.zeros((3, arm.model.nv))
        arm._mujoco.mj_jacSite(arm.model, plan, jacobian, None, arm.model.site("tip").id)
        J, error = jacobian[:, dofs], place - plan.site("tip").xpos
        error *= min(1.0, 0.006 / max(np.linalg.norm(error), 1e-9))
        change = J.T @ np.linalg.solve(J @ J.T + 1e-3 * np.eye(3), error)
        # From the last targets, not from where the joints are: they hang a little below them.
        target = arm.data.ctrl.copy()
        target[:4] += change
        return {f"{j}.pos": float(x) for j, x in zip(JOINTS, _to_degrees(target), strict=True)}


def _to_radians(values: np.ndarray) -> np.ndarray:
    """Degrees, and the gripper's opening of 0 to 100, as angles."""
    return np.deg2rad(np.append(values[:5], 0.6 * values[5]))


def _to_degrees(angles: np.ndarray) -> np.ndarray:
    degrees = np.rad2deg(angles)
    return np.append(degrees[:5], degrees[5] / 0.6)
