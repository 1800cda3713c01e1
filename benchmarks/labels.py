"""Video turned into demonstrations: makes the data of the comparison `labels`, runs it, and adds how good labels are.

Usage: python benchmarks/labels.py [--data data/points] [--out docs/results] [--work runs/compare] [--few 10]
The page is docs/results/labels.md. Every job, a training with its evaluation, leaves one JSON file in
docs/results/jobs, and every set of labels one in docs/results/labels; asking again continues from these. The data set
is that of the other comparisons (docs/cli.md); beside it lie, and are collected first where they do not, `others`,
eight other tasks, and `elsewhere`, the same tasks in other light, colours and view.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from wamkit.config import save_json
from wamkit.data.description import described
from wamkit.data.format.metadata_io import save_metadata
from wamkit.data.format.store import Store
from wamkit.data.importers.run import require_whole
from wamkit.data.labelled import WINDOWS
from wamkit.data.loading.mixture_config import MixtureConfig, SourceConfig
from wamkit.data.rewriting import files_of_one_episode, images_as_stored
from wamkit.envs.spec import EnvSpec
from wamkit.experiments.comparisons import COMPARISONS, LABELLED_FOLDER, VIDEOS
from wamkit.experiments.page import table
from wamkit.experiments.run import Job, Setup, compare, mixture_of, plan, read_result, write_comparison
from wamkit.files import atomic_write, temporary
from wamkit.inference.labels import label, label_errors
from wamkit.metadata import DatasetMetadata
from wamkit.rollout.collect import CollectConfig, collect
from wamkit.runs.provenance import Provenance
from wamkit.runs.recipes import RECIPES
from wamkit.runs.run import Run
from wamkit.training.interruption import Interrupted
from wamkit.training.launch import train_run
from wamkit.types import Episode, WamkitError

OTHERS = (
    *("button-press-v3", "drawer-close-v3", "window-open-v3", "door-close-v3"),
    *("faucet-open-v3", "handle-press-v3", "plate-slide-v3", "coffee-button-v3"),
)
ELSEWHERE = {"lighting": 0.5, "colours": 0.5, "camera_shift": 0.5}
MADE = re.compile(r"(?P<what>same|same_alone|tasks|elsewhere|succeeded)-(?P<few>\d+)-(?P<seed>\d+)")
"""Folders that the comparison names."""


@dataclass(frozen=True)
class Args:
    """Which data, rows and sizes."""

    data: Path = Path("data/points")
    """Data set of all comparisons."""
    out: Path = Path("docs/results")
    """Folder of the page."""
    work: Path = Path("runs/compare")
    """Folder of the runs; it can be deleted once the JSON files exist."""
    few: tuple[int, ...] = ()
    """Rows of these numbers of demonstrations alone; all if not given."""
    seeds: int = 3
    """Training seeds of each row."""
    episodes: int = 20
    """Held-out reset states a task."""
    held_out: int = 6
    """Validation episodes a task."""
    own: int = 20
    """Episodes a task of the policy of the few demonstrations."""
    elsewhere: int = 13
    """Demonstrations a task in other light, colours and view."""
    others: int = 10
    """Demonstrations of each other task."""
    processes: int = 2
    """Worker processes."""


class Bench:
    """The data that rows need, made once each; `folder` holds them, beside the data set."""

    def __init__(self, args: Args):
        self.args, self.folder = args, args.data.parent / LABELLED_FOLDER
        self.setup = Setup(args.data, args.out, args.work, args.episodes, args.held_out, args.processes)
        self.jobs = plan(COMPARISONS.get("labels")(), self.setup)
        self.env: EnvSpec = Provenance.of(Store.open(args.data)).env

    def base(self, few: int, seed: int) -> Path:
        """The run of the policy that learned from the demonstrations alone."""
        job = next(j for j in self.jobs if (j.entry.name, j.seed) == (f"{few} demonstrations", seed))
        train_run(job.config, mixture_of(job, self.setup), job.folder)  # goes on, or is finished already
        return job.folder

    def own(self, few: int, seed: int) -> Path:
        """Episodes of that policy, from reset states of training."""
        out, counts = self.folder / f"own-{few}-{seed}", {"episodes": 0, "off_expert": 0}
        counts |= {"policy_episodes": self.args.own}
        acting = {"policies": (self.base(few, seed),), "seed": 100 + seed, "processes": self.args.processes}
        collect(CollectConfig(tasks=self.env.tasks, options=self.env.options, out=out, **counts, **acting))
        return out

    def succeeded(self, few: int, seed: int) -> Path:
        """Its successes, as demonstrations of themselves."""
        own = Store.open(self.own(few, seed))
        chosen = [m.index for m in own.episodes if m.success]
        if not chosen:
            raise WamkitError(f"{own.root}: the policy solved none of its {len(own)} episodes, so there is no such row")
        imitated = lambda e: replace(e, is_demonstration=True, action_expert=e.action)  # noqa: E731
        return rewritten(own, chosen, self.folder / f"succeeded-{few}-{seed}", imitated)

    def reader(self, few: int, seed: int, alone: bool) -> Path:
        """A reader that learned from the demonstrations, and the policy's own episodes unless `alone`."""
        sources = [SourceConfig(str(self.args.data.resolve()), demonstrations=(0, few))]
        if not alone:
            sources.append(SourceConfig(str(self.own(few, seed).resolve())))
        name = f"reader{'_alone' * alone}-{few}-{seed}"
        size = Store.open(self.args.data).layout.image_shape[1:]
        mixture = self.setup.work / "mixtures" / f"{name}.json"
        save_json(mixture, MixtureConfig(tuple(sources), by="hour", size=size, views=("scene+ego+wrist",)))
        recipe = RECIPES.get("metaworld-inverse")()
        out = self.setup.work / name
        train_run(replace(recipe, train=replace(recipe.train, seed=seed)), mixture, out)
        return out

    def shown(self, what: str, few: int) -> Store:
        """The recordings whose videos are labelled, with their actions."""
        if what in ("same", "same_alone"):
            store = Store.open(self.args.data)
            demonstrations = [m.index for m in store.episodes if m.is_demonstration][few : few + VIDEOS]
            return Store.open(rewritten(store, demonstrations, self.folder / f"shown-{few}"))
        name, tasks, count, options = {
            "tasks": ("others", OTHERS, self.args.others, {}),
            "elsewhere": ("elsewhere", self.env.tasks, self.args.elsewhere, ELSEWHERE),
        }[what]
        plain = {k: v for k, v in self.env.options.items() if k != "point_grid"}
        out = self.args.data.parent / name
        given = {"options": plain | options, "episodes": count, "off_expert": 0, "processes": self.args.processes}
        return collect(CollectConfig(tasks=tasks, out=out, seed=3, **given))

    def labelled(self, what: str, few: int, seed: int) -> None:
        """The video of `what` with labels, and the file that says how good they are."""
        shown = self.shown(what, few)
        video = rewritten(shown, range(len(shown)), self.folder / f"video-{shown.root.name}", silent)
        run = Run.open(self.reader(few, seed, what == "same_alone"))
        name = f"{what}-{few}-{seed}"
        made = label(run, video, self.folder / name)
        ahead = run.spec.frame_offsets[-1]
        long = [m for m in shown.episodes if m.length > ahead]
        state = np.concatenate([shown.numeric()["observation.state"][m.from_index :][: m.length] for m in long])
        off = made.numeric()["observation.state"] - state
        facts = {
            "row": what,
            "few": few,
            "seed": seed,
            "reader": run.digest,
            "episodes": len(made),
            "frames": made.frames,
            "windowless": int((made.numeric()[WINDOWS] == 0).sum()),
            "actions": [asdict(e) for e in label_errors(shown, made, ahead)],
            "state": {
                n: [float(np.abs(d).mean()), float(s)]
                for n, d, s in zip(made.layout.proprio_names, off.T, state.std(0), strict=True)
            },
        }
        atomic_write(self.setup.out / "labels" / f"{name}.json", (json.dumps(facts, indent=1) + "\n").encode())

    def provide(self, job: Job) -> None:
        """Makes the data sets that a job learns from."""
        for source in job.entry.sources:
            if found := MADE.fullmatch(Path(source.data.replace("{seed}", str(job.seed))).name):
                what, few, seed = found["what"], int(found["few"]), int(found["seed"])
                if what == "succeeded":
                    self.succeeded(few, seed)
                else:
                    self.labelled(what, few, seed)


def silent(episode: Episode) -> Episode:
    """The episode as video has it: without state and actions."""
    none = np.zeros((len(episode), 0), np.float32)
    return replace(episode, proprio=none, action=none, action_expert=none)


def rewritten(
    store: Store, chosen: Sequence[int], out: Path, change: Callable[[Episode], Episode] = lambda e: e
) -> Path:
    """The episodes `chosen` of `store`, changed, as a data set of their own in `out`; nothing where it is there.

    Scene points, depth and further columns are left out.
    """
    if (out / "meta/info.json").exists():
        require_whole(out)
        return out
    video = change(store.episode(chosen[0], images=False)).action.shape[1] == 0
    layout = replace(store.layout, point_grid=0, bodies=0, depth=(), extras=())
    if video:
        layout = replace(layout, proprio_names=(), action_names=(), expert=False, robot_type="none")
    draft = temporary(out)
    shutil.rmtree(draft, ignore_errors=True)
    made, alone = Store.create(draft, **vars(layout)), files_of_one_episode(store)
    for index in chosen:
        episode = replace(store.episode(index, images=False), scene_flow=None, extras={}, snapshots=None)
        made.append(change(episode), images_as_stored(store, index, layout, alone))
    made.finalize()
    known = described(store)
    save_metadata(draft, DatasetMetadata("videos", "", cameras=known.cameras) if video else known)
    draft.rename(out)
    return out


def page_of_labels(out: Path) -> str:
    """The section of the page on how good the labels are."""
    found = [json.loads(path.read_text()) for path in sorted((out / "labels").glob("*.json"))]
    rows = []
    for what, few in sorted({(f["row"], f["few"]) for f in found}):
        own = [f for f in found if (f["row"], f["few"]) == (what, few)]
        actions = [e for f in own for e in f["actions"]]
        mean = lambda key: np.mean([e[key] for e in actions if e[key] is not None])  # noqa: E731, B023
        noise = [(e["noise"] / e["guess"]) ** 2 for e in actions if e["noise"] is not None and e["guess"]]
        names = list(own[0]["state"])
        state = ", ".join(f"{n} {np.mean([f['state'][n][0] for f in own]):.3g}" for n in names)
        rows.append([f"{few}, {what}", f"{mean('share'):.3f}", f"{mean('clean'):.3f}", f"{np.mean(noise):.3f}", state])
    how = (
        "Squared error of the labels as a share of the variance of the actions, the mean over dimensions and seeds, "
        "where 1 is a guess: against what was executed, against the expert's clean actions, and the noise of the "
        "executed actions itself. Then the mean distance of the state that was read, in its own units. Each dimension "
        "by itself is in [labels/](labels/)."
    )
    return f"## Labels\n\n{how}\n\n" + table(["", "of executed", "of clean", "noise", "state"], rows) + "\n"


def main(args: Args) -> None:
    """Runs what is not finished, seed by seed, and writes the page."""
    bench = Bench(args)
    for job in bench.jobs:
        few = int(re.match(r"\d+", job.entry.name)[0])
        if (args.few and few not in args.few) or job.seed >= args.seeds or read_result(job) is not None:
            continue
        try:
            bench.provide(job)
        except Interrupted:
            raise
        except WamkitError as error:
            print(f"left out: {job.title}: {error}", flush=True)
            continue
        try:
            compare("labels", bench.setup, only=[job.entry.name], seeds=job.seed + 1)
        except Interrupted:
            raise
        except WamkitError as error:  # the row of an earlier seed, say, which was left out
            print(f"left out: {job.title}: {error}", flush=True)
        publish(bench.setup)
    print(publish(bench.setup))


def publish(setup: Setup) -> Path:
    """Writes the page of what is finished, with the section on labels, and returns it."""
    page = write_comparison("labels", setup)
    atomic_write(page, f"{page.read_text()}\n{page_of_labels(setup.out)}".encode())
    return page


if __name__ == "__main__":
    main(tyro.cli(Args))
