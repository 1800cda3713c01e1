"""The image transform: the same bytes in training and at inference, for images of any size."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from tests.data.recordings import LAYOUT, fill, grainy_frames, make_episode

import wamkit
from wamkit.cli.main import main
from wamkit.data.format.store import Store
from wamkit.data.format.video import decode_video, encode_video
from wamkit.data.image_transform import ImageTransform, nearest_size, sane_size
from wamkit.data.loading.dataset import open_frames, spec_of, statistics
from wamkit.runs.config import TrainConfig
from wamkit.runs.recipes import RECIPES
from wamkit.runs.run import Run, build
from wamkit.training.large_images import _probe, _resident, large_images
from wamkit.training.run_folder import RunFolder
from wamkit.training.trainer import Trainer
from wamkit.types import ObservationError, WamkitError

FAST = [
    *("--train.steps", "2", "--train.batch-size", "2", "--train.threads", "1", "--train.precision", "fp32"),
    *("--window.chunk", "4", "--window.frame-offsets", "2", "4"),
    *("--model.width", "16", "--model.depth", "1", "--model.heads", "2", "--model.text.buckets", "64"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("resized") / "data", 3).root


@pytest.fixture(scope="module")
def run(data):
    """Trained on images of 32x32 at 16x32."""
    out = data.parent / "run"
    assert main(["train", "--data", str(data), "--out", str(out), "--size", "16", "32", *FAST]) == 0
    return out


@pytest.mark.parametrize("size", [(16, 16), (32, 48), (17, 23), (96, 128)])
def test_images_give_the_bytes_that_the_loader_makes_of_a_recording(size):
    video = encode_video(grainy_frames(1, 3, 48), 10)
    recorded = decode_video(video, 10, [0, 1, 2], (48, 48))
    assert np.array_equal(ImageTransform(*size)(recorded), decode_video(video, 10, [0, 1, 2], (48, 48), size))


def test_images_of_any_memory_layout_give_the_same_bytes():
    """Cameras and messages have colour last."""
    image = grainy_frames(1, 3, 48)
    flat = np.ascontiguousarray(image)
    last = np.ascontiguousarray(np.moveaxis(flat, -3, -1))
    for size in ((16, 16), (17, 23), (96, 128)):
        assert np.array_equal(ImageTransform(*size)(np.moveaxis(last, -1, -3)), ImageTransform(*size)(flat))


def test_resizing_averages_areas_and_leaves_images_of_the_size_alone():
    image = np.zeros((2, 1, 3, 4, 8), np.uint8)
    image[..., :2, :] = 200
    image[0, 0, 1, :, ::2] = 100  # green alone: columns of 100 and of what was there
    small = ImageTransform(2, 4)(image)
    assert small.shape == (2, 1, 3, 2, 4)
    assert (abs(small[0, 0, 0].astype(int) - [[200], [0]]) <= 1).all()
    assert (abs(small[0, 0, 1].astype(int) - [[150], [50]]) <= 1).all()
    assert ImageTransform(4, 8)(image) is image


def test_a_run_answers_images_of_any_size_as_it_was_trained_on_them(data, run):
    store, model = Store.open(data), wamkit.load(run)
    assert (model.spec.height, model.spec.width, Run.open(run).image) == (16, 32, ImageTransform(16, 32))
    loaded, recorded = (open_frames(store, size)[0].images[0] for size in ((16, 32), None))
    answer = lambda images, **kw: model.sample(wamkit.Observation(images, np.zeros(3, np.float32), "go"), **kw)  # noqa: E731
    for query in ("joint", "policy"):
        a, b = answer(loaded, query=query), answer(recorded, query=query)
        c = answer(tuple(recorded), query=query)  # one array a view, which may differ in size
        assert np.array_equal(a.actions, b.actions) and np.array_equal(a.actions, c.actions)
    assert answer(recorded).future.shape == (2, 2, 3, 16, 32)
    future = np.repeat(recorded[None], 2, 0)
    same = [answer(x, query="inverse", future=f).actions for x, f in ((recorded, future), (loaded, future))]
    assert np.array_equal(*same)
    tall = np.zeros((2, 3, 480, 200), np.uint8)
    assert answer(tall, query="policy").actions.shape == (4, 2)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((2, 40, 40, 3), np.uint8), r"got uint8 \(2, 40, 40, 3\)"),
        (np.zeros((2, 3, 40, 40), np.float32), r"got float32 \(2, 3, 40, 40\)"),
        (np.zeros((2, 3, 0, 40), np.uint8), r"got uint8 \(2, 3, 0, 40\)"),
        ("nothing", "got str"),
        (np.zeros((1, 3, 40, 40), np.uint8), r"expected uint8 \(2, 3, 16, 32\) .*got uint8 \(1, 3, 16, 32\)"),
    ],
)
def test_other_arrays_than_images_are_named(run, images, got):
    obs = wamkit.Observation(images, np.zeros(3, np.float32), "go")
    with pytest.raises(ObservationError, match=f"observation 0: images: .*{got}"):
        wamkit.load(run).sample(obs, "policy")


def test_a_run_of_an_earlier_version_takes_its_own_size_alone(run):
    opened = dataclasses.replace(Run.open(run), image=None)
    model = wamkit.load(opened)
    obs = wamkit.Observation(np.zeros((2, 3, 40, 40), np.uint8), np.zeros(3, np.float32), "go")
    with pytest.raises(ObservationError, match=r"expected uint8 \(2, 3, 16, 32\) as in training, got uint8 \(2, 3, 40"):
        model.sample(obs, "policy")


def test_the_same_command_resumes_and_another_size_is_another_configuration(data, run, capsys):
    command = ["train", "--data", str(data), "--out", str(run), *FAST]
    assert main([*command, "--size", "16", "32"]) == 0
    assert main([*command, "--size", "16", "16"]) == 1 and "window.size was [16, 32]" in capsys.readouterr().err
    assert json.loads((run / "config.json").read_text())["image"] == {"height": 16, "width": 32}


def test_a_size_that_does_not_fit_names_one_that_does(data, tmp_path, capsys):
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "r"), "--size", "30", "40", *FAST]) == 1
    assert "multiples of 16: train with --size 32 32" in capsys.readouterr().err
    store = Store.open_or_create(tmp_path / "odd", **LAYOUT | {"cameras": ("front",), "image_shape": (3, 24, 40)})
    images = np.zeros((9, 1, 3, 24, 40), np.uint8)
    store.append(make_episode(0, cameras=("front",), images=images))
    store.finalize()
    command = ["train", "--recipe", "metaworld-unified", "--data", str(store.root), "--out", str(tmp_path / "r"), *FAST]
    assert main(command) == 1 and "images are 24x40" in (err := capsys.readouterr().err) and "--size 16 32" in err
    assert main([*command, "--size", "32", "48"]) == 0
    assert "stretched by 11% to 32x48" in capsys.readouterr().out
    fitted = [*command[:1], *command[3:5], "--out", str(tmp_path / "fitted"), *FAST]
    assert main(fitted) == 0 and "--window.size 16 32: recorded images are 24x40" in capsys.readouterr().out


def test_sizes_that_fit_and_sizes_that_are_sane():
    assert nearest_size(360, 640) == (352, 640) and nearest_size(3, 25) == (16, 32)
    assert sane_size(480, 640) == (96, 128) and sane_size(1080, 1920) == (80, 144) and sane_size(424, 240) == (112, 64)
    assert sane_size(96, 96) == (96, 96) and sane_size(2000, 100)[1] == 16


def test_large_images_are_told_of_before_training(monkeypatch):
    config = RECIPES.get("metaworld-unified")()
    """Memory is that of the whole process: what it holds, copies of the weights, frames, activations twice."""
    monkeypatch.setattr("wamkit.training.large_images._probe", lambda run, found: found)
    monkeypatch.setattr("wamkit.training.large_images._resident", lambda device: 500_000_000)
    parts = {"weights and gradients": 50_000_000, "frames": 250_000_000, "activations": 100_000_000}
    monkeypatch.setattr("wamkit.training.large_images.needed", lambda run, spec: parts)
    spec = wamkit.Spec(("front",), 480, 640, 4, 4)
    note = large_images(config, spec, (40.0, 4 * 10**9))
    assert "images of 480x640 will take about 40 s a step, 33 hours for 3000 steps, and 8.8 GB of memory" in note
    assert "--size 96 128 would take about 1.6 s and 0.9 GB" in note
    assert large_images(config, dataclasses.replace(spec, height=64, width=64), (40.0, 10**9)) == ""
    assert large_images(config, spec, (1.0, 10**9)) == ""


def test_the_memory_of_this_process_counts_for_a_model_on_the_cpu():
    assert 0.05e9 < _resident("cpu") < 50e9 and _resident("cuda") == 0


def test_the_probe_measures_what_a_backward_pass_keeps(data):
    """Two rows are probed, so for a batch of four it is twice as much."""
    config, found = RECIPES.get("metaworld-unified")(), []
    frames, store = open_frames(data)
    spec = spec_of(store, 16, (8, 16))
    model = build(config, spec, statistics(frames, spec))
    for rows in (2, 4):
        config = dataclasses.replace(config, train=TrainConfig(batch_size=rows, threads=1, precision="fp32"))
        trainer = Trainer(model, frames, config.train, RunFolder(data.parent / "no-run", {}))
        seconds, size = _probe(config, trainer)
        found.append(size)
        assert seconds > 0
    kept, now = {}, trainer.windows.indices(0)[:2]

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        losses = model(trainer.windows.gather(now), torch.Generator().manual_seed(0), "main")
    for p in model.parameters():
        kept.pop(p.data_ptr(), None)
    assert losses and found[1] == 2 * sum(kept.values()) == pytest.approx(2 * found[0], rel=0.2)


def test_a_forged_transform_is_refused(run, tmp_path):
    with pytest.raises(WamkitError, match="must be between 1 and"):
        ImageTransform(0, 32)
