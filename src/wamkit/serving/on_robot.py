"""A model that leads a robot: the loop of `wamkit_client.Runner` as a leader of `wamkit.robots.record`.

The robot is asked and moved by the recording's loop, so that every run becomes a data set: what was seen and what was
sent, and with the query `joint` what the model imagined, as cameras named `imagined_CAMERA`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from wamkit_client.chunks import Joining
from wamkit_client.client import Client
from wamkit_client.runner import Runner
from wamkit_client.safety import Limits, Unsafe

from wamkit.robots.base import Features, Robot, RobotError
from wamkit.serving.inputs import IMAGES, PROMPT, STATE
from wamkit.types import Query, WamkitError

_LOG = logging.getLogger("wamkit.serving")
IMAGINED = "imagined_"
"""Prefix of cameras that hold what was imagined."""
_STEP = "drive/step"


class _Watched:
    """A client whose imagined frames are kept, with the step that they were asked at."""

    def __init__(self, client: Client):
        self._client, self._lock = client, threading.Lock()
        self._newest: tuple[int, np.ndarray] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        request = dict(observation)
        step = request.pop(_STEP)
        answer = self._client.infer(request)
        if "future" in answer:
            with self._lock:
                self._newest = step, answer["future"]
        return answer

    def imagined(self) -> tuple[int, np.ndarray] | None:
        """Step at which the newest future was asked for, and its frames (F, V, H, W, 3)."""
        with self._lock:
            return self._newest


class ModelLeader:
    """Leads `robot` by the model that `client` asks, with the targets of one step a call.

    text: instruction.   hz: steps a second.   chunking, replan_every: see `Runner`.
    query: `policy`, or `joint` to imagine as well.   steps: denoising steps; the model's own number if not given.
    rate, jerk: limits of what is sent, in the robot's units a step, as of `Limits`; its bounds are the server's.
    stop_after: seconds without an action after which the episode ends with an error.

    Values named `.vel`, as of LeRobot's bases, stand still at zero, and so do those that the server tells; all others
    are targets and stand where they are. When an episode ends, however it does, the robot is told to stand still.
    Raises WamkitError where the robot's cameras, state or action are not those of the model, or where it is not known
    where a target is before the first answer.
    """

    def __init__(
        self,
        client: Client,
        robot: Robot,
        text: str,
        *,
        hz: float,
        chunking: Joining = "switch",
        replan_every: int | None = None,
        query: Query = Query.POLICY,
        steps: int | None = None,
        rate: float | None = None,
        jerk: float | None = None,
        stop_after: float = 2.0,
    ):
        self.features, self.text, self.query, self.steps = Features.of(robot), text, query, steps
        self._robot, self._given, self.cameras = robot, client, _check(client.metadata, self.features, query)
        self._client, told = _Watched(client), client.metadata["wamkit"]
        if steps is not None and steps > told.get("max_steps", steps):
            raise WamkitError(f"steps = {steps}: the server answers in at most {told['max_steps']} denoising steps")
        names = self.features.action
        known = told["actions"].get("still", [False] * len(names))
        still = [bool(k) or name.endswith(".vel") for k, name in zip(known, names, strict=True)]
        lost = [n for n, s in zip(names, still, strict=True) if not s and n not in self.features.state]
        if lost:
            raise WamkitError(
                f"the robot's state does not tell where its target '{lost[0]}' is, so it could not stand still before "
                "the first answer: name values of state and action alike"
            )
        if chunking == "rtc" and not told.get("ahead"):
            raise WamkitError("the model cannot go on from given actions: choose --chunking ensemble")
        try:
            limits = Limits.of(client.metadata, still=still, rate=rate, jerk=jerk)
        except ValueError as error:
            raise WamkitError(f"limits: {error}") from error
        self._options: dict[str, Any] = {
            "hz": hz,
            "chunking": chunking,
            "replan_every": replan_every,
            "limits": limits,
            "stop_after": stop_after,
        }
        self.image_size: Sequence[int] = told.get("image_size", ())
        """Height and width of imagined frames."""
        self.runner: Runner | None = None
        self._step = -1

    def begin(self, text: str) -> None:
        """An episode begins: nothing of the one before is used."""
        self.close()
        self._client, self.text, self._step = _Watched(self._given), text, -1

    def rest(self) -> None:
        """An episode has ended: the robot is told to stand still, and nothing is asked or sent until the next."""
        self.close()

    def get_action(self, observation: Mapping[str, Any]) -> dict[str, float]:
        """The targets of this step. Raises RobotError once the robot was stopped, with the reason."""
        state, images = self.features.observed(observation)
        self._step += 1
        if self.runner is None:
            first = np.array([float(observation.get(name, 0.0)) for name in self.features.action])
            first = np.where(self._options["limits"].still, 0, first)
            try:
                self.runner = Runner(self._client, first=first, **self._options)  # type: ignore[arg-type]
            except ValueError as error:
                raise RobotError(str(error)) from error
        told: dict[str, Any] = {"query": str(self.query)}
        if self.steps is not None:
            told["steps"] = self.steps
        if self.query is Query.JOINT:
            told["imagined"] = True
        if self._step == 0:
            told["reset"] = True
        request = {IMAGES + camera: images[camera] for camera in self.cameras if camera in images}
        try:
            action = self.runner.step({**request, STATE: state, PROMPT: self.text, "wamkit": told, _STEP: self._step})
        except Unsafe as error:
            raise RobotError(str(error)) from error
        if self.runner.stopped:
            raise RobotError(f"the robot was stopped: {self.runner.stopped}")
        return self.features.named(action)

    def imagined(self) -> dict[str, np.ndarray]:
        """Imagined images of the next step, uint8 (H, W, 3) by camera: frames of the nearest step that there are."""
        newest = self._client.imagined() if self.runner else None
        if newest is None:
            return {}
        asked, frames = newest
        away = [abs(asked + ahead - self._step - 1) for ahead in self._client.metadata["wamkit"]["frame_offsets"]]
        return dict(zip(self.cameras, frames[int(np.argmin(away))], strict=True))

    def close(self) -> None:
        """Tells the robot to stand still, and ends the runner of an episode."""
        if self.runner is None:
            return
        runner, self.runner = self.runner, None
        if runner.guard.last is not None:
            still = np.where(self._options["limits"].still, 0, runner.guard.last).astype(np.float32)
            try:
                self._robot.send_action(self.features.named(still))
            except Exception as error:  # a robot that fails is told elsewhere, and this must not hide it
                _LOG.warning("%s does not take the command to stand still: %s", type(self._robot).__name__, error)
        runner.close(10.0)


class Imagining:
    """`robot` with further cameras, which hold what `leader` imagines: black until it has imagined anything."""

    def __init__(self, robot: Robot, leader: ModelLeader):
        self._robot, self._leader = robot, leader
        size = tuple(leader.image_size)
        self.name = getattr(robot, "name", type(robot).__name__)
        self._black = {IMAGINED + camera: np.zeros((*size, 3), np.uint8) for camera in leader.cameras}
        self.action_features = robot.action_features
        self.observation_features = {**robot.observation_features, **{n: (*size, 3) for n in self._black}}

    def get_observation(self) -> dict[str, Any]:
        """The robot's own, and what was imagined of this moment."""
        imagined = {IMAGINED + camera: image for camera, image in self._leader.imagined().items()}
        return {**self._robot.get_observation(), **self._black, **imagined}

    def send_action(self, action: Mapping[str, float]) -> Mapping[str, float]:
        """The robot's own."""
        return self._robot.send_action(action)


def _check(metadata: Mapping[str, Any], features: Features, query: Query) -> list[str]:
    """The model's cameras, which the robot has, but for optional ones. Raises WamkitError, naming what differs."""
    told = metadata.get("wamkit")
    if not told:
        raise WamkitError("the server tells nothing of its model, so it is not known whether it fits the robot")
    if str(query) not in told["queries"]:
        raise WamkitError(f"the server answers {' and '.join(told['queries'])}, not '{query}'")
    inputs = told["inputs"]
    if STATE not in inputs or PROMPT not in inputs:
        raise WamkitError(f"the server's entries are not wamkit's own, but {', '.join(inputs)}: serve without --keys")
    wanted = {key.removeprefix(IMAGES): facts for key, facts in inputs.items() if key.startswith(IMAGES)}
    lacking = [c for c, facts in wanted.items() if c not in features.cameras and not facts.get("optional")]
    if lacking or not wanted:
        has = ", ".join(features.cameras) or "none"
        raise WamkitError(f"the model sees the camera {' and '.join(lacking) or 'none'}; the robot's cameras: {has}")
    for what, own, facts in (("state", features.state, inputs[STATE]), ("action", features.action, told["actions"])):
        size, names = facts["shape"][-1], facts.get("names", ())
        if size != len(own):
            raise WamkitError(f"the model's {what} has {size} values, the robot's {len(own)}: {', '.join(own)}")
        if sorted(names) == sorted(own) and tuple(names) != own:
            raise WamkitError(
                f"the model's {what} is {', '.join(names)}, the robot's in another order: {', '.join(own)}"
            )
    return list(wanted)
