"""Several data sets as one: shares, epochs, what each robot does not have, and training from all of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import without_checksums

from wamkit.cli.main import main
from wamkit.config import ConfigError, save_json
from wamkit.data.format.metadata_io import save_metadata
from wamkit.data.format.store import Store
from wamkit.data.loading.mixture import MixtureConfig, SourceConfig, mixture_spec, open_mixture
from wamkit.data.loading.mixture_config import parse_sources
from wamkit.families.base import FAMILIES
from wamkit.files import StoreError
from wamkit.inference.model import load
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.nn.normalizer import Normalizer
from wamkit.runs.config import RunConfig, TrainConfig, WindowConfig
from wamkit.training.launch import _feature_cache, train_run
from wamkit.training.trainer import Trainer
from wamkit.types import Episode, Observation, WamkitError

CHUNK, OFFSETS = 4, (2, 4)
ARM = DatasetMetadata(
    "test", "arm", "delta",
    state=(Field("hand", 0, 2, "position", unit="m"),),
    action=(
        Field("hand", 0, 2, "position", "delta", unit="1"), Field("grip", 2, 3, "gripper", unit="1", larger="opens"),
    ),
    cameras={"front": CameraFacts("scene")},
)  # fmt: skip
POSE = (
    Field("place", 0, 3, "position", unit="m"),
    Field("turn", 3, 6, "rotation", rotation="axis_angle"),
    Field("grip", 6, 7, "gripper", unit="1", larger="opens"),
)
HAND = DatasetMetadata("test", "hand", "absolute", state=POSE, action=POSE, cameras={"eye": CameraFacts("wrist")})
VIDEO = DatasetMetadata("test", "", cameras={"head": CameraFacts("ego")})
SIZES = {"arm": (32, 32), "hand": (32, 48), "video": (48, 32)}


def record(root: Path, metadata: DatasetMetadata, lengths: tuple[int, ...], size: tuple[int, int], seed: int) -> Path:
    state, action = (max((f.stop for f in fields), default=0) for fields in (metadata.state, metadata.action))
    (camera,) = metadata.cameras
    names = [f"s{i}" for i in range(state)], [f"a{i}" for i in range(action)]
    store = Store.create(
        root, cameras=(camera,), image_shape=(3, *size), proprio_names=names[0], action_names=names[1], fps=10.0,
        robot_type=metadata.embodiment, expert=False, rewards=False,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    for i, T in enumerate(lengths):
        numbers = [rng.normal(0, 0.5, (T, n)).astype(np.float32) for n in (state, action, action)]
        pictures = rng.integers(0, 256, (T, 1, 3, *size), np.uint8)
        store.append(
            Episode(
                "t",
                f"do {root.name}",
                i,
                10.0,
                (camera,),
                pictures,
                *numbers,
                np.zeros(T, np.float32),
                np.zeros(T, bool),
            )
        )
    store.finalize()
    save_metadata(root, metadata)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three data sets and a mixture of them."""
    root = tmp_path_factory.mktemp("mixture")
    for i, (name, metadata, lengths) in enumerate(
        (("arm", ARM, (12, 9, 14)), ("hand", HAND, (10, 8)), ("video", VIDEO, (20,)))
    ):
        record(root / name, metadata, lengths, SIZES[name], i)
    sources = tuple(SourceConfig(n, w) for n, w in (("arm", 0.5), ("hand", 0.3), ("video", 0.2)))
    save_json(root / "mixture.json", MixtureConfig(sources, size=(32, 32), views=("scene", "wrist", "ego")))
    return root


def opened(folder: Path, **changes):
    path = folder / "mixture.json"
    if changes:
        path = folder / "changed.json"
        config = json.loads((folder / "mixture.json").read_text()) | changes
        path.write_text(json.dumps(config))
    mixture, config = open_mixture(path, CHUNK)
    return mixture, mixture_spec(mixture, config, CHUNK, OFFSETS, ())


def test_shares_are_met_at_every_moment_and_every_window_comes_once_an_epoch(folder):
    mixture, spec = opened(folder)
    windows = mixture.windows(spec, seed=3, batch_size=7)
    lengths = [len(f) for f in mixture.frames]
    starts = np.cumsum([0, *lengths])
    drawn = np.concatenate([windows.indices(k) for k in range(60)])
    owner = np.searchsorted(starts, drawn, side="right") - 1
    for n in range(1, len(owner) + 1):
        count = np.bincount(owner[:n], minlength=3)
        assert np.abs(count - n * mixture.shares).max() < 3, n
    for i, length in enumerate(lengths):
        mine = drawn[owner == i]
        for epoch in range(len(mine) // length):
            assert sorted(mine[epoch * length : (epoch + 1) * length]) == list(range(starts[i], starts[i + 1]))


def test_a_draw_is_a_function_of_seed_and_number_alone(folder, monkeypatch):
    """Whatever was asked before, however batches are cut, and across the blocks in which draws are counted."""
    mixture, spec = opened(folder)
    fresh = lambda seed=3, size=6: mixture.windows(spec, seed=seed, batch_size=size)  # noqa: E731
    windows = fresh()
    later = windows.indices(40)
    assert np.array_equal(fresh().indices(40), later) and not np.array_equal(fresh(4).indices(40), later)
    whole = np.concatenate([windows.indices(k) for k in range(20)])
    assert np.array_equal(np.concatenate([fresh(size=3).indices(k) for k in range(40)]), whole)
    monkeypatch.setattr("wamkit.data.loading.mixture._BLOCK", 16)
    assert np.array_equal(fresh().indices(40), later)


@pytest.mark.parametrize(("by", "expected"), [("sample", [2, 1, 1]), ("episode", [6, 2, 1]), ("hour", [70, 18, 20])])
def test_what_a_weight_is_of(folder, by, expected):
    sources = [{"data": n, "weight": w} for n, w in (("arm", 2.0), ("hand", 1.0), ("video", 1.0))]
    mixture, _ = opened(folder, by=by, sources=sources)
    np.testing.assert_allclose(mixture.shares, np.array(expected) / sum(expected))


def test_rows_say_what_their_robot_has(folder):
    mixture, spec = opened(folder)
    assert spec.cameras == ("scene", "wrist", "ego") and (spec.proprio_dim, spec.action_dim) == (12, 12)
    batch = mixture.windows(spec, seed=0, batch_size=24).batch(0)
    arm, hand, video = (batch.source == i for i in range(3))
    assert arm.sum() + hand.sum() + video.sum() == 24 and min(arm.sum(), hand.sum(), video.sum()) > 0
    assert [t.removeprefix("do ") for t in batch.text] == [mixture.names[i] for i in batch.source]
    assert batch.view_valid[arm].all(0).tolist() == [True, False, False]
    assert (batch.obs[arm][:, 1:] == 0).all() and (batch.obs[video][:, 2] != 0).any()
    # The gripper's command means the same on both robots and is one number; nothing else is shared.
    assert batch.action_dim_valid[arm][0].tolist() == [True] * 3 + [False] * 9
    assert batch.action_dim_valid[hand][0].tolist() == [False] * 2 + [True] * 10
    assert not batch.action_dim_valid[video].any() and not batch.has_action[video].any()
    assert (batch.action[arm][..., 3:] == 0).all() and batch.has_action[arm].all()


NAMES = [n for n in FAMILIES.names() if not FAMILIES.get(n).needs_point_cloud]


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_a_robot_does_not_have_are_silent(name, folder):
    """Padded action dimensions change no loss and get no gradient; rows without actions train nothing that acts."""
    mixture, spec = opened(folder)
    numbers = {k: (torch.zeros(n), torch.ones(n)) for k, n in (("proprio", 12), ("action", 12))}
    torch.manual_seed(0)
    cls = FAMILIES.get(name)
    model = cls(cls.Config(width=32, depth=1, heads=2), spec, Normalizer(numbers))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    batch = mixture.windows(spec, seed=0, batch_size=24).batch(0)
    padded = ~batch.action_dim_valid.unsqueeze(1)
    noisy = dataclasses.replace(
        batch,
        action=torch.where(padded, torch.full_like(batch.action, 7.0), batch.action),
        action_expert=torch.where(padded, torch.full_like(batch.action, -7.0), batch.action_expert),
    )
    for stage in model.stages():
        a, b = (model(x, torch.Generator().manual_seed(1), stage.name) for x in (batch, noisy))
        assert all(torch.equal(a[k], b[k]) for k in a), stage.name
    head = getattr(getattr(getattr(model, "action", None), "stream", None), "head", None)
    if head is not None:
        only = batch.rows(
            torch.flatnonzero(batch.source == 0)
            if hasattr(torch, "flatnonzero")
            else (batch.source == 0).nonzero().squeeze(1)
        )
        for seed in range(3):
            sum(
                v.sum() for v in model(only, torch.Generator().manual_seed(seed), model.stages()[-1].name).values()
            ).backward()
        moved = head.weight.grad.abs().sum(1).reshape(-1, 12).sum(0) > 0  # steps of a token, then numbers of a step
        assert moved[:3].all() and not moved[3:].any()


def test_a_model_learns_from_all_and_answers_for_each(folder, tmp_path):
    """End to end: trained, stopped and resumed bit for bit, loaded for one robot, in its own numbers."""
    run = RunConfig(
        "unified",
        FAMILIES.get("unified").Config(width=32, depth=1, heads=2),
        WindowConfig(chunk=CHUNK, frame_offsets=OFFSETS),
        TrainConfig(steps=8, batch_size=8, save_every=4, log_every=2, warmup=1, precision="fp32"),
    )
    model = train_run(run, folder / "mixture.json", tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    last = rows[-1]
    assert {"rows/arm", "rows/hand", "rows/video"} <= set(last) and sum(last[f"rows/{n}"] for n in SIZES) == 8
    assert any("future/video" in r for r in rows) and all(r.get("action/video", 0) == 0 for r in rows)

    stopped = Trainer._save

    def stop(self, *args):
        stopped(self, *args)
        if self.step == 4:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            train_run(run, folder / "mixture.json", tmp_path / "cut")
    again = train_run(run, folder / "mixture.json", tmp_path / "cut")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())

    hand = load(tmp_path / "whole", embodiment="hand")
    store = Store.open(folder / "hand")
    picture = np.zeros((1, 3, 32, 32), np.uint8)
    obs = Observation(picture, store.numeric()["observation.state"][0], "do hand")
    out = hand.sample(obs, "joint", seed=0)
    assert out.actions.shape == (CHUNK, 7) and out.future.shape == (2, 1, 3, 32, 32)
    unified = load(tmp_path / "whole").sample(dataclasses.replace(hand.embodiment.observation(obs)), "policy")
    assert unified.actions.shape == (CHUNK, 12)
    forward = hand.sample(obs, "forward", seed=0, actions=out.actions)
    assert forward.future.shape == out.future.shape
    seen = np.random.default_rng(0).integers(0, 256, (2, 1, 3, 32, 32), np.uint8)  # by the hand's one camera
    assert hand.sample(obs, "inverse", seed=0, future=seen).actions.shape == (CHUNK, 7)
    with pytest.raises(WamkitError, match="knows no embodiment 'hnad' .did you mean 'hand'.*it knows arm, hand, video"):
        load(tmp_path / "whole", embodiment="hnad")
    with pytest.raises(WamkitError, match="the robot 'hand' has 7 state dimensions, got shape .2,."):
        hand.sample(dataclasses.replace(obs, proprio=np.zeros(2, np.float32)), "policy")


def test_bad_mixtures_say_what_is_wrong(folder, tmp_path, capsys):
    with pytest.raises(ConfigError, match="'data/a:much' is not FOLDER:WEIGHT"):
        parse_sources(["data/a:much"], tmp_path / "m.json")
    with pytest.raises(ConfigError, match="weight = -1.0: must be"):
        SourceConfig("a", -1.0)
    with pytest.raises(ConfigError, match="their names must differ"):
        MixtureConfig((SourceConfig("a/x"), SourceConfig("b/x")))
    with pytest.raises(WamkitError, match="multiples of 16"):
        opened(folder, size=[40, 40])
    with pytest.raises(WamkitError, match="none of its cameras is one of scene; it has wrist"):
        opened(folder, views=["scene"])
    dumb = record(tmp_path / "dumb", ARM, (6,), (32, 32), 0)
    without_checksums(dumb)
    for name in ("wamkit.json", "modality.json"):
        (dumb / "meta" / name).unlink()
    save_json(tmp_path / "m.json", MixtureConfig((SourceConfig("dumb"),)))
    with pytest.raises(StoreError, match="has no metadata"):
        open_mixture(tmp_path / "m.json", CHUNK)
    assert (
        main(["mix", f"{folder}/arm:2", f"{folder}/video", "--out", f"{tmp_path}/n.json", "--views", "scene", "ego"])
        == 0
    )
    out = capsys.readouterr().out
    assert (
        "arm               66.7%  3 episodes, 35 frames, with actions" in out
        and "video             33.3%  1 episodes, 20 frames, video alone" in out
    )


def test_parts_of_a_data_set_and_data_shown_as_video(folder):
    """The same data set twice: its first demonstration with actions, the others without."""
    part = {"data": "arm", "weight": 1.0}
    sources = [part | {"demonstrations": [0, 1]}, part | {"demonstrations": [1, 3], "actions": False}]
    mixture, spec = opened(folder, sources=sources)
    assert mixture.names == ("arm", "arm-video")
    assert [np.unique(f.episode[f.rows()]).tolist() for f in mixture.frames] == [[0], [1, 2]]
    batch = mixture.windows(spec, seed=0, batch_size=16).batch(0)
    assert batch.has_action.tolist() == (batch.source == 0).tolist() and 6 <= batch.has_action.sum() <= 10
    # What nobody may look at is in no statistics, and what both show is in one.
    numbers = Store.open(folder / "arm").numeric()
    first, hand = mixture.embodiments["arm"], mixture.embodiments["arm"].action[0]
    np.testing.assert_allclose(hand.shift, numbers["action"][:12, :2].mean(0), atol=1e-6)
    np.testing.assert_allclose(first.state[0].shift, numbers["observation.state"][:, :2].mean(0), atol=1e-6)
    assert first == mixture.embodiments["arm-video"]
    with pytest.raises(StoreError, match="arm holds 3 demonstrations; 2 to 5 were requested"):
        opened(folder, sources=[part | {"demonstrations": [2, 5]}])


@pytest.mark.parametrize(("by", "expected"), [("episode", [1, 2]), ("hour", [12, 23])])
def test_weights_are_of_what_is_used(folder, by, expected):
    sources = [{"data": "arm", "demonstrations": d, "actions": a} for d, a in (([0, 1], True), ([1, 3], False))]
    mixture, _ = opened(folder, by=by, sources=sources)
    np.testing.assert_allclose(mixture.shares, np.array(expected) / sum(expected))


@pytest.mark.parametrize(("fps", "rows"), [(5.0, [1, 2]), (10.0, [2, 4]), (40.0, [8, 16]), (1.0, [1, 1])])
def test_video_of_another_rate_goes_on_as_fast_as_the_robots(folder, tmp_path, fps, rows):
    """Offsets are steps of 1/10 s of the robot's; a video's own images of that time, and at least the next one."""
    store = Store.create(
        tmp_path / "video", cameras=("head",), image_shape=(3, 32, 32), proprio_names=(), action_names=(), fps=fps,
        robot_type="none", expert=False, rewards=False,
    )  # fmt: skip
    shades = np.arange(0, 240, 8, dtype=np.uint8)
    pictures = np.ascontiguousarray(np.broadcast_to(shades[:, None, None, None, None], (30, 1, 3, 32, 32)))
    none = np.zeros((30, 0), np.float32)
    still = (np.zeros(30, np.float32), np.zeros(30, bool))
    store.append(Episode("t", "look", 0, fps, ("head",), pictures, none, none, none, *still))
    store.finalize()
    save_metadata(tmp_path / "video", VIDEO)
    sources = (SourceConfig(str(folder / "arm"), 2.0), SourceConfig("video"))
    save_json(tmp_path / "m.json", MixtureConfig(sources, size=(32, 32), views=("scene+ego",)))
    mixture, config = open_mixture(tmp_path / "m.json", CHUNK)
    spec = mixture_spec(mixture, config, CHUNK, OFFSETS, (-2,))
    assert mixture.fps == 10 and len(spec.cameras) == 1 and mixture.frames[0].frame_stride == 1
    windows = mixture.windows(spec, seed=0, batch_size=1).parts[1]
    batch = windows.gather(np.array([10]))
    seen = lambda x: round(float(x.float().mean()) / 8)  # noqa: E731
    assert [seen(x) for x in batch.future[0]] == [10 + r for r in rows]
    assert seen(batch.past[0, 0]) == 10 - rows[0] and batch.frame_valid.all() == (10 + rows[-1] < 30)


def test_words_of_the_command_line(tmp_path):
    words = ["a", "b/umi:0.3", "c:0.5:0-10", "c:10-60:video"]
    parsed = parse_sources(words, Path("m.json"))
    assert parsed == (
        SourceConfig("a"),
        SourceConfig("b/umi", 0.3),
        SourceConfig("c", 0.5, demonstrations=(0, 10)),
        SourceConfig("c", demonstrations=(10, 60), actions=False),
    )
    with pytest.raises(ConfigError, match="the first must be below the second"):
        parse_sources(["c:5-5"], Path("m.json"))


def test_kept_features_are_those_of_these_views(folder, tmp_path):
    """What a camera is said to look at decides what a model is shown of it; so does a video's rate."""
    config = {"mixture": 1}
    stores = [Store.open(folder / "arm")]
    one, again, other = (_feature_cache(tmp_path, stores, 1.0, [config, {"arm": v}]).data for v in (0, 0, 1))
    assert one == again != other and _feature_cache(tmp_path, stores, 0.0) is None
