"""The commands and the Python that the pages show, made small and executed in a folder with what the page presupposes.

`python tests/cli/documented.py FOLDER PAGE...` executes those of some pages.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import re
import shlex
import shutil
import socketserver
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
HERE = "tests/cli/documented.py"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HISTORY = ("LOG.md", "migration.md", "CHANGELOG.md")
PAGES = tuple(
    p.relative_to(ROOT).as_posix()
    for p in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("examples/*/*.md")))
    if p.name not in HISTORY
)
"""All pages but those that tell what once was."""

ELSEWHERE = {
    "docs/your-data.md": "tests/cases/test_laboratory.py::said",
    "docs/pretrained.md": "tests/training/test_imported.py::test_the_guide_is_followed",
    "docs/serving.md": "tests/serving/test_guide.py::test_the_guide_is_followed",
}
"""Pages of which another test executes all: file and function."""

OTHER_TESTS = {
    "--suite full": "tests/cli/test_cli.py::test_the_full_suite_has_all_axes",
    "examples.fetch": "tests/unit/test_gym.py::test_fetch_lifts_and_places",
    "examples.aloha": "tests/unit/test_gym.py::test_aloha_hands_the_cube_over",
    "examples.panda": "tests/unit/test_gym.py::test_panda_places_the_block",
}
"""Parts of commands that another test executes: file and function."""

PLUGIN_PAGES = ("docs/add-a-family.md", "docs/add-an-environment.md", "examples/wamkit-regress/README.md")
"""Pages whose commands need the package examples/wamkit-regress."""

APART = ("docs/data.md", "examples/four-sources/README.md", *PLUGIN_PAGES[1:])
"""Pages that give other contents to names that the README uses too, and so have a folder of their own."""

TREES = ("src/wamkit/\n", "cli\nexperiments | serving\n")
"""Beginnings of blocks that show a folder or the layers rather than commands."""

SMALL = {
    "browse": "--port 0 --no-open-browser",
    "check-env": "",
    "collect": "--episodes 1 --off-expert 0 --processes 1",
    "compare": "--data short/points --seeds 1 --episodes 1 --held-out 1 --processes 1",
    "describe": "",
    "diagnose": "--stride 30 --episode 0",
    "drive": "--episodes 2 --fps 60 --seconds 0.4 --stop-after 60",
    "eval": "--episodes 1 --held-out 1 --steps 1 --processes 1",
    "export": "",
    "import": "",
    "label": "",
    "list": "",
    "mix": "--size 32 32",
    "rank": "--episodes 1 --max-steps 16 --recordings 2 --classifier-steps 4 --candidates 1 --processes 1",
    "report": "",
    "robustness": "--episodes 1 --severities 1 --factors lighting --steps 1 --processes 1",
    "sample": "--stride 30 --episode 0 --held-out 1",
    "show": "",
    "tasks": "",
    "train": "--train.steps 2 --train.batch-size 2 --train.threads 1 --model.width 16 --model.depth 1 --model.heads 2",
    "push": "",
    "record": "--episodes 6 --fps 60 --seconds 0.4",
    "rerun": "--stride 30 --episode 0 --held-out 1",
    "validate": "",
}
"""Options that make a command quick, given after those of the page: the last one counts."""

SMALLER = {
    "--env gym --episodes 0": "--episodes 0 --off-expert 1",
    "--perturbed-experts": "--perturbed-experts 1 --policy-episodes 2",
    "--episodes.labelled": "--episodes.labelled 1",
    "--protocol": "--held-out 0 --tasks reach-v3",
}
"""Further ones of a command that has this part; only the first part that it has counts."""

OPTIONS = {
    "metaworld": "height=32 width=32 supersample=1 max_steps=60",
    "reacher": "height=32 width=32 supersample=1 max_steps=60",
    "physics": "height=32 width=32 supersample=1",
    "pusht": "height=32 width=32",
    "dot": "height=32 width=32",
    "gym": "height=32 width=32 max_steps=20",
}
"""Options of environments, beside those of the page. Experts succeed within these steps."""

HELP = {
    "--encoder": "weights that are downloaded",
}
"""Parts of commands that are executed with --help alone, and why."""

NOT_RUN = {
    "git clone": "network",
    "pip install": "installs",
    "docker": "installs",
    "make": "installs",
    "pytest": "runs the tests of which this is one",
    "tensorboard": "serves until Ctrl-C",
    ".venv/bin/pre-commit": "installs",
    ".venv/bin/python -m pytest": "runs the tests of which this is one",
    "python -c 'import libero.libero'": "a package that is not installed",
    "python3.12 -m venv": "installs",
    ".venv-lerobot06/bin/pip": "installs",
    "lerobot-": "a package that is not installed",
    "python -m lerobot_policy_wamkit": "a package that is not installed",
}
"""Beginnings of commands that are not executed, and why. What they name is looked up where that can be done."""

WORDS = {"T...": ["reach-v3", "door-open-v3"], "...": ["runs/c", "runs/d"]}
"""Words that stand for others on a page."""


@dataclass(frozen=True)
class Step:
    """One command, or one block of Python, of a page."""

    page: str
    line: int
    text: str
    python: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


def steps(page: str) -> list[Step]:
    """Commands and blocks of Python of a page, in order."""
    text, found = (ROOT / page).read_text(), []
    for block in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        line, content = text[: block.start()].count("\n") + 2, block[2]
        if block[1] == "python":
            found.append(Step(page, line, content, python=True))
        if block[1] in ("", "sh", "bash", "console") and not content.startswith(TREES):
            found += [Step(page, line, command) for command in commands(content)]
    return found


def commands(block: str) -> list[str]:
    """The commands of a block of shell, on one line each and without comments; loops as what they repeat."""

    def unrolled(loop: re.Match[str]) -> str:
        return "\n".join(loop[3].replace(f"${loop[1]}", value) for value in loop[2].split())

    block = block.replace("\\\n", " ")
    block = re.sub(r"^for (\w+) in (.+?); do\s(.+?)[;\n]\s*done$", unrolled, block, flags=re.M | re.S)
    lines = (re.sub(r"(^|\s)#.*", "", line) for line in block.splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]


def small(words: list[str], text: str) -> list[str]:
    """The words of a `wamkit` command with those that make it quick.

    Runs stand for each other, but variations and protocols need one of MetaWorld.
    """
    name, *words = words
    if name == "robustness" or "--protocol" in words:
        words[0] = "runs/first"
    words = [name, *(w for word in words for w in WORDS.get(word, [word]))]
    if "--offline" in words:
        return [*words, "--steps", "1"]
    more = shlex.split(SMALL[name]) + shlex.split(next((v for k, v in SMALLER.items() if k in text), ""))
    if name == "compare":
        from wamkit.experiments.comparisons import COMPARISONS

        more += ["--only", COMPARISONS.get(words[1])().entries[0].name]
    env = words[words.index("--env") + 1] if "--env" in words else "metaworld"
    if "--tasks" in words:
        more += ["--tasks", "reach-v3" if env == "metaworld" else words[words.index("--tasks") + 1]]
    if name == "collect" or {"--env", "--protocol"} & set(words):
        options = OPTIONS[env].split()
        place = words.index("--options") + 1 if "--options" in words else len(words)
        words[place:place] = options if "--options" in words else ["--options", *options]
    return [*words, *more]


class Bench:
    """A folder in which pages are executed. common: that of the README, from which data and runs are copied."""

    def __init__(self, folder: Path, common: Bench | None = None):
        self.folder, self.common = folder, common or self
        self.done: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def execute(self, steps: list[Step]) -> int:
        """Executes steps of a page in its folder, and returns their number.

        Raises AssertionError at the first that fails.
        """
        names: dict[str, Any] = {}
        with contextlib.chdir(self.folder):
            for step in steps:
                if step.python:
                    self.provide(step.text)
                    python(step, names)
                else:
                    self.command(step)
        return len(steps)

    def provide(self, text: str) -> None:
        """Makes what a step names and its page presupposes."""
        for part, make in FRESH.items():
            if part in text:
                shutil.rmtree(self.folder / "DATA", ignore_errors=True)
                make(self.folder / "DATA")
        for path, make in PLACES.items():
            if re.search(rf"(?<![\w/.-]){re.escape(path)}(?![\w/.-])", text) and not (self.folder / path).exists():
                if f"--out {path}" not in text:
                    (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                    make(self, self.folder / path)

    def command(self, step: Step) -> None:
        """Executes a command, or looks up what it names."""
        program, *words = shlex.split(step.text)
        if program == "wamkit":
            self.wamkit(step, words)
        elif program == "python" and (ROOT / words[0]).is_file():
            script(ROOT / words[0], words[1:])
        else:
            known = any(step.text.startswith(beginning) for beginning in NOT_RUN)
            assert known, f"{step}: how is this executed? If it cannot be, add its beginning to NOT_RUN in {HERE}"
            missing = unknown_names(program, words, self.folder)
            assert not missing, f"{step}: there is no {', '.join(missing)}"

    def wamkit(self, step: Step, words: list[str]) -> None:
        """Executes a `wamkit` command with its small options, once in each folder."""
        from wamkit.cli.main import main

        hint = f"{step}: add options that make this command quick to SMALL in {HERE}"
        assert words[0] in SMALL, hint
        if any(part in step.text for part in OTHER_TESTS):
            return
        if any(part in step.text for part in HELP):
            try:
                main([*words, "--help"])
            except SystemExit as stop:
                assert not stop.code, step
            return
        argv = small(words, step.text)
        self.provide(shlex.join(argv))
        if shlex.join(argv) in self.done:
            return
        self.done.add(shlex.join(argv))
        print(f"\n$ wamkit {shlex.join(argv)}", flush=True)
        with (
            mock.patch.object(socketserver.BaseServer, "serve_forever", side_effect=KeyboardInterrupt),
            mock.patch("wamkit.experiments.run.RECIPES", SimpleNamespace(get=small_recipe)),
        ):
            assert main(argv) == 0, f"{step}\nexecuted as: wamkit {shlex.join(argv)}"
        if "--out" in argv:
            assert (self.folder / argv[argv.index("--out") + 1]).exists(), f"{step}: it wrote nothing there"


def small_recipe(name: str) -> Callable[[], Any]:
    """The recipe of a row of a comparison, with a budget that is quick."""
    from wamkit.runs.config import changed
    from wamkit.runs.recipes import RECIPES

    options = shlex.split(SMALL["train"])
    values = {k[2:].replace("-", "_"): int(v) for k, v in zip(options[::2], options[1::2], strict=True)}
    return lambda: changed(RECIPES.get(name)(), values)


def unknown_names(program: str, words: list[str], folder: Path) -> list[str]:
    """What a command that is not executed names and this repository does not have."""
    if program == "make":
        return [w for w in words if not re.search(rf"^{w}:", (ROOT / "Makefile").read_text(), re.M)]
    if program == "docker":
        return [] if (ROOT / "Dockerfile").exists() else ["Dockerfile"]
    if program == "tensorboard":
        return [w for w in words[1:] if not any((folder / w).glob("events*"))]
    if program.endswith("pip"):
        extras = [e for w in words for e in re.findall(r"(?:^\.|wamkit)\[(.*)\]", w) for e in e.split(",")]
        missing = [e for e in extras if e not in PYPROJECT["project"]["optional-dependencies"]]
        return missing + [w for w in words if "/" in w and not (ROOT / w / "pyproject.toml").exists()]
    if program in ("pytest", ".venv/bin/python"):
        return [w for w in words if "/" in w and not (ROOT / w).exists()]
    return []


def python(step: Step, names: dict[str, Any]) -> None:
    """Executes a block of Python; of one that is an excerpt it looks up what it defines."""
    tree = ast.parse(step.text)
    if step.page in EXCERPTS and any(isinstance(n, ast.ClassDef) for n in tree.body):
        missing = defined(tree) - defined(ast.parse((ROOT / EXCERPTS[step.page]).read_text()))
        assert not missing, f"{step}: {EXCERPTS[step.page]} has no {missing}"
        return
    for part, given in NAMES.items():
        if part in step.text:
            names.update(given())
    if step.page in IMPORTS_ALONE:
        tree.body = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    exec(compile(tree, f"{step.page}:{step.line}", "exec"), names)


def defined(tree: ast.Module) -> set[str]:
    """Names of a module's classes and of what they define, with their decorators."""
    found = set()
    for node in (n for n in tree.body if isinstance(n, ast.ClassDef)):
        found |= {f"{ast.unparse(d)} {node.name}" for d in node.decorator_list} | {node.name}
        for part in node.body:
            targets = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", None)]
            inside = [getattr(t, "id", None) for t in targets] + [getattr(part, "name", None)]
            found |= {f"{node.name}.{name}" for name in inside if name}
    return found


EXCERPTS = {
    "docs/add-a-family.md": "examples/wamkit-regress/wamkit_regress.py",
    "docs/add-an-environment.md": "examples/wamkit-regress/wamkit_dot.py",
    "docs/add-an-importer.md": "src/wamkit/data/importers/robomimic.py",
    "docs/evaluation.md": "examples/wamkit-regress/wamkit_smoothness.py",
}
"""Files of which a page shows classes in part; other tests execute the files."""

IMPORTS_ALONE = {"docs/evaluation.md": "weights that are downloaded"}
"""Pages whose Python is executed up to its imports, and why."""


def script(path: Path, words: list[str]) -> None:
    """Executes a script that takes sizes, with one task of each kind."""
    import tyro

    spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.TASKS, module.OTHERS = ("reach-v3",), module.OTHERS[1:2]
    module.main(tyro.cli(module.Args, args=[*words, "--episodes", "1", "--processes", "1"]))


def question() -> dict[str, Any]:
    """An observation and a chunk of actions for MetaWorld."""
    import numpy as np

    from wamkit.types import Observation

    obs = Observation(np.zeros((1, 3, 32, 32), np.uint8), np.zeros(4, np.float32), "open the drawer")
    return {"obs": obs, "a": np.zeros((16, 4), np.float32)}


def scene() -> dict[str, Any]:
    """The reading of a perfect probe on an episode of the physics suite."""
    from wamkit.data.format.store import Store
    from wamkit.envs import make_env, read_ground_truth
    from wamkit.eval.suites.physics_scenes import true_states

    episode = Store.open(Path("data/physics")).episode(0, snapshots=True)
    truth = read_ground_truth(make_env("physics", task=episode.task), episode.snapshots)
    return {"states": true_states(truth)}


NAMES = {"model.sample(obs": question, "read_ground_truth(": scene}
"""What a block of Python with this part presupposes."""


# What pages presuppose


def of_the_readme(*parts: str) -> Callable[[Bench, Path], None]:
    """Makes data or a run by the README's commands that have one of these parts."""

    def make(bench: Bench, path: Path) -> None:
        made = [s for s in steps("README.md") if any(part in s.text for part in parts)]
        bench.common.execute(made)
        if bench is not bench.common:
            shutil.copytree(bench.common.folder / path.relative_to(bench.folder), path)

    return make


def copy_of(source: str) -> Callable[[Bench, Path], None]:
    """Copies data or a run of the README's folder."""

    def make(bench: Bench, path: Path) -> None:
        with contextlib.chdir(bench.common.folder):
            bench.common.provide(source)
        shutil.copytree(bench.common.folder / source, path)

    return make


def untrained(family: str, seed: int) -> Callable[[Bench, Path], None]:
    """Makes a run before its first step."""

    def make(bench: Bench, path: Path) -> None:
        from conftest import untrained_run

        options = {"height": 32, "width": 32, "supersample": 1, "max_steps": 60}
        untrained_run(path, ["reach-v3"], options, family, seed)

    return make


def short(bench: Bench, path: Path) -> None:
    """Collects ten demonstrations of an environment that renders fast."""
    from wamkit.cli.main import main

    sizes = ["--episodes", "10", "--off-expert", "1", "--processes", "1", "--options", *OPTIONS["reacher"].split()]
    assert main(["collect", "--env", "reacher", "--tasks", "reach", "--out", str(path), *sizes]) == 0


def trained(bench: Bench, path: Path) -> None:
    """Trains on these demonstrations."""
    bench.provide("short/points")
    bench.command(Step("", 0, f"wamkit train --recipe metaworld-unified --data short/points --out {path}"))


def left_out(bench: Bench, path: Path) -> None:
    """Trains on some of these demonstrations, the last ones left out."""
    bench.provide("short/points")
    words = "wamkit train --recipe metaworld-unified --episodes.held-out 4"
    bench.command(Step("", 0, f"{words} --data short/points --out {path}"))


def session(bench: Bench, path: Path) -> None:
    """Copies a session of UMI's."""
    shutil.copy(ROOT / "tests/importers/data/umi/session.zarr.zip", path)


def laboratory(bench: Bench, path: Path) -> None:
    """Writes recordings in a layout of their own."""
    from tests.importers.test_table import write_groups

    write_groups(path)


def aloha(bench: Bench, path: Path) -> None:
    """Copies recordings of ALOHA."""
    path.mkdir()
    for file in (ROOT / "tests/importers/data/hdf5").glob("episode_*.hdf5"):
        shutil.copy(file, path)


def of_a_robot(path: Path) -> None:
    """Writes data of an arm whose camera is a telephone."""
    from tests.cases.test_describe import SO101, named

    named(path, SO101, robot="", camera="phone")


def without_names(path: Path) -> None:
    """Writes data with seven dimensions that bear no names."""
    from tests.cases.lerobot_folders import Recordings, write_v3

    write_v3(path, Recordings(dims=7))


def in_parts(path: Path) -> None:
    """Writes data whose state is in two columns."""
    from tests.cases.lerobot_folders import write_v3
    from tests.cases.test_columns import parts

    write_v3(path, parts())


def video_of(source: str) -> Callable[[Bench, Path], None]:
    """Makes the videos of a data set alone, without states and actions, as an import of video files has them."""

    def make(bench: Bench, path: Path) -> None:
        from tests.data.recordings import as_video

        bench.provide(source)
        as_video(bench.folder / source, path)

    return make


FIRST = ("--out data/demos", "--out runs/first", "wamkit eval runs/first --episodes", "wamkit sample runs/first")
PLACES: dict[str, Callable[[Bench, Path], None]] = {
    "data/demos": of_the_readme("--out data/demos"),
    "runs/first": of_the_readme(*FIRST),
    "runs/other": copy_of("runs/first"),
    "short/points": short,
    "runs/x": trained,
    "runs/left-out": left_out,
    **{path: copy_of("runs/x") for path in ("runs/y", "runs/z")},
    "data/x": copy_of("short/points"),
    **{path: copy_of("data/demos") for path in ("data/teleop", "data/ego")},
    **{f"runs/{name}": untrained("bc", seed) for seed, name in enumerate(("a", "b", "c", "d", "t1", "t2"))},
    "data/video": video_of("data/demos"),
    "runs/world": untrained("world_model", 0),
    "session.zarr.zip": session,
    "lab.h5": laboratory,
    "SOURCE": aloha,
}
"""Path that a page presupposes, and what makes it there."""

FRESH = {
    "DATA --set embodiment=so101": of_a_robot,
    "DATA --set state.joints=0:6": without_names,
    "DATA --set columns.state": in_parts,
}
"""Part of a command, and what makes the data that it is about, as `DATA`."""


if __name__ == "__main__":
    for chosen in sys.argv[2:]:
        place = Path(sys.argv[1])
        Bench(place / Path(chosen).stem if chosen in APART else place / "common").execute(steps(chosen))
