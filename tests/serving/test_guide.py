"""The guides to serving, followed: their commands are parsed, their Python asks a server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
from servers import serving

from wamkit.cli.drive import Drive
from wamkit.cli.latency import Latency
from wamkit.cli.parse import parse
from wamkit.cli.serve import Serve, _token
from wamkit.metadata import DatasetMetadata, Field
from wamkit.runs.run import Run
from wamkit.serving.inputs import Inputs, given_keys
from wamkit.serving.server import OPTIONS
from wamkit.types import Query

ROOT = Path(__file__).parents[2]


def blocks(page, kind):
    every = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return [text for language, text in every if language == kind]


def asked(code, server):
    """Names that the Python of a page leaves, once it has asked `server`."""
    names: dict = {}
    exec(code.replace("ws://127.0.0.1:8000", server.url), names)
    names["robot"].close()
    return names


def test_the_guide_is_followed(run, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    every = [block.replace("\\\n", " ") for block in blocks("docs/serving.md", "")]
    commands = [line for block in every for line in block.splitlines()]
    served = [shlex.split(line)[2:] for line in commands if line.startswith("wamkit serve")]
    driven = [parse(Drive, "drive", shlex.split(line)[2:]) for line in commands if line.startswith("wamkit drive")]
    timed = [parse(Latency, "latency", shlex.split(line)[2:]) for line in commands if line.startswith("wamkit latency")]
    assert (len(served), len(driven), len(timed), len(commands)) == (5, 2, 1, 10)  # with those of pip and browse
    assert [bool(d.robot) for d in driven] == [False, True] and timed[0].queries == ("policy", "joint")
    (tmp_path / "token.txt").write_text("0123456789abcdef")
    for words in served:
        args = parse(Serve, "serve", words)
        assert (
            given_keys(args.keys, ("corner2",)).image("corner2")
            == {
                0: "observation/images/corner2",
                1: "observation/image",
                2: "observation/image",
            }[len(args.keys)]
        )
        assert _token(args) == ("0123456789abcdef" if "0.0.0.0" in words else "")
    moves = Field("hand", 0, 3, "position", "delta"), Field("gripper", 3, 4, "gripper")
    metadata = DatasetMetadata("MetaWorld", "sawyer", action=moves)
    with serving(run, model, queries=(Query.POLICY,), metadata=metadata) as server:
        names = asked("\n".join(blocks("docs/serving.md", "python")), server)
        assert names["runner"].counts.steps == 3 and names["runner"].counts.held == 3
        assert names["actions"].shape == (16, 4) and names["actions"].dtype == np.float32
        told = names["robot"].metadata["wamkit"]
        assert {"inputs", "actions", "fps", "chunk", "queries", "run"} <= set(told)
    said = blocks("docs/serving.md", "text")[0]
    for key, fits in Inputs.of(Run.open(run)).described(model.spec, ())["inputs"].items():
        assert f"  {key}: {fits['dtype']}" in said


def test_the_clients_own_page_is_followed(run, model):
    with serving(run, model, keys=("corner2=observation/images/front",)) as server:
        names = asked(blocks("client/README.md", "python")[0], server)
        assert names["answer"]["actions"].shape == (16, 4)


def test_options_of_requests_are_those_of_the_guide():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/serving.md").read_text(), re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(OPTIONS)
