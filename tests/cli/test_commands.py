"""The commands as a set: found, documented, parsed in one way, and answered without loading what is slow."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import pytest

from wamkit.cli.main import main
from wamkit.cli.parse import COMMANDS, Options, first_line, options_of, parse
from wamkit.data.importers import IMPORTERS
from wamkit.registry import RegistryError
from wamkit.runs.config import RunConfig
from wamkit.runs.recipes import RECIPES

ROOT = Path(__file__).parents[2]
HEADLESS = ("what", "how", "whether", "which", "where", "who", "of")
"""Words that no help text begins with."""


@pytest.mark.parametrize("name", COMMANDS.names())
def test_help_of_every_command(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    shown, options = capsys.readouterr().out, options_of(COMMANDS.get(name)).resolve([])
    assert stop.value.code == 0 and f"usage: wamkit {name}" in shown and first_line(options) in shown
    for field in dataclasses.fields(options):  # a name that Python reserves has an underscore behind it
        option = "--" * field.name.endswith("_") + field.name.rstrip("_").replace("_", "-")
        assert option.lower() in shown.lower()


@pytest.mark.parametrize("name", COMMANDS.names())
def test_every_help_text_exists_and_begins_with_a_noun_or_a_verb(name, capsys):
    """Options in groups (`--model.width`) belong to the classes that declare them."""
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    texts = [first_line(options_of(COMMANDS.get(name)))]
    for option, text in options_and_texts(shown).items():
        if not option.startswith("-h") and "." not in option.split()[0]:
            assert text and not re.match(r"\((default|required)", text), f"{name} {option} has no help"
            texts.append(text)
    for text in texts:
        assert text.split()[0].lower().strip(",:;") not in HEADLESS, f"{name}: {text}"


def options_and_texts(shown: str) -> dict[str, str]:
    """Invocation of each option -> its help, from the boxes that tyro draws."""
    out: dict[str, str] = {}
    current = ""
    for line in shown.splitlines():
        if not line.startswith("│"):
            current = ""
            continue
        row = line.strip("│")
        indent, words = len(row) - len(row.lstrip()), row.strip()
        if indent == 1:
            current, _, text = (part.strip() for part in re.sub(r"\s{2,}", "\0", words, count=1).partition("\0"))
            out[current] = text
        elif current:
            out[current] = f"{out[current]} {words}".strip()
    return out


def fields_with_help(cls: type) -> Iterator[tuple[str, str]]:
    """Name and docstring of each field of a configuration, as they stand in its source."""
    body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0].body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            text = getattr(getattr(following, "value", None), "value", None)
            yield node.target.id, text if isinstance(text, str) else ""


def nested(config: object) -> Iterator[type]:
    """The class of a configuration, its bases, and those of its fields."""
    yield from (cls for cls in type(config).__mro__ if dataclasses.is_dataclass(cls))
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            yield from nested(value)


def test_options_of_recipes_and_formats_have_help():
    """Also those that `--help` of another recipe shows, in groups."""
    configs = [RECIPES.get(name)() for name in RECIPES.names()]
    configs += [IMPORTERS.get(name).Options() for name in IMPORTERS.names()]
    missing = set()
    for cls in {cls for config in configs for cls in nested(config)} - {RunConfig}:
        for name, text in fields_with_help(cls):
            if not text or text.split()[0].lower().strip(",:;") in HEADLESS:
                missing.add(f"{cls.__module__}.{cls.__name__}.{name}: {text[:50]}")
    assert not missing, "\n".join(sorted(missing))


@dataclass(frozen=True)
class Greet(Options):
    """Greet a person.

    Politely.
    """

    name: str
    """Name of the person."""
    others: tuple[str, ...] = ()
    """Names of others."""
    _: KW_ONLY
    times: int
    """Number of greetings."""


def test_position_belongs_to_fields_without_a_default_that_are_not_keyword_only(capsys):
    assert parse(Greet, "greet", ["Ann", "--times", "2"]) == Greet("Ann", times=2)
    assert parse(Greet, "greet", ["--times", "2", "Ann", "--others", "Bo", "Cy"]).others == ("Bo", "Cy")
    for argv, message in (
        (["Ann"], "Missing from wamkit greet: --times INT Number of greetings. (required)"),
        (["Ann", "--times", "x"], "Error parsing --times: invalid literal for int() with base 10: 'x'"),
        (["Ann", "--times", "1", "--tims", "2"], "Unrecognized options: --tims, 2 (did you mean --times?)"),
    ):
        with pytest.raises(SystemExit) as stop:
            parse(Greet, "greet", argv)
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"wamkit greet: {message}; see wamkit greet --help\n"


def test_a_name_that_is_taken_names_both_origins():
    with pytest.raises(RegistryError, match=f"command 'eval' of {__name__} is already registered by wamkit.cli.eval"):

        @COMMANDS.register("eval")
        def run(args: Greet) -> None: ...


def test_usage_and_a_wrong_command_do_not_load_torch():
    code = (
        "import sys; from wamkit.cli.main import main; code = main(sys.argv[1:]); print('torch' in sys.modules, code)"
    )
    for argv, answer in ((["--help"], "False 0"), (["trian"], "False 2"), ([], "False 0"), (["--version"], "False 0")):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == answer, argv


def test_the_document_names_every_command():
    page = (ROOT / "docs" / "cli.md").read_text()
    assert all(f"`wamkit {name}" in page for name in COMMANDS.names())


def written_commands() -> list[str]:
    """The commands in the fenced blocks of the documents, as a user would paste them.

    Not those of the example package.
    """
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    found = []
    for page in pages:
        if page.name in ("LOG.md", "migration.md"):
            continue
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.strip() for line in lines if line.strip().startswith("wamkit ")]
    return sorted({line for line in found if not re.search(r"^wamkit tasks|--recipe regress", line)})


@pytest.mark.parametrize("line", written_commands())
def test_commands_in_the_documents_have_options_that_exist(line):
    name, *argv = shlex.split(line, comments=True)[1:]
    if "--help" not in argv:
        options = options_of(COMMANDS.get(name))
        assert isinstance(parse(options, name, argv), options)


def installed(folder: Path, points: str, module: str) -> dict[str, str]:
    """The environment in which a package with these entry points is installed; `module` is its source file."""
    info = folder / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    (folder / "plugin.py").write_text(module)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}


def wamkit(environment: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    code = "from wamkit.cli.main import entry; entry()"
    return subprocess.run([sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True)


def test_a_plug_in_that_does_not_load_is_one_line(tmp_path):
    environment = installed(tmp_path, "[wamkit.commands]\nbad = plugin\n", "import nothing_like_this\n")
    done = wamkit(environment, "--help")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "command plug-in 'plugin' of package plugin does not load" in done.stderr
