"""Where a run is evaluated: its own world or another, and recordings from reset states that training never saw."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wamkit.config import nearest
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.windows import Frames
from wamkit.envs import ENVIRONMENTS
from wamkit.rollout.collect import CollectConfig, collect
from wamkit.types import WamkitError

_SEEN = ("cameras", "height", "width", "supersample", "coarse_meshes", "point_grid", "drawn", "turn")
"""Options that say how pictures are made, not what happens."""


@dataclass(frozen=True)
class World:
    """An environment to evaluate in that is not the one that the data came from, or one of several.

    tasks: all of the environment's if empty.   options: fields of its Config, as `wamkit collect` is given them.
    robot: of a model that a mixture trained, the data set whose robot acts.   protocol: of `wamkit.eval.protocols`; how pictures are
    made is then as in the data, if these are of the same environment, and results go to run/eval/<protocol>.   note: printed with success.
    """

    env: str
    tasks: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    robot: str = ""
    protocol: str = ""
    note: str = ""

    @property
    def words(self) -> str:
        """What the command line says of it."""
        words = ["--protocol", self.protocol] if self.protocol else ["--env", self.env]
        words += ["--tasks", *self.tasks] if self.tasks else []
        words += ["--options", *(f"{k}={json.dumps(v)}" for k, v in self.options.items())] if self.options else []
        return shlex.join([*words, *(["--robot", self.robot] if self.robot else [])])

    def source(self, trained: Mapping[str, Any]) -> dict[str, Any]:
        """As `wamkit.training.launch.source` describes the data's own world. Raises WamkitError for unknown names."""
        known = ENVIRONMENTS.get(self.env).tasks()
        if unknown := set(self.tasks) - set(known):
            name = min(unknown)
            raise WamkitError(f"{self.env} has no task '{name}'{nearest(name, known)}; it has {', '.join(known)}")
        seen = trained["options"] if self.protocol and trained["env"] == self.env else {}
        options = {**{k: seen[k] for k in _SEEN if k in seen}, **self.options}
        return {**trained, "env": self.env, "tasks": list(self.tasks or known), "options": options}


def validation_frames(
    run: Path, config: dict[str, Any], episodes: int, processes: int = 2, folder: Path | None = None, seed: int = 0
) -> Frames:
    """Recordings from reset states that training never saw, made once and kept in `folder`, or run/eval.

    A third of `episodes` each has no, little and much action noise, as in training; one more a task is off-expert.
    """
    source = config["source"]
    if not source["env"]:
        raise WamkitError(
            f"{run} was trained on data that no environment of wamkit made; name one to evaluate it in: wamkit eval {run} --env NAME"
        )
    store = collect(
        CollectConfig(
            env=source["env"],
            options=source["options"],
            tasks=tuple(source["tasks"]),
            out=(folder or run / "eval") / (f"held-out-{episodes}" + (f"-seed-{seed}" if seed else "")),
            episodes=episodes,
            off_expert=1,
            held_out=True,
            seed=seed,
            processes=processes,
        )  # fmt: skip
    )
    if shared := {m.seed for m in store.episodes} & set(source["seeds"]):
        raise WamkitError(
            f"held-out recordings share the seeds {sorted(shared)[:5]} with training; remove {store.root}"
        )
    return open_frames(store.root)[0]
