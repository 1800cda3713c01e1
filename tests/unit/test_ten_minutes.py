"""The notebook `examples/ten_minutes.ipynb`, every cell of it, with few episodes and steps."""

from __future__ import annotations

import ast
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/ten_minutes.ipynb"
SMALL = {"name": "reacher", "task": "reach", "episodes": 1, "steps": 4}
"""Values in place of those of the cell tagged "parameters", which take seconds."""


def sources() -> list[str]:
    """The code cells, with SMALL assigned at the end of the parameters' cell."""
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    texts = ["".join(c["source"]) for c in cells]
    (place,) = (i for i, c in enumerate(cells) if "parameters" in c["metadata"].get("tags", []))
    assert set(SMALL) <= {n.id for n in ast.walk(ast.parse(texts[place])) if isinstance(n, ast.Name)}
    texts[place] += "".join(f"\n{name} = {value!r}" for name, value in SMALL.items())
    return texts


def run(cells: list[str]) -> list[str]:
    """What a notebook does: statements one after the other, and the HTML of each cell's last expression, or ""."""
    names, shown = {"__name__": "notebook"}, []
    for source in cells:
        body = ast.parse(source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        shown.append("" if value is None else value._repr_html_())
    return shown


def test_every_cell_runs_and_shows_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = [html for html in run(sources()) if html]
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
