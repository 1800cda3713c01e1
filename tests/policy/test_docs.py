"""The documentation and the code say the same."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import itertools
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from wamkit.cli.parse import COMMANDS, options_of, parse
from wamkit.registry import load_package
from wamkit.runs.recipes import RECIPES

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/wamkit"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HISTORY = ("LOG.md", "migration.md")
PRESENT = [p for p in PAGES if p.name not in (*HISTORY, "evaluation.md")]
"""Pages whose names must be of today."""
ids = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
present = pytest.mark.parametrize("page", PRESENT, ids=lambda p: p.relative_to(ROOT).as_posix())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def blocks(text: str) -> list[str]:
    """The fenced blocks of a page."""
    return re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def slugs(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.M)
    plain = (re.sub(r"[^\w\s-]", "", re.sub(r"\]\([^)]*\)", "", t)).strip().lower() for t in titles)
    return {re.sub(r"\s", "-", t) for t in plain}


@ids
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or anchor and anchor not in slugs(place):
            broken.append(target)
    assert not broken


@present
def test_modules_and_files_that_a_page_names_exist(page):
    text, missing = page.read_text(), []
    names = set(re.findall(r"\bwamkit(?:\.[A-Za-z_]\w*)+(?!\.?\w*/)", text))
    names |= {f"wamkit.{name}" for name in re.findall(r"`([a-z]+(?:\.\w+)+)`", text) if is_room(name.split(".")[0])}
    for name in names:
        if not name.endswith(".json") and not importable(name):
            missing.append(name)
    for path in set(re.findall(r"`((?:[\w-]+/)+[\w.-]*)`", text)):
        places = (ROOT, SOURCE, page.parent)
        top = path.split("/")[0]
        if re.search(r"\b[A-Z]{2,}\b", path):  # a placeholder: families/NAME.py
            continue
        if (SOURCE / top).exists() or top in ("src", "tests", "benchmarks", "tools", "examples", "docs"):
            if not any((p / path).exists() for p in places):
                missing.append(path)
    assert not missing


def is_room(name: str) -> bool:
    return (SOURCE / name / "__init__.py").is_file()


def importable(name: str) -> bool:
    """True if a dotted name is a module, or what a module holds, or an entry point group that something reads."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for attribute in parts[n:]:
            if not hasattr(found, attribute):
                return name in GROUPS
            found = getattr(found, attribute)
        return True
    return False


GROUPS = {m for p in SOURCE.rglob("*.py") for m in re.findall(r'"(wamkit\.[a-z]+)"', p.read_text())}
"""Names of entry point groups, as the source spells them."""


def test_contributing_draws_the_layers_that_are_checked():
    drawn = next(b for b in blocks((ROOT / "CONTRIBUTING.md").read_text()) if b.startswith("cli\n")).splitlines()
    contract = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    assert drawn == [layer.replace("wamkit.", "") for layer in contract["layers"]]
    assert len(drawn) <= 14


def test_contributing_names_the_folders_of_tests():
    named = set(re.findall(r"`tests/(\w+)/`", (ROOT / "CONTRIBUTING.md").read_text()))
    assert named == {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and any(p.rglob("*.py"))}


def test_readme_has_a_line_for_each_room():
    tree = next(b for b in blocks((ROOT / "README.md").read_text()) if b.startswith("src/wamkit/\n"))
    named = [m.rstrip("/") for m in re.findall(r"^  (\S+)", tree, re.M)]
    rooms = [p.name for p in SOURCE.iterdir() if (p / "__init__.py").is_file() or p.suffix == ".py"]
    assert sorted(named) == sorted(set(rooms) - {"__init__.py", "__main__.py"})


def tool(name: str):
    """A script of tools/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FIGURES = tool("figures").FIGURES


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_what_the_code_draws(name):
    assert (ROOT / "docs/figures" / name).read_text() == FIGURES[name](), "python tools/figures.py draws it again"


def test_the_attention_figure_shows_each_programs_mask():
    from wamkit.nn.attention_mask import Program, visibility

    figures = tool("figures")
    for program in Program:
        drawn = "\n".join(figures.matrix(program, 0, 0))
        mask = visibility(figures.sequence(program), program)
        assert drawn.count('rect class="none"') == int((~mask).sum())
        assert drawn.count("<rect") == mask.numel()


def commands(page: Path) -> list[list[str]]:
    """The words of every `wamkit` command in the text of a page, up to `...`; tests/cli parses those in blocks."""
    found = re.findall(r"`wamkit ([^`]+)`", prose(page.read_text()))
    return [shlex.split(re.sub(r"(\.\.\.|…).*", "", line)) for line in found]


@functools.cache
def options_of_command(name: str, *words: str) -> set[str]:
    """The options that a command offers after `words`: a recipe or a format may add some."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        parse(options_of(COMMANDS.get(name)), name, [*words, "--help"])
    return set(re.findall(r"--[a-z][\w.-]*", shown.getvalue()))


@present
def test_commands_that_a_page_shows_exist(page):
    load_package("wamkit.cli")
    wrong = []
    for name, *words in commands(page):
        if name in ("COMMAND", "--help", "--version"):
            continue
        if name not in COMMANDS:
            wrong.append(name)
            continue
        first = [w for w in itertools.takewhile(lambda w: not w.startswith("--"), words) if not w.isupper()]
        if name == "train" and "--recipe" in words:
            recipe = words[words.index("--recipe") + 1]
            first += ["--recipe", recipe] if recipe in RECIPES else []
        used = {w.split("=")[0] for w in words if w.startswith("--")} - {"--help"}
        wrong += [f"{name} {option}" for option in used - options_of_command(name, *first)]
    assert not wrong, wrong


def test_migration_names_what_exists():
    """The present side of its tables of modules and names: `module`, `module.name`, or `module` with names after it."""
    text = (ROOT / "docs/migration.md").read_text()
    missing = []
    for cell in re.findall(r"^\| .* \| (.*) \|$", text[text.index("## Modules") :], re.M):
        for part in cell.split("; "):
            first, *names = re.findall(r"`([\w.]+)`", part) or ["wamkit"]
            listed = part.startswith(f"`{first}`:") or part.startswith(f"`{first}` (")
            places = [f"{first}.{name}" for name in names] if listed else [n for n in (first, *names) if "." in n]
            known = [n for n in places if is_room(n.split(".")[0]) or (SOURCE / f"{n.split('.')[0]}.py").is_file()]
            missing += [n for n in known if not importable(f"wamkit.{n}")]
    assert not missing, missing


def test_the_line_limit_is_the_one_that_is_checked():
    stated = int(re.search(r"Lines have at most (\d+) characters", (ROOT / "CONTRIBUTING.md").read_text())[1])
    ruff = PYPROJECT["tool"]["ruff"]
    assert stated == ruff["line-length"] == ruff["lint"]["pycodestyle"]["max-line-length"]
