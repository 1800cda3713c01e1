"""`wamkit diagnose`: where a run's fault is, by its evaluations and, in one episode, by three videos side by side."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wamkit.cli.parse import COMMANDS, Options
from wamkit.cli.recordings import chosen_episode, recordings
from wamkit.config import Count, Episodes

if TYPE_CHECKING:
    from wamkit.runs.run import Run


@dataclass(frozen=True)
class Diagnose(Options):
    """Tell where a run's fault is: in the images, in the coupling, in the closed loop, or in chunk and replan.

    First come the figures of `wamkit eval`, judged by their intervals, each with what to try. Where the data came from
    a simulator, an expert's episode follows: is the forecast wrong, the policy, or their agreement? Writes
    diagnose/episode-N.json and diagnose/episode-N.mp4 into the run folder. The video shows the expert's future, the
    imagined one, and the one that the model's own actions lead to. Of data without a simulator it is of a recorded
    episode: what happened, what was imagined for the recorded actions, and what for the model's own.
    """

    run: Path
    """Run folder."""
    _: KW_ONLY
    episode: Episodes | None = None
    """Index of the validation episode, the first if not given; episodes take the tasks in turn. Of recordings the index
    in the data set; the first that the run was not trained on if not given."""
    stride: Count = 4
    """Steps between two queries."""
    embodiment: str = ""
    """Data set of a mixture whose robot recorded the episode."""
    data: Path | None = None
    """Data set of a recorded episode to show; if not given, the run's own where no environment made it."""
    evaluation: str = ""
    """Folder in the run's eval/ of the evaluation to read; by default eval/ itself or the only one."""


@COMMANDS.register("diagnose")
def run(args: Diagnose) -> None:
    """Prints the diagnosis, and writes the files where there is an environment to act in."""
    from wamkit.files import atomic_write
    from wamkit.runs.config import family_class, home, require_run

    path = require_run(args.run)
    folder = home(path) / "diagnose"
    _check_places(folder, args.episode or 0, args.stride)
    from wamkit.config import without_nan
    from wamkit.eval.held_out import require_env
    from wamkit.eval.report.symptoms import symptoms, verdict
    from wamkit.eval.suites.forecast_vs_execution import diagnosis, execution_score, execution_videos, executions
    from wamkit.runs.run import Run
    from wamkit.types import Query
    from wamkit.viz.images import save_video, side_by_side

    opened = Run.open(path)
    found = symptoms(opened, args.evaluation)
    print("\n".join([*map(str, found), "", verdict(found)]), flush=True)
    env = opened.provenance.env
    if args.data is not None or not env.env:
        _show_recording(opened, args, folder)
        return
    if Query.POLICY not in family_class(opened.config.family).queries:
        print("it has no policy, so no episode is played")
        return
    require_env(opened)
    stem = _check_places(folder, args.episode or 0, args.stride)
    number, task = divmod(args.episode or 0, len(env.tasks))
    env = replace(env, tasks=(env.tasks[task],))
    states = executions(opened, env, first=number, episodes=1, stride=args.stride, processes=1)
    score = execution_score(states)
    columns = [x for view in range(len(opened.spec.cameras)) for x in execution_videos(states, view).values()]
    video = save_video(folder / f"{stem}.mp4", side_by_side(columns), 10, scale=3)
    facts = {
        "weights": opened.digest,
        "task": env.tasks[0],
        "diagnosis": diagnosis(score),
        **without_nan(asdict(score)),
    }
    atomic_write(folder / f"{stem}.json", (json.dumps(facts, indent=2) + "\n").encode())
    print(f"\n{env.tasks[0]}, {len(states)} states of a validation episode\n")
    for name in ("forecast", "policy", "consistency"):
        figure = getattr(score, name)
        print(f"  {name:<12} {'nothing imagined' if figure.undefined else f'{figure.value:.2f}'}")
    print(f"\n{facts['diagnosis']}\nvideo: {video}")


def _check_places(folder: Path, episode: int, stride: int) -> str:
    """The name of the files without ending. Raises WamkitError where one of them cannot be written."""
    from wamkit.files import check_place

    stem = f"episode-{episode}" + (f"-stride-{stride}" if stride != Diagnose.stride else "")
    for kind in ("json", "mp4"):
        check_place(folder / f"{stem}.{kind}")
    return stem


def _show_recording(run: Run, args: Diagnose, folder: Path) -> None:
    """Writes the video of a recorded episode, where the run imagines frames and its recordings are there."""
    from wamkit.data.loading.dataset import open_frames
    from wamkit.eval.held_out import acting_model
    from wamkit.eval.suites.recording import query_recording
    from wamkit.types import Query, WamkitError
    from wamkit.viz.images import save_video, side_by_side

    try:
        store = recordings(run, args.data)
    except WamkitError as error:
        print(f"no episode is shown: {error}")
        return
    model = acting_model(run, args.embodiment)
    episode = chosen_episode(run, model, store, args.episode)
    stem = _check_places(folder, episode, args.stride)
    if not (asked := [q for q in (Query.FORWARD, Query.JOINT) if q in model.queries]):
        print("it imagines no frames, so no episode is shown")
        return
    frames = open_frames(store, run.image_size)[0]
    answers = {q: query_recording(model, frames, episode, q, stride=args.stride) for q in asked}
    first = answers[asked[0]]
    columns = [x[:, -1, view] for view in first.views for x in (first.real, *(a.imagined for a in answers.values()))]
    video = save_video(folder / f"{stem}.mp4", side_by_side(columns), 20 / args.stride, scale=3)
    words = {Query.FORWARD: "imagined for the recorded actions", Query.JOINT: "imagined for its own"}
    shown = ", ".join(["what happened", *(words[q] for q in asked)])
    print(f"episode {episode} of {store.root}, per camera: {shown}\nvideo: {video}")
