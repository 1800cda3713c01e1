"""The notebook `examples/ten_minutes.ipynb`, every cell of it, with few episodes and steps."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/ten_minutes.ipynb"
SMALL = {"episodes": 2, "steps": 8}
"""Values in place of those of the cell tagged "parameters"."""

RUNNER = """
import ast, json, sys

# What a notebook does, in a few lines: statements one after the other, and the HTML of a cell's last expression.
names, shown = {"__name__": "__main__"}, []
for source in json.load(sys.stdin):
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    value = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    shown.append("" if value is None else value._repr_html_())
print(json.dumps(shown))
"""


def sources() -> list[str]:
    """The code cells, with SMALL assigned at the end of the parameters' cell."""
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    texts = ["".join(c["source"]) for c in cells]
    (place,) = (i for i, c in enumerate(cells) if "parameters" in c["metadata"].get("tags", []))
    assert set(SMALL) <= {n.id for n in ast.walk(ast.parse(texts[place])) if isinstance(n, ast.Name)}
    texts[place] += "".join(f"\n{name} = {value}" for name, value in SMALL.items())
    return texts


def test_every_cell_runs_and_shows_what_it_says(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNNER],
        input=json.dumps(sources()),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shown = [html for html in json.loads(done.stdout.splitlines()[-1]) if html]
    kinds = [[t for t in ("video", "img", "svg") if f"<{t} " in html] for html in shown]
    # A recording, the curves, a moment, a chunk, frames with a chunk, frames, a curve, a comparison, an episode.
    recording, clip = ["video", "svg"], ["video"]
    assert kinds == [recording, ["svg"], ["img"], ["svg"], ["img", "svg"], ["img"], ["svg"], clip, recording]
    assert sum(map(len, shown)) < 3_000_000 and (tmp_path / "ten-minutes/run/metrics.jsonl").is_file()


def test_the_notebook_is_kept_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code)
    assert len({c["id"] for c in notebook["cells"]}) == len(notebook["cells"]) and notebook["nbformat"] == 4
