"""Trackers: what they are shown can be read back, no step comes twice, none stops training or changes a weight."""

from __future__ import annotations

import csv
import dataclasses
import io
import struct

import av
import numpy as np
import pytest
import torch
from small_runs import SMALL, SPEC, frames, same, small_model, state

from conftest import untrained_run
from wamkit.cli.main import main
from wamkit.eval.tracked import track
from wamkit.registry import RegistryError
from wamkit.runs.run import Run
from wamkit.training import imagined
from wamkit.training.metrics import read_metrics
from wamkit.training.run_folder import RunFolder
from wamkit.training.trackers.base import TRACKERS, Tracker, check_trackers, identity
from wamkit.training.tracking import Tracking
from wamkit.training.trainer import Trainer
from wamkit.types import Batch

ALL = ["csv", "tensorboard", "trackio", "wandb"]


def trainer(out, trackers, family="unified", **changes):
    config = dataclasses.replace(SMALL, **changes)
    folder = RunFolder(out, {"train": dataclasses.asdict(config)})
    return Trainer(small_model(family), frames(), config, folder, None, trackers)


def events(out):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(out / "tensorboard"), {"images": 0, "scalars": 0, "tensors": 0}).Reload()


def table(out):
    with (out / "csv/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def pixels(content, kind):
    with av.open(io.BytesIO(content), format=kind) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


@pytest.fixture
def often(monkeypatch):
    """Looks at imagined frames after steps 3, 6, 9 and 12."""
    monkeypatch.setattr(imagined, "EVERY", 3)


class Listed(Tracker):
    """A tracker that can take nothing back: the calls that reached it, in a list that outlives it."""

    calls: list = []
    fails = ""

    def __init__(self, out, step, config):
        self._do("open", step)

    def _do(self, kind, *args):
        if self.fails == kind:
            raise OSError(28, "No space left on device")
        self.calls.append((kind, args[-1] if kind != "close" else None))

    opening = classmethod(lambda cls, out: "nowhere")
    scalars = lambda self, *args: self._do("scalars", *args)  # noqa: E731
    image = lambda self, *args: self._do("image", *args)  # noqa: E731
    video = lambda self, *args: self._do("video", *args)  # noqa: E731
    text = lambda self, *args: self._do("text", *args)  # noqa: E731
    close = lambda self: self._do("close")  # noqa: E731


@pytest.fixture
def listed(monkeypatch):
    TRACKERS.get("csv")
    monkeypatch.setitem(TRACKERS._items, "listed", Listed)
    monkeypatch.setattr(Listed, "calls", [])
    return Listed


def test_all_trackers_are_found_and_a_wrong_name_or_a_missing_package_is_refused(monkeypatch, tmp_path, capsys):
    assert TRACKERS.names() == ALL
    with pytest.raises(RegistryError, match=r"unknown tracker 'tensorbord' \(did you mean 'tensorboard'\?\)"):
        check_trackers(["csv", "tensorbord"])
    monkeypatch.setattr(TRACKERS.get("wandb"), "package", "wandb_of_nobody")
    with pytest.raises(ModuleNotFoundError) as error:
        check_trackers(["wandb"])
    assert error.value.name == "wandb_of_nobody"
    assert main(["train", "--data", "x", "--out", str(tmp_path / "run"), "--trackers", "cvs"]) == 1
    assert "did you mean 'csv'" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_weights_and_figures_are_the_same_with_and_without_trackers(tmp_path, often):
    for name, trackers in (("with", ["csv", "tensorboard"]), ("without", [])):
        trainer(tmp_path / name, trackers).run()
    assert same(state(tmp_path / "with"), state(tmp_path / "without"))
    rows = [[r for _, r in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("with", "without")]
    clock = {"seconds", "wait"}
    assert [{k: v for k, v in r.items() if k not in clock} for r in rows[0]] == [
        {k: v for k, v in r.items() if k not in clock} for r in rows[1]
    ]
    assert not (tmp_path / "without/tensorboard").exists()


def test_scalars_images_videos_and_the_configuration_are_read_back(tmp_path, often):
    trainer(tmp_path, ["csv", "tensorboard"]).run()
    rows = [r for _, r in read_metrics(tmp_path / "metrics.jsonl")]
    shown = table(tmp_path)
    assert [int(r["step"]) for r in shown] == [r["step"] for r in rows] == list(range(1, 13))
    for row, had in zip(shown, rows, strict=True):
        for name, value in row.items():
            assert float(value) == pytest.approx(had[name], rel=1e-6) if value else name not in had
    board = events(tmp_path)
    assert [(e.step, e.value) for e in board.Scalars("grad_norm")] == [
        (r["step"], pytest.approx(r["grad_norm"], rel=1e-6)) for r in rows
    ]
    assert b'"batch_size": 8' in board.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    # Four windows; the observed frame, and the real and the imagined frame of two horizons, with gaps of two.
    (first, *_), last = board.Images("imagined/view 0"), board.Images("imagined/view 0")[-1]
    assert [e.step for e in board.Images("imagined/view 0")] == [3, 6, 9, 12]
    assert (first.height, first.width) == (4 * 16, 5 * 16 + 4 * 2)
    file = tmp_path / "csv/imagined-view-0-000012.png"
    same_sheet = pixels(file.read_bytes(), "png_pipe")[0]
    assert np.array_equal(same_sheet, pixels(last.encoded_image_string, "png_pipe")[0])
    clip = pixels(board.Images("imagined/video 0")[-1].encoded_image_string, "apng")
    assert clip.shape == (3, 4 * 16, 2 * 16 + 2, 3)
    assert pixels((tmp_path / "csv/imagined-video-0-000012.mp4").read_bytes(), "mp4").shape == clip.shape
    # The same frames as in the sheet: now, then real on the left and imagined on the right.
    for frame, (real, made) in enumerate(((0, 0), (18, 36), (54, 72))):
        assert np.array_equal(clip[frame][:, :16], same_sheet[:, real : real + 16])
        assert np.array_equal(clip[frame][:, 18:], same_sheet[:, made : made + 16])
    assert (tmp_path / "csv/windows-text-000000.txt").read_text().count("it") == 4


def test_imagined_frames_are_those_of_the_saved_weights_on_episodes_that_are_not_learned_from(tmp_path, often):
    run = trainer(tmp_path, ["csv"])
    held_out = dataclasses.replace(frames(), used=np.array([True, True, True, False]))
    run.windows = held_out.windows(SPEC, seed=0, batch_size=8)
    rows = imagined.shown_windows(run.windows, 4)
    assert rows.min() >= 27 and rows.max() + 4 < 36
    run.run()
    batch = run.windows.gather(rows)
    made = imagined.futures(run.model, batch)
    sheet = pixels((tmp_path / "csv/imagined-view-0-000012.png").read_bytes(), "png_pipe")[0]
    assert np.array_equal(sheet[:16, 36:52], made[0, 0, 0].transpose(1, 2, 0))
    assert np.array_equal(sheet[48:, 54:70], batch.future[3, 1, 0].permute(1, 2, 0).numpy())


def test_looks_are_few_and_short_trainings_have_none():
    at = {n: [k for k in range(1, n + 1) if imagined.is_shown(k, n)] for n in (1, 199, 200, 401, 3000)}
    assert at == {1: [], 199: [], 200: [200], 401: [201, 401], 3000: [750, 1500, 2250, 3000]}


def test_a_family_that_imagines_nothing_and_one_that_cannot_shows_none(tmp_path, often, monkeypatch, capsys):
    trainer(tmp_path / "bc", ["csv"], "bc").run()
    assert not list((tmp_path / "bc/csv").glob("imagined*"))
    monkeypatch.setattr("wamkit.training.trainer.futures", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    trainer(tmp_path / "run", ["csv"]).run()
    said = capsys.readouterr().err
    assert "note: a look at imagined frames at step 12 failed (RuntimeError: no memory); the rest goes on" in said
    assert len(table(tmp_path / "run")) == 12


def killed_at(out, trackers, step):
    """A run that is killed after `step`, without anything written at its end."""
    steps = trainer(out, trackers).steps()
    for progress in steps:
        if progress.step == step:
            break
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    steps.close()
    for path, content in files.items():
        path.write_bytes(content)


def test_no_step_comes_twice_after_an_interruption(tmp_path, often, listed):
    trackers = ["csv", "tensorboard", "listed"]
    killed_at(tmp_path, trackers, 7)  # the checkpoint has 4
    assert [s for kind, s in listed.calls if kind == "scalars"] == [1, 2, 3, 4]
    with (tmp_path / "csv/metrics.csv").open("a") as file:
        file.write("3,0.00")  # cut short
    trainer(tmp_path, trackers).run()
    every = list(range(1, 13))
    assert [int(r["step"]) for r in table(tmp_path)] == every
    board = events(tmp_path)
    assert [e.step for e in board.Scalars("grad_norm")] == every
    assert [e.step for e in board.Images("windows/view 0")] == [0]
    assert [e.step for e in board.Images("imagined/video 0")] == [3, 6, 9, 12]
    assert [s for kind, s in listed.calls if kind == "scalars"] == every
    assert [s for kind, s in listed.calls if kind == "video"] == [3, 6, 9, 12]
    trainer(tmp_path / "plain", trackers).run()
    timeless = lambda rows: [{k: v for k, v in r.items() if k not in ("seconds", "wait")} for r in rows]  # noqa: E731
    assert timeless(table(tmp_path)) == timeless(table(tmp_path / "plain"))


@pytest.mark.parametrize("moment", ["open", "scalars", "image", "close"])
def test_a_tracker_that_fails_says_so_once_and_training_goes_on(moment, tmp_path, listed, monkeypatch, capsys):
    monkeypatch.setattr(Listed, "fails", moment)
    trainer(tmp_path, ["listed", "csv"]).run()
    said = capsys.readouterr().err
    assert said.count("note: the tracker listed failed (OSError: [Errno 28] No space left on device)") == 1
    assert len(table(tmp_path)) == len(read_metrics(tmp_path / "metrics.jsonl")) == 12


def test_a_run_is_known_by_one_name_wherever_it_lies(tmp_path):
    folder = tmp_path / "a run, with words"
    folder.mkdir()
    name = identity(folder)
    assert name.startswith("a-run-with-words-") and identity(folder.rename(tmp_path / "b")) == name
    (tmp_path / "b/tracked-as.txt").unlink()
    assert identity(tmp_path / "b").startswith("b-")


def small_tracking(name, out):
    """Shows one of each kind to a tracker, in two sessions of which the second resumes at step 1."""
    images = np.arange(2 * 3 * 16 * 16, dtype=np.uint8).reshape(2, 3, 16, 16)
    for step in (0, 1):
        tracking = Tracking([name], out, step, {"train": {"steps": 2}})
        tracking.show("scalars", {"loss": 0.5 + step}, step + 1)
        tracking.show("image", "windows/view 0", images[0], step + 1)
        tracking.show("video", "imagined/video 0", images, 2.0, step + 1)
        tracking.show("text", "windows/text", "open <it>", step + 1)
        tracking.commit()
        tracking.show("scalars", {"loss": 9.0}, step + 2)  # which no checkpoint has
        assert tracking
        tracking.close()


def wandb_records(content):
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB."""
    at, parts = 7, []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the rest of a block is padding
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts.append(content[at + 7 : at + 7 + size])
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def test_wandb_is_offline_and_read_back(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_MODE", raising=False)
    small_tracking("wandb", tmp_path)
    wandb.teardown()  # its service writes the last rows, as at the end of a process
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and TRACKERS.get("wandb").opening(tmp_path) == f"wandb sync {tmp_path}/wandb/offline-run-*"
    rows, names, configured = {}, set(), set()
    for file in files:
        for record in map(Record.FromString, wandb_records(file.read_bytes())):
            if record.HasField("run"):
                names.add(record.run.run_id)
                configured |= {u.key for u in record.run.config.update}
            if record.HasField("history"):
                found = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
                rows.setdefault(record.history.step.num, {}).update(found)
    assert names == {identity(tmp_path)} and "train" in configured
    assert {step: row["loss"] for step, row in rows.items()} == {1: "0.5", 2: "1.5"}
    kinds = {k.split("/")[0] + "/" + k.split("/")[1] for k in rows[1] if "/" in k}
    assert {"windows/view 0", "imagined/video 0", "windows/text"} <= kinds
    for ending in ("png", "mp4", "html"):
        assert list(tmp_path.glob(f"wandb/offline-run-*/files/media/**/*.{ending}"))


def test_trackio_is_local_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when Trackio is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    small_tracking("trackio", tmp_path)
    name = identity(tmp_path)
    rows = SQLiteStorage.get_logs("wamkit", name)
    assert [(r["step"], r["loss"]) for r in rows if "loss" in r] == [(1, 0.5), (2, 1.5)]
    kinds = {k: v["_type"] for r in rows for k, v in r.items() if isinstance(v, dict)}
    assert kinds == {
        "windows/view 0": "trackio.image", "imagined/video 0": "trackio.video", "windows/text": "trackio.markdown"
    }  # fmt: skip
    assert SQLiteStorage.get_run_config("wamkit", name)["train"] == {"steps": 2}


def test_figures_of_an_evaluation_join_those_of_training(tmp_path):
    run = Run.open(untrained_run(tmp_path / "run", ["drawer-open-v3"], {}))
    rows = [{"key": "closed_loop.success", "value": 0.25}, {"key": "open_loop.skill", "value": float("nan")}]
    track(run, {"rows": rows}, ["csv", "tensorboard"])
    assert table(run.path) == [{"step": "1", "eval/closed_loop.success": "0.25"}]
    assert [(e.step, e.value) for e in events(run.path).Scalars("eval/closed_loop.success")] == [(1, 0.25)]


def test_an_image_without_pixels_is_not_shown(tmp_path):
    from wamkit.training.metrics import Metrics

    batch = Batch.random(dataclasses.replace(SPEC, cameras=()), 2)
    with Metrics(tmp_path, 0, 1, ["csv"]) as metrics:
        metrics.show_frames(batch)
    assert torch.numel(batch.obs) == 0 and not list((tmp_path / "csv").glob("*.png"))
