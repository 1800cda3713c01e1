"""Every command and every block of Python that a page shows works as it is shown, with tiny sizes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys

import pytest
from tests.cli import documented
from tests.cli.documented import Bench, Step, commands, steps
from tests.contract.test_plugin import environment  # noqa: F401
from tests.data.recordings import fill
from tests.unit.test_hub import hub  # noqa: F401

from wamkit.cli.main import main

SHARING = "docs/share.md"
SHOWN = [page for page in documented.PAGES if steps(page)]


@pytest.fixture(scope="module")
def common(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("documented") / "common")


@pytest.mark.parametrize(
    "page", [p for p in SHOWN if p not in (*documented.PLUGIN_PAGES, *documented.ELSEWHERE, SHARING)]
)
def test_what_a_page_shows_works(page, common):
    bench = Bench(common.folder.parent / page.replace("/", "-"), common) if page in documented.APART else common
    assert bench.execute(steps(page)) > 0


def test_what_pages_show_of_a_package_works(environment, common):  # noqa: F811
    """In one process in which the package is installed."""
    paths = os.pathsep.join([str(documented.ROOT), str(documented.ROOT / "tests"), environment["PYTHONPATH"]])
    command = [
        sys.executable,
        str(documented.ROOT / documented.HERE),
        str(common.folder.parent),
        *documented.PLUGIN_PAGES,
    ]
    done = subprocess.run(command, env={**environment, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def test_what_the_page_about_sharing_shows_works(hub, common, tmp_path):  # noqa: F811
    """With a stand-in for the Hub that has what the page names."""
    with contextlib.chdir(common.folder):
        common.provide("runs/x")
    bench = Bench(tmp_path / "sharing", common)
    fill(bench.folder / "data/demos", 30)  # every third is no demonstration
    shutil.copytree(bench.folder / "data/demos", bench.folder / "data/mine")
    shutil.copytree(common.folder / "runs/x", bench.folder / "runs/drawer")
    for data in ("demos", "mine"):
        known = ["--set", f"embodiment={data}", "cameras.front.role=scene", "--write"]
        assert main(["describe", str(bench.folder / "data" / data), *known]) == 0
    for place, name in (("runs/drawer", "drawer"), ("runs/drawer", "drawer@v1"), ("data/demos", "demos")):
        assert main(["push", str(bench.folder / place), f"alice/{name}"]) == 0
    assert bench.execute(steps(SHARING)) > 0


@pytest.mark.parametrize("what", [*documented.ELSEWHERE, *documented.OTHER_TESTS])
def test_the_test_that_executes_it_instead_exists(what):
    file, _, function = (documented.ELSEWHERE | documented.OTHER_TESTS)[what].partition("::")
    text = (documented.ROOT / file).read_text()
    assert f"def {function}(" in text
    assert all(any(f'"{word}{end}' in text for end in '":') for word in what.split())  # or MODULE:OBJECT


def test_a_command_without_a_rule_says_what_to_add(tmp_path):
    for text, said in (("wamkit greet Ada", "to SMALL in tests/cli"), ("rm -r data", "to NOT_RUN in tests/cli")):
        with pytest.raises(AssertionError, match=f"page.md:3: {text}.*{said}"):
            Bench(tmp_path).execute([Step("page.md", 3, text)])


def test_what_cannot_be_executed_names_what_exists(tmp_path):
    for text in ("make tset", "pip install '.[trian]'", "pytest tests/contracts", "tensorboard --logdir runs/none"):
        with pytest.raises(AssertionError, match="there is no"):
            Bench(tmp_path).execute([Step("page.md", 3, text)])


def test_loops_and_long_lines_are_read_as_a_shell_reads_them():
    block = "for c in a b; do\n  wamkit compare $c\ndone\nwamkit list --by \\\n  decoder  # groups\n"
    assert commands(block) == ["wamkit compare a", "wamkit compare b", "wamkit list --by decoder"]
