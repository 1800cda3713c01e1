"""The intact files that cases damage: small data sets, runs, evaluations and sources of every importer.

wamkit makes them by its own commands, in children that may write into the folder of the fixtures alone.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.attack.sandbox import Case, run

TESTS = Path(__file__).parents[2] / "tests"
TINY = (
    *("--model.width", "16", "--model.depth", "1", "--model.heads", "2", "--model.text.buckets", "64"),
    *("--train.steps", "2", "--train.batch-size", "4", "--train.log-every", "1", "--train.threads", "1"),
)
COLLECT = (
    *("collect", "--env", "reacher", "--tasks", "reach", "--episodes", "2", "--off-expert", "1"),
    *("--off-expert-steps", "10", "--options", "height=32", "width=32", "supersample=1"),
    *("--snapshots", "--processes", "1", "--out", "data"),
)
EVAL = ("--episodes", "1", "--held-out", "1", "--steps", "1", "--processes", "1")
COMPARISON = "conditioning"
MADE = (
    COLLECT,
    ("import", "lerobot2", "sources/lerobot2", "--out", "imported"),
    ("mix", "data", "--size", "32", "32", "--out", "mix.json"),
    ("train", "--data", "data", "--out", "run", *TINY),
    ("train", "--data", "data", "--out", "other", *TINY, "--train.seed", "1"),
    *(
        ("train", "--data", "data", "--out", name, "--recipe", "metaworld-bc", *TINY, "--train.seed", str(i))
        for i, name in enumerate(("third", "fourth", "fifth"))
    ),
    ("train", "--data", "mix.json", "--out", "mixed", "--recipe", "unified-mixture", *TINY),
    ("eval", "run", *EVAL),
    ("eval", "other", *EVAL),
    ("sample", "run", "--query", "policy", "--stride", "50"),
    ("@job", "data", "docs", COMPARISON),
)
"""Commands, in order, with which wamkit makes the fixtures."""


@dataclass(frozen=True)
class Source:
    """A foreign data set. path: what is given to the importer; the folder `sources/NAME` has all of its files."""

    format: str
    path: str
    options: tuple[str, ...] = ()


SOURCES = (
    Source("aloha", "sources/aloha"),
    Source("calvin", "sources/calvin"),
    Source("ego4d", "sources/ego4d", ("--options.fps", "5", "--options.size", "32", "32")),
    Source("egodex", "sources/egodex", ("--options.size", "32", "32")),
    Source("epic", "sources/epic", ("--options.fps", "5", "--options.size", "32", "32")),
    Source("lerobot2", "sources/lerobot2"),
    Source("libero", "sources/libero/libero_demo.hdf5"),
    Source("maniskill", "sources/maniskill/maniskill.h5"),
    Source("rlds", "sources/rlds/tiny/1.0.0", ("--options.rate", "5")),
    Source("robomimic", "sources/robomimic/robomimic.hdf5", ("--options.text", "lift")),
    Source("umi", "sources/umi/session.zarr.zip", ("--options.text", "stack")),
    Source("video", "sources/video", ("--options.fps", "5", "--options.size", "32", "32")),
)
"""One source of every importer."""


def make(folder: Path) -> None:
    """Makes all fixtures in `folder`, unless they are there."""
    if (folder / "done").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sources").mkdir(parents=True)
    _sources(folder / "sources")
    shutil.copytree(TESTS / "compatibility/before/geom", folder / "geom")  # the run of an environment with variations
    for i, command in enumerate(MADE):
        print(f"  fixtures: {' '.join(command[:3])} ...", flush=True)
        _must(folder, f"fixture/{i}", command)
    for source in SOURCES:
        print(f"  fixtures: import {source.format}", flush=True)
        command = ("import", source.format, source.path, "--out", f"stores/{source.format}", *source.options)
        _must(folder, f"fixture/{source.format}", command)
    shutil.rmtree(folder / "data/.cache", ignore_errors=True)
    (folder / "done").touch()


def answer(folder: Path, command: tuple[str, ...]) -> str:
    """What an entry prints about the intact files, kept beside them."""
    kept = folder / "answers.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    key = " ".join(command)
    if key not in known:
        scratch = folder.parent / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(folder, scratch)
        known[key] = _must(scratch, "fixture/answer", command)
        kept.write_text(json.dumps(known, indent=1))
        shutil.rmtree(scratch)
    return known[key]


def copy(folder: Path, *names: str):
    """A function of a new folder that copies these fixtures into it."""

    def prepare(into: Path) -> None:
        for name in names:
            source, target = folder / name, into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)

    return prepare


def _must(folder: Path, name: str, command: tuple[str, ...]) -> str:
    ended = run(Case(name, command, lambda *_: "", seconds=60), folder, patience=5)
    shutil.rmtree(folder / ".tmp", ignore_errors=True)
    if ended.code:
        sys.exit(f"the fixture `{' '.join(command)}` cannot be made, exit code {ended.code}:\n{ended.err[-3000:]}")
    return ended.out


def _sources(folder: Path) -> None:
    """Sources of all importers: those of the tests, and those that tests make by hand."""
    files = TESTS / "importers/data"
    for name in ("calvin", "lerobot2", "rlds", "umi"):
        shutil.copytree(files / name, folder / name)
    for name, parts in (
        ("aloha", ("episode_0.hdf5", "episode_1.hdf5")),
        ("libero", ("libero_demo.hdf5",)),
        ("maniskill", ("maniskill.h5", "maniskill.json")),
        ("robomimic", ("robomimic.hdf5",)),
    ):
        (folder / name).mkdir()
        for part in parts:
            shutil.copyfile(files / "hdf5" / part, folder / name / part)
    sys.path.insert(0, str(TESTS))
    from video_files import write_video

    for name in ("video", "epic/P01/videos", "ego4d", "egodex/part1/fold"):
        (folder / name).mkdir(parents=True)
    write_video(folder / "video/a.mp4", 20)
    write_video(folder / "video/b.mp4", 20, mark=4)
    (folder / "video/captions.csv").write_text("file,text,start,stop\na.mp4,open,,\n")
    (folder / "video/captions.jsonl").write_text('{"file": "b.mp4", "text": "stir", "start": 0.0, "stop": 0.5}\n')
    write_video(folder / "epic/P01/videos/P01_01.MP4", 50, fps=25)
    (folder / "epic/EPIC_100_train.csv").write_text(
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
        "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
        "P01_01_0,P01,P01_01,00:00:00.1,00:00:00.40,00:00:01.20,24,72,open door,open,3,door,3,['door'],[3]\n"
    )
    (folder / "epic/EPIC_100_video_info.csv").write_text("video_id,duration,fps,resolution\nP01_01,2,25,64x48\n")
    write_video(folder / "ego4d/abc.mp4", 50, fps=25)
    said = [{"timestamp_sec": t, "narration_text": f"#C C {w}"} for t, w in ((0.4, "opens"), (1.2, "takes"))]
    told = {"abc": {"narration_pass_1": {"narrations": said}}}
    (folder / "ego4d/narration.json").write_text(json.dumps(told))
    _egodex(folder / "egodex/part1/fold", write_video)


def _egodex(folder: Path, write_video) -> None:
    import h5py

    from wamkit.data.importers.egodex import JOINTS

    write_video(folder / "0.mp4", 12)
    with h5py.File(folder / "0.hdf5", "w") as file:
        poses = np.tile(np.eye(4, dtype=np.float32), (12, 1, 1))
        for name in ("camera", *JOINTS):
            file[f"transforms/{name}"] = poses
        file["camera/intrinsic"] = np.array([[736.6, 0, 32.0], [0, 736.6, 24.0], [0, 0, 1]], np.float32)
        file.attrs["llm_description"] = "Fold the shirt."
