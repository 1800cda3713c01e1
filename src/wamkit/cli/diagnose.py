"""`wamkit diagnose`: forecast error, policy error or inconsistency, in one episode, with the three videos side by side."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path

from wamkit.config import check_bounds, without_nan
from wamkit.eval.suites.counterfactuals import Setting
from wamkit.eval.suites.forecast_vs_execution import ExecutionScore, diagnosis, execution_score, executions, films
from wamkit.files import atomic_write
from wamkit.inference.model import load
from wamkit.runs.checkpoint import load_checkpoint
from wamkit.types import WamkitError
from wamkit.viz.images import save_video, side_by_side


@dataclass(frozen=True)
class Diagnose:
    """Asks a run along an expert's held-out episode and says what is wrong: the forecast, the policy, or that they do not belong together.

    Writes run/diagnose/episode-N.mp4 (what the expert did, what was imagined, what the model's own actions did) and episode-N.json.
    """

    run: Path
    """Run folder."""
    episode: int = 0
    """Which held-out episode; they take the tasks in turn."""
    stride: int = 4
    """Ask at every so many steps of it."""

    def __post_init__(self) -> None:
        check_bounds(self, episode=(0, inf), stride=(1, inf))


def diagnose(args: Diagnose) -> tuple[ExecutionScore, Path]:
    """Prints the diagnosis and returns its figures and the video. Raises WamkitError where the run's data came from no environment."""
    model, source = load(args.run), load_checkpoint(args.run).config["source"]
    if not source["env"]:
        raise WamkitError(
            f"{args.run} was trained on data that no environment of wamkit made; there is nothing to act in"
        )
    number, task = divmod(args.episode, len(source["tasks"]))
    world = Setting.of({**source, "tasks": [source["tasks"][task]]}, model.spec)
    states = executions(args.run, world, first=number, episodes=1, stride=args.stride, processes=1)
    score = execution_score(states)
    folder = args.run / "diagnose"
    columns = [x for v in range(len(model.spec.cameras)) for x in films(states, v).values()]
    video = save_video(folder / f"episode-{args.episode}.mp4", side_by_side(columns), 10, scale=3)
    words = diagnosis(score)
    facts = {"task": world.tasks[0], "diagnosis": words, **without_nan(asdict(score))}
    atomic_write(folder / f"episode-{args.episode}.json", (json.dumps(facts, indent=2) + "\n").encode())
    print(f"{world.tasks[0]}, {len(states)} states of a held-out episode\n")
    for name in ("forecast", "policy", "consistency"):
        x = getattr(score, name)
        print(f"  {name:<12} {'nothing imagined' if x.undefined else f'{x.value:.2f}'}")
    print(f"\n{words}\nvideo: {video}")
    return score, video
