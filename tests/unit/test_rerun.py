"""`wamkit rerun`: the file is read back with Rerun's own reader, and holds what was recorded and imagined."""

from __future__ import annotations

import dataclasses

import av
import numpy as np
import pytest
from recordings import FPS, fill

from conftest import untrained_run
from wamkit.cli.main import main
from wamkit.data.loading.dataset import open_frames
from wamkit.eval.suites.recording import query_recording
from wamkit.inference.model import load
from wamkit.runs.config import RunConfig, TrainConfig, WindowConfig
from wamkit.runs.recipes import RECIPES
from wamkit.training.launch import train_run
from wamkit.types import Query


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Two runs of a step, of a family that imagines and of one that does not, on two cameras."""
    root = tmp_path_factory.mktemp("rerun")
    store = fill(root / "data", 2)
    for name in ("unified", "bc"):
        model = dataclasses.replace(RECIPES.get(f"metaworld-{name}")().model, width=32, depth=1, heads=2)
        config = RunConfig(
            name, model, WindowConfig(4, (2, 4)), TrainConfig(steps=2, batch_size=4, threads=1, precision="fp32")
        )
        train_run(config, store.root, root / name, trackers=())
    return root


def asked(job, name, *more):
    return main(["rerun", str(job / name), "--data", str(job / "data"), *more])


def read(file):
    """Entity -> (seconds, values) of the recording in `file`, and the number of its blueprints."""
    reader = pytest.importorskip("rerun.chunk").RrdReader(file)
    found, static = {}, {}
    for chunk in reader.stream():
        batch = chunk.to_record_batch()
        values = [n for n in batch.schema.names if n.endswith((":scalars", ":blob", ":text"))]
        if chunk.is_static:
            static[chunk.entity_path] = [x for n in values for x in batch.column(n).to_pylist()]
            continue
        assert chunk.timeline_names == ["time"]
        seconds = batch.column("time").cast("int64").to_numpy() / 1e9
        for name in values:
            found.setdefault(chunk.entity_path, []).extend(zip(seconds, batch.column(name).to_pylist(), strict=True))
    return found, static, reader.blueprints()


def image(blob):
    decoder = av.CodecContext.create("png", "r")
    (frame,) = decoder.decode(av.Packet(bytes(blob)))
    return frame.to_ndarray(format="rgb24").transpose(2, 0, 1)


def test_a_recording_holds_the_episode_and_the_imagined_future_on_one_timeline(job, capsys):
    pytest.importorskip("rerun")
    assert asked(job, "unified", "--episode", "1", "--stride", "2") == 0
    file = job / "unified/rerun/episode-001.rrd"
    assert capsys.readouterr().out.splitlines()[-2:] == [str(file), f"open it: rerun {file}"]
    found, static, blueprints = read(file)
    model = load(job / "unified")
    frames, store = open_frames(job / "data")
    answers = query_recording(model, frames, 1, Query.JOINT, stride=2)
    rows = np.flatnonzero(frames.episode == 1)
    cameras, curves = ("front", "wrist"), {"state": frames.proprio[rows], "action/executed": frames.action[rows]}
    assert {f"/camera/{c}" for c in cameras} | {
        rf"/imagined/\+{n}\ steps/{c}" for n in (2, 4) for c in cameras
    } | {f"/state/{n}" for n in "xyz"} | {
        f"/action/{k}/{n}" for k in ("executed", "answered") for n in ("dx", "dy")
    } == set(found)  # fmt: skip
    assert static["/instruction"] == [["open the drawer"]] and len(blueprints) == 1
    for view, camera in enumerate(cameras):
        shown = found[f"/camera/{camera}"]
        assert [t for t, _ in shown] == pytest.approx(np.arange(len(rows)) / FPS)
        assert all(np.array_equal(image(x[0]), frames.images[r][view]) for (_, x), r in zip(shown, rows, strict=True))
        for f, ahead in enumerate((2, 4)):
            shown = found[rf"/imagined/\+{ahead}\ steps/{camera}"]
            assert [t for t, _ in shown] == pytest.approx((np.arange(len(answers.imagined)) * 2 + ahead) / FPS)
            assert all(np.array_equal(image(x[0]), answers.imagined[i, f, view]) for i, (_, x) in enumerate(shown))
    for group, values in curves.items():
        for name, column in zip({"state": "xyz"}.get(group, ("dx", "dy")), values.T, strict=True):
            assert [x[0] for _, x in found[f"/{group}/{name}"]] == pytest.approx(column)
    answered = found["/action/answered/dy"]
    assert [t for t, _ in answered] == pytest.approx(np.arange(len(answered)) / FPS)
    assert [x[0] for _, x in answered] == pytest.approx(answers.actions[:, :2, 1].ravel())


def test_a_model_that_imagines_nothing_gives_a_recording_without(job, capsys):
    pytest.importorskip("rerun")
    assert asked(job, "bc") == 0
    out = capsys.readouterr().out
    assert "note: this 'bc' imagines no frames when asked 'policy', so the recording has none" in out
    found, *_ = read(job / "bc/rerun/episode-000.rrd")
    assert not [name for name in found if "imagined" in name] and "/action/answered/dx" in found
    assert asked(job, "bc") == 0  # its own file is replaced


def test_without_data_the_episode_is_recorded_in_the_environment_of_the_run(tmp_path, capsys):
    pytest.importorskip("rerun")
    options = {"height": 32, "width": 32}
    run = untrained_run(tmp_path / "run", ["drawer-open-v3"], options, "unified")
    assert main(["rerun", str(run), "--episode", "1"]) == 0
    file = run / "rerun/episode-001.rrd"
    assert capsys.readouterr().out.splitlines()[-1] == f"open it: rerun {file}"
    frames, _ = open_frames(run / "eval/held-out-6")
    found, *_ = read(file)
    rows = np.flatnonzero(frames.episode == 1)
    for (_, x), row in zip(found["/camera/corner2"], rows, strict=True):
        assert np.array_equal(image(x[0]), frames.images[row][0])
    assert [name for name in found if name.startswith("/imagined/")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--episode", "9"], "episode 9 of 2, counted from 0, is missing or shorter than a window"),
        (["--query", "jiont"], "there is no query 'jiont' (did you mean 'joint'?)"),
        (["--query", "video"], "does not model the query 'video'"),
        (["--out", "{job}/mine.rrd"], "mine.rrd: a file that wamkit did not write is there"),
        (["--data", "{job}/bc"], "bc"),
    ],
)
def test_bad_input_is_one_line(job, more, message, capsys):
    pytest.importorskip("rerun")
    (job / "mine.rrd").write_bytes(b"RRF2 of somebody else")
    assert asked(job, "bc", *(x.format(job=job) for x in more)) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and (job / "mine.rrd").read_bytes() == b"RRF2 of somebody else"


def test_a_missing_package_is_one_line(job, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert asked(job, "bc") == 1
    assert capsys.readouterr().err == ("wamkit rerun: the package rerun is missing: pip install 'wamkit[rerun]'\n")
