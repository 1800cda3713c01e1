"""Rules of the house that a machine can hold."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/wamkit"
ROOMS = sorted(p.stem for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file())
FAMILY_FILES = sorted(p for p in (ROOT / "src/wamkit/families").glob("[!_]*.py") if p.stem != "base")


def test_imports_go_down_only():
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_is_clean():
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "src", "tests", "benchmarks", "tools"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def test_torchvision_is_absent():
    """The registry's build for this torch breaks torchmetrics and drags CUDA in; nothing here may pull it."""
    assert importlib.util.find_spec("torchvision") is None


@pytest.mark.parametrize("path", FAMILY_FILES, ids=lambda p: p.stem)
def test_a_family_is_one_short_file_that_imports_no_other(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert not re.search(r"(from|import) wamkit\.families(?!\.base )", text)


def test_json_of_files_is_read_with_limits():
    unlimited = re.compile(r"json\.load\(|json\.loads\([^\n]*(read_text|read_bytes|\.read\()")
    found = [str(p) for p in (ROOT / "src").rglob("*.py") if unlimited.search(p.read_text())]
    assert not found, f"wamkit.files.read_json limits size and depth, json.loads does not: {found}"


def test_readme_names_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme and "make test" in readme and len(readme.splitlines()) < 200


def docstrings(path: Path):
    """Line and text of a file's public docstrings: of the module, its classes and functions, and of fields."""
    public = lambda n: not n.name.startswith("_") or (n.name.startswith("__") and n.name.endswith("__"))  # noqa: E731

    def walk(node):
        body = node.body
        for before, n in zip([None, *body], body, strict=False):
            if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) and isinstance(n.value.value, str):
                name = getattr(getattr(before, "target", None), "id", "")
                if before is None or isinstance(before, (ast.Assign, ast.AnnAssign)) and not name.startswith("_"):
                    yield n.lineno, n.value.value
            if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and public(n):
                yield from walk(n)

    return list(walk(ast.parse(path.read_text())))


NO_BEGINNING = re.compile(r"\s*(What|How|Whether|Which|Where|Who|Whose|Of)\b")


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_are_plain_english(room):
    """They begin with a noun or a verb, and say "image" or "frame"."""
    place = SOURCE / room
    found = []
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    for path in files:
        for line, text in docstrings(path):
            if NO_BEGINNING.match(text) or re.search(r"\bpictures?\b", text, re.I):
                found.append(f"{path.relative_to(ROOT)}:{line}: {text.strip().splitlines()[0][:70]}")
    assert not found, "\n".join(found)


def test_every_name_is_defined():
    """Shapes that jaxtyping reads from strings are the only names that ruff may not find."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "F821",
        "--output-format",
        "json",
        "src",
    ]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout)
    undefined = []
    for row in found:
        at = row["location"]["row"], row["location"]["column"] - 1
        with tokenize.open(row["filename"]) as file:
            strings = [t for t in tokenize.generate_tokens(file.readline) if t.type == tokenize.STRING]
        if not any(t.start <= at < t.end for t in strings):
            undefined.append(f"{row['filename']}:{at[0]}: {row['message']}")
    assert not undefined, undefined
