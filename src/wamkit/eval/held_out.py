"""The environment that a run is evaluated in, and recordings from reset states that training never saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from wamkit import old_names
from wamkit.config import digest
from wamkit.data.format.store import Store
from wamkit.envs import ENVIRONMENTS
from wamkit.envs.spec import EnvSpec
from wamkit.files import read_json
from wamkit.inference.model import Model, opened
from wamkit.registry import RegistryError
from wamkit.rollout.collect import CollectConfig, check_fits, collect, plan
from wamkit.runs.plugins import with_maker
from wamkit.runs.provenance import Provenance
from wamkit.runs.run import Run
from wamkit.types import WamkitError

RENDERING = ("cameras", "height", "width", "supersample", "coarse_meshes", "point_grid", "drawn", "turn")
"""Rendering options: they change images, never dynamics."""


def evaluation_env(run: Run, given: EnvSpec, keep_rendering: bool = False) -> EnvSpec:
    """The environment to evaluate `run` in: `given`, or the one that its data came from if `given` names none.

    All tasks of the environment, if `given` names none.
    keep_rendering: rendering options that `given` leaves open are those of the data, if it is the same environment.

    Raises WamkitError for an unknown environment or task, and where neither names an environment.
    """
    trained = run.provenance.env
    if not given.env:
        if not trained.env:
            acting = f" --embodiment {'|'.join(run.embodiments)}" if run.embodiments else ""
            raise WamkitError(
                f"{run.label} was trained on data that no environment of wamkit made; "
                f"name one to evaluate it in: --env NAME{acting}"
            )
        require_env(run)
        return trained
    given.check()
    known = given.known_tasks()
    kept = trained.options if keep_rendering and trained.env == given.env else {}
    options = {**{k: kept[k] for k in RENDERING if k in kept}, **given.options}
    return replace(given, tasks=given.tasks or known, options=options)


def check_playable(run: Run, env: EnvSpec) -> None:
    """Raises WamkitError, before anything is played, where `run` does not fit the environment: see `check_fits`."""
    model, built = acting_model(run, env.embodiment), env.make(env.tasks[0])
    try:
        check_fits(run, model, built, env.env)
    finally:
        built.close()


def require_env(run: Run) -> None:
    """Raises WamkitError, with the package that it came from, where the environment of the data is not there."""
    try:
        ENVIRONMENTS.get(run.provenance.env.env)
    except RegistryError as e:
        raise WamkitError(f"{run.label}: {with_maker(e, run.described)}") from e


def acting_model(run: Run, embodiment: str = "") -> Model:
    """The model of `run` as it acts. Raises WamkitError for a mixture where nothing says which embodiment acts."""
    model = opened(run, embodiment)
    if model.embodiment is None and run.embodiments:
        raise WamkitError(
            f"{run.label} was trained on a mixture; say as which of its embodiments it acts: "
            f"--embodiment {'|'.join(run.embodiments)}, with --env NAME for a simulator"
        )
    return model


def check_unseen(run: Path, sources: Mapping[str, Provenance], seeds: Iterable[int], what: str) -> None:
    """Raises WamkitError if one of `seeds` is among those of the training data.

    run: for the message.   sources: origins of all its training data (`Run.learned_from`).   what: the seeds in words.
    """
    seeds = set(seeds)
    for name, source in sources.items():
        if shared := sorted(seeds.intersection(source.seeds)):
            raise WamkitError(
                f"{what} {shared[:5]} were trained on: {name} has them, so {run} has seen these reset states; train "
                "without these episodes"
            )


def validation_store(
    run: Path,
    sources: Mapping[str, Provenance],
    env: EnvSpec,
    folder: Path,
    episodes: int,
    *,
    processes: int = 2,
    seed: int = 0,
) -> Store:
    """Recordings from reset states that training never saw, made once and kept in `folder`.

    A third of `episodes` each has no, little and much action noise, as in training; one more a task is off-expert.
    run, sources: see `check_unseen`.   env: the environment to record in.
    """
    if not env.env:
        raise WamkitError(
            "the training data were made by no environment of wamkit, so there is none to record in; "
            "name one: wamkit eval RUN --env NAME"
        )
    config = CollectConfig(
        env=env.env,
        options=env.options,
        tasks=env.tasks,
        out=_free(folder / (f"held-out-{episodes}" + (f"-seed-{seed}" if seed else "")), env),
        episodes=episodes,
        off_expert=1,
        held_out=True,
        seed=seed,
        processes=processes,
    )
    unseen = partial(check_unseen, run, sources, what="the seeds of held-out recordings")
    unseen([job.seeds[0] for job in plan(config)])  # before anything is recorded
    store = collect(config)
    unseen([m.seed for m in store.episodes])
    return store


def _free(folder: Path, env: EnvSpec) -> Path:
    """`folder`, or one beside it where it holds recordings of another environment, or of other tasks or options."""
    path = folder / "collect.json"
    if not path.exists():
        return folder
    before = old_names.collected(read_json(path))
    held = EnvSpec(before.get("env", ""), tuple(before.get("tasks", ())), before.get("options", {}))
    own = replace(env, embodiment="")
    return folder if held == own else folder.with_name(f"{folder.name}-{digest([asdict(own)])[:8]}")
