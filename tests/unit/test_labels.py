"""Labels for video: what a run reads off images, averaged over windows, as a data set; known answers."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from wamkit.cli.main import main
from wamkit.config import to_dict
from wamkit.data.embodiment import SourceData, fit
from wamkit.data.format.metadata_io import load_metadata, save_metadata
from wamkit.data.format.store import Store
from wamkit.data.importers.run import left_out, require_whole
from wamkit.data.labelled import SPREAD, WINDOWS
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.windows import observations
from wamkit.data.validate import summary, validate
from wamkit.families.base import Family, Taxonomy
from wamkit.families.inverse import Inverse
from wamkit.files import StoreError
from wamkit.inference import labels
from wamkit.inference.labels import LabelOptions, averaged, by_step, label, label_errors
from wamkit.inference.model import Model
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.nn.family_options import InverseConfig
from wamkit.nn.normalizer import Normalizer
from wamkit.runs.checkpoint import save_checkpoint
from wamkit.runs.config import RunConfig, config_class
from wamkit.runs.provenance import Provenance
from wamkit.runs.run import Run, build, run_to_dict
from wamkit.types import Batch, Episode, Query, Spec, UnsupportedQuery, WamkitError

SPEC = Spec(("top",), 16, 16, proprio_dim=1, action_dim=1, chunk=3, frame_offsets=(1, 2, 3), fps=10.0)
ROBOT = DatasetMetadata(
    "made for a test",
    "slider",
    "delta",
    state=(Field("level", 0, 1, "position"),),
    action=(Field("step", 0, 1, "position", "delta"),),
    cameras={"top": CameraFacts("scene")},
)
LENGTHS = (9, 3, 7)


def levels(seed: int, steps: int) -> np.ndarray:
    """Grey levels of the frames of an episode: a state that the images show exactly, as its changes are the actions."""
    return 128 + np.cumsum(np.random.default_rng(seed).integers(-5, 6, steps))


def recorded(
    root, *, acts: bool, camera: str = "top", fps: float = 10.0, state: bool | None = None, noise: float = 0.0
):
    """A store of three episodes, the second too short for a window, and its metadata. PNG, so that levels are exact."""
    state = acts if state is None else state
    names = {"proprio_names": ("level",) * state, "action_names": ("step",) * acts}
    layout = {"image_shape": (3, 16, 16), "fps": fps, "robot_type": "none", "expert": acts, "stills": (camera,)}
    store = Store.create(root, cameras=(camera,), **names, **layout)
    for seed, steps in enumerate(LENGTHS):
        v = levels(seed, steps)
        clean = np.diff(v, append=v[-1] + 1).astype(np.float32)[:, None]
        none = np.zeros((steps, 0), np.float32)
        episode = Episode(
            task="slide",
            text=f"slide {seed}",
            seed=40 + seed,
            fps=fps,
            cameras=(camera,),
            images=np.broadcast_to(v.astype(np.uint8)[:, None, None, None, None], (steps, 1, 3, 16, 16)).copy(),
            proprio=v.astype(np.float32)[:, None] if state else none,
            action=clean if acts else none,
            action_expert=clean + np.float32(noise) if acts else none,
            reward=np.zeros(steps, np.float32),
            success=np.arange(steps) == steps - 1,
            is_demonstration=seed != 2,
        )
        store.append(episode)
    store.finalize()
    known = replace(ROBOT, cameras={camera: CameraFacts("scene")})
    save_metadata(root, known if acts else replace(known, embodiment="", control_mode="", state=(), action=()))
    return root


def run_of(root, family: str = "inverse", spec: Spec = SPEC, metadata: DatasetMetadata = ROBOT) -> Run:
    """An untrained run, which knows its data."""
    numbers = {k: {"mean": [0.0] * n, "std": [1.0] * n} for k, n in (("proprio", 1), ("action", spec.action_dim))}
    config = RunConfig(family, config_class(family)(width=16, depth=1, heads=2, actions_per_token=1))
    described = run_to_dict(config, spec, numbers, Provenance())
    described["metadata"] = {"": to_dict(metadata)}
    state = build(config, spec, numbers).state_dict()
    empty = {"ema_state": None, "optimizer_state": {}, "rng_state": {}, "extra": {}}
    save_checkpoint(root / "checkpoints", step=1, model_state=state, config=described, **empty)
    return Run.open(root)


class Exact(Family):
    """A reader that is right, and then adds `bias` times the place of the step in its window."""

    name = "exact"
    taxonomy = Taxonomy("control", "none", "none", "none", "none")
    queries = deterministic = frozenset({Query.INVERSE})
    images_alone = True
    Config = InverseConfig
    bias = 0.0

    def __init__(self, *given):
        super().__init__(*given)
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def attention_layout(self):
        raise NotImplementedError

    def forward(self, batch, generator, stage="main"):
        raise NotImplementedError

    def generate(self, batch, query, generators, steps):
        shown = torch.cat([batch.obs.unsqueeze(1), batch.future], 1).float().mean((2, 3, 4, 5))
        return shown.diff(dim=1).unsqueeze(2) + self.bias * torch.arange(3.0)[:, None], None

    def read_state(self, batch):
        return batch.obs.float().mean((1, 2, 3, 4)).unsqueeze(1)


@pytest.fixture
def exact(tmp_path, monkeypatch):
    """A run whose answers are exact but for the bias that is set."""
    run = run_of(tmp_path / "run")

    def load(run, embodiment=""):
        family = run.family()
        return Model(Exact(family.config, family.spec, family.normalizer), image=run.image)

    monkeypatch.setattr(labels, "load", load)
    monkeypatch.setattr(Exact, "bias", 0.0)
    return run


def test_actions_and_state_that_images_show_are_read_exactly(exact, tmp_path):
    video = recorded(tmp_path / "video", acts=False)
    assert label(exact, video, tmp_path / "out").root == tmp_path / "out"
    made = Store.open(tmp_path / "out")
    require_whole(made.root)
    assert left_out(made.root) == {"1": "3 steps, where a window spans 4"}
    assert made.layout.proprio_names == ("level",) and made.layout.action_names == ("step",)
    for index, seed in enumerate((0, 2)):
        episode, v = made.episode(index), levels(seed, LENGTHS[seed])
        assert np.array_equal(episode.proprio[:, 0], v.astype(np.float32))
        assert np.array_equal(episode.action[:-1, 0], np.diff(v).astype(np.float32))
        assert episode.action[-1] == episode.action[-2]
        assert episode.extras[WINDOWS][:, 0].tolist() == [1, 2, *[3] * (len(v) - 5), 2, 1, 0]
        assert (episode.extras[SPREAD] == 0).all()
        assert (episode.text, episode.seed, episode.is_demonstration) == (f"slide {seed}", 40 + seed, seed == 0)
        assert episode.succeeded and np.array_equal(episode.images[:, 0, 0, 0, 0], v.astype(np.uint8))
    metadata = load_metadata(made.root)
    assert (metadata.labels.run, metadata.labels.digest) == (exact.label, exact.digest) and metadata.labels.state
    assert (metadata.embodiment, metadata.control_mode) == ("slider", "delta")
    assert (metadata.state, metadata.action, metadata.cameras) == (ROBOT.state, ROBOT.action, ROBOT.cameras)
    frames, _ = open_frames(made)
    assert frames.has_action.all() and frames.is_demonstration.tolist() == [True, False]


def test_a_label_is_the_mean_over_the_windows_that_hold_the_step(exact, tmp_path, monkeypatch):
    monkeypatch.setattr(Exact, "bias", 3.0)  # places 0, 1 and 2 of a window say 0, 3 and 6 too much
    label(exact, recorded(tmp_path / "video", acts=False), tmp_path / "out", LabelOptions(batch=2))
    episode, v = Store.open(tmp_path / "out").episode(0), levels(0, 9)
    said = [[0], [0, 3], *[[0, 3, 6]] * 4, [3, 6], [6]]
    expected = np.diff(v) + [np.mean(x) for x in said]
    assert np.allclose(episode.action[:-1, 0], expected) and episode.action[-1] == episode.action[-2]
    assert np.allclose(episode.extras[SPREAD][:-1, 0], [np.std(x) for x in said])
    made = Store.open(tmp_path / "out")
    assert "windows differ by step 2.45" in dict(summary(made, load_metadata(made.root)))["labels"]


def test_rotations_are_averaged_as_rotations():
    yaw = np.deg2rad([[[0, 0, 179.0]], [[0, 0, -177.0]]])  # two windows of one step, about the same step
    fields = (Field("turn", 0, 3, "rotation", rotation="euler_xyz"),)
    said = np.concatenate([yaw[0], yaw[1]])[None]
    mean, _, count = averaged(said, fields)
    assert np.allclose(np.rad2deg(mean), [[0, 0, -179]], atol=1e-3) and count.tolist() == [2]
    q = np.array([[0, 0, 0.6, 0.8]])
    mean, _, _ = averaged(np.stack([q, -q], 1), (Field("turn", 0, 4, "rotation", rotation="quat_xyzw"),))
    assert np.allclose(mean, q, atol=1e-6)


def test_what_was_cut_off_continues_with_the_same_bytes(exact, tmp_path, monkeypatch):
    video, content = recorded(tmp_path / "video", acts=False), {}
    label(exact, video, tmp_path / "whole")
    append, kept = Store.append, []

    def dying(store, *given):
        if kept:
            raise KeyboardInterrupt
        kept.append(append(store, *given))

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", dying)
        with pytest.raises(KeyboardInterrupt):
            label(exact, video, tmp_path / "cut")
    with pytest.raises(StoreError, match="its labelling was cut off; run the same `wamkit label` again"):
        open_frames(tmp_path / "cut")
    label(exact, video, tmp_path / "cut")
    label(exact, video, tmp_path / "cut")  # nothing is left to do
    for name in ("whole", "cut"):
        files = (p for p in (tmp_path / name).rglob("*") if p.is_file() and ".cache" not in p.parts)
        content[name] = {p.relative_to(tmp_path / name): p.read_bytes() for p in files}
    assert content["whole"] == content["cut"]


def test_data_with_actions_are_labelled_on_request_and_compared(exact, tmp_path, monkeypatch):
    demos = recorded(tmp_path / "demos", acts=True, noise=2.0)
    with pytest.raises(WamkitError, match="has actions: --replace puts labels in their place"):
        label(exact, demos, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    wide = run_of(tmp_path / "wide", spec=replace(SPEC, action_dim=2))
    with pytest.raises(WamkitError, match="has 1 action dimensions, .* gives 2"):
        label(wide, demos, tmp_path / "out", LabelOptions(replace=True))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Exact, "bias", 3.0)
    made = label(exact, demos, tmp_path / "out", LabelOptions(replace=True))
    assert not load_metadata(made.root).labels.state and not made.layout.expert
    (found,) = label_errors(Store.open(demos), made, 3)
    true = np.concatenate([np.diff(levels(s, LENGTHS[s])) for s in (0, 2)])
    off = [np.mean(x) for n in (9, 7) for x in ([0], [0, 3], *[[0, 3, 6]] * (n - 5), [3, 6], [6])]
    assert np.isclose(found.error, np.sqrt(np.square(off).mean())) and np.isclose(found.guess, true.std())
    assert np.isclose(found.share, np.square(off).mean() / true.var()) and np.isclose(found.noise, 2)
    assert np.isclose(found.clean, np.square(np.array(off) - 2).mean() / true.var())


def test_videos_are_copied_to_the_byte(exact, tmp_path):
    video = recorded(tmp_path / "stills", acts=False)
    store = Store.open(video)
    layout = {**vars(store.layout), "stills": ()}
    filmed = Store.create(tmp_path / "filmed", **layout)
    for index in range(len(store)):
        filmed.append(store.episode(index))
    filmed.finalize()
    made = label(exact, tmp_path / "filmed", tmp_path / "out")
    for index, before in enumerate((0, 2)):
        assert made.video_path(index, "top").read_bytes() == filmed.video_path(before, "top").read_bytes()


def test_a_labelled_data_set_trains_beside_demonstrations(exact, tmp_path):
    """It has the vectors of the demonstrations, so that both share their statistics in a mixture."""
    demos = recorded(tmp_path / "demos", acts=True)
    made = label(exact, recorded(tmp_path / "video", acts=False), tmp_path / "out")
    data = []
    for store in (Store.open(demos), made):
        columns = store.numeric()
        vectors = (columns[k] for k in ("observation.state", "action", "episode_index"))
        data.append(SourceData(load_metadata(store.root), *vectors, store.cameras))
    first, second = fit(data, ("scene",))
    assert first == second
    state = np.array([[120.0], [133.0]], np.float32)
    assert np.allclose(first.decode_state(first.encode_state(state)), state)


def refusals():
    yield {"family": "bc"}, {}, UnsupportedQuery, "does not model the query 'inverse'; families that do: .*inverse"
    yield {}, {"fps": 20.0}, WamkitError, "has 20 frames a second, .* reads 10: import the videos with --options.fps 10"
    yield {"metadata": replace(ROBOT, cameras={})}, {"camera": "side"}, WamkitError, "has no camera 'top', which"
    yield {"metadata": replace(ROBOT, cameras={"top": CameraFacts("wrist")})}, {"camera": "side"}, WamkitError, "wrist"
    yield {"family": "unified"}, {}, WamkitError, "has no state, which the 'unified' .* is given: train --recipe metaw"
    yield {"spec": replace(SPEC, chunk=16, frame_offsets=(8, 16))}, {}, WamkitError, "no episode is longer than 16"
    yield {"metadata": replace(ROBOT, embodiment="so101")}, {"state": True}, WamkitError, None


@pytest.mark.parametrize(("run", "data", "error", "message"), list(refusals()), ids=range(7))
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, run, data, error, message):
    video = recorded(tmp_path / "video", acts=False, **data)
    if message is None:
        save_metadata(video, replace(load_metadata(video), embodiment="slider"))
        message = "shows the robot 'slider', .* reads 'so101'"
    before = sorted(video.rglob("*"))
    with pytest.raises(error, match=message):
        label(run_of(tmp_path / "run", **run), video, tmp_path / "out")
    assert not (tmp_path / "out").exists() and sorted(video.rglob("*")) == before


def test_another_data_set_in_the_place_is_refused(exact, tmp_path):
    video, demos = recorded(tmp_path / "video", acts=False), recorded(tmp_path / "demos", acts=True)
    with pytest.raises(StoreError, match="holds a data set that `wamkit label` did not make"):
        label(exact, video, demos)
    label(exact, video, tmp_path / "out")
    with pytest.raises(StoreError, match="options.steps was None, now 2"):
        label(exact, video, tmp_path / "out", LabelOptions(steps=2))


def test_damage_is_answered_with_the_command_that_labels_again(exact, tmp_path):
    video = recorded(tmp_path / "video", acts=False)
    made = label(exact, video, tmp_path / "out")
    (made.root / "data/chunk-000/file-001.parquet").write_bytes(b"damaged")
    again = f"wamkit label {video} --with {exact.label} --out {made.root}"
    with pytest.raises(
        StoreError, match=re.escape(f"it was labelled from {video}: remove {made.root} and run `{again}`")
    ):
        Store.open(made.root)


def test_weights_elsewhere_continue_and_other_weights_are_refused(exact, tmp_path):
    video = recorded(tmp_path / "video", acts=False)
    label(exact, video, tmp_path / "out")
    label(replace(exact, path=tmp_path / "moved"), video, tmp_path / "out")
    with pytest.raises(StoreError, match="options.weights was"):
        label(replace(exact, digest="0" * 64), video, tmp_path / "out")


def test_a_camera_is_found_by_its_role(exact, tmp_path):
    video = recorded(tmp_path / "video", acts=False, camera="phone")
    made = label(exact, video, tmp_path / "out")
    assert np.array_equal(made.numeric()["action"][:8, 0], np.diff(levels(0, 9)).astype(np.float32))


def test_the_command_labels_and_the_page_of_validate_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demos, video = recorded(tmp_path / "demos", acts=True), recorded(tmp_path / "video", acts=False)
    small = "--train.steps 2 --train.batch-size 2 --train.threads 1 --model.width 16 --model.depth 1 --model.heads 2"
    window = "--window.chunk 3 --window.frame-offsets 1 2 3 --model.actions-per-token 1"
    assert main(f"train --recipe metaworld-inverse --data {demos} --out reader {small} {window}".split()) == 0
    assert "next: wamkit label VIDEO --with reader --out LABELLED" in capsys.readouterr().out
    assert main(f"label {video} --with reader --out out".split()) == 0
    said = capsys.readouterr().out
    assert "labelled: 2 episodes, 16 frames in out" in said and "step             windows differ by" in said
    assert main(f"label {demos} --with reader --out again --replace".split()) == 0
    assert "share of the variance" in capsys.readouterr().out
    assert main("validate out --out page.html".split()) == 0
    shown = capsys.readouterr().out
    assert "read off the videos by reader (inverse, " in shown and "reader" in (tmp_path / "page.html").read_text()
    assert not [f for f in validate(tmp_path / "out", progress=False) if f.level == "error"]
    assert main(f"train --recipe metaworld-bc --data out --out policy {small} {window}".split()) == 0
    assert Run.open(tmp_path / "policy").metadata[""].labels.family == "inverse"


def test_by_step_puts_each_answer_where_it_belongs():
    said = by_step(np.arange(6.0).reshape(2, 3, 1), 5)[..., 0]
    assert np.array_equal(said[0], [0, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(said[2], [np.nan, 4, 2], equal_nan=True) and np.isnan(said[4]).all()


def moving(rows: int, seed: int) -> Batch:
    """A square that moves by actions, in another place of another colour each time."""
    g = torch.Generator().manual_seed(seed)
    batch = Batch.random(MOVING, rows, seed)
    batch.action = 2 * torch.rand(rows, 2, 1, generator=g) - 1
    place = 10 + 12 * torch.rand(rows, 1, generator=g)
    batch.proprio = place - 16
    at = torch.cat([place, place + 4 * batch.action.squeeze(2).cumsum(1)], 1)
    column = torch.arange(32.0)
    shown = (1 + 3 - (column - at[:, :, None]).abs()).clamp(0, 1) * (100 + 100 * torch.rand(rows, 1, 1, generator=g))
    images = shown[:, :, None, None, None].expand(-1, -1, 1, 3, 32, -1).to(torch.uint8)
    batch.obs, batch.future = images[:, 0], images[:, 1:]
    return batch


MOVING = Spec(("top",), 32, 32, proprio_dim=1, action_dim=1, chunk=2, frame_offsets=(1, 2))


def test_the_reader_learns_motion_and_place_and_ignores_what_it_is_told():
    torch.manual_seed(0)
    one = (torch.zeros(1), torch.ones(1))
    numbers = {"proprio": (one[0], 4 * one[1]), "action": (one[0], 0.6 * one[1])}
    family = Inverse(InverseConfig(width=32, depth=1, heads=2, actions_per_token=1), MOVING, Normalizer(numbers))
    optimizer = torch.optim.Adam(family.parameters(), 3e-3)
    for step in range(120):
        loss = sum(v.mean() for v in family(moving(32, step), torch.Generator()).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model, batch = Model(family.eval()), moving(64, 1000)
    answer = model.sample(observations(batch), "inverse", future=batch.future.numpy())
    assert np.square(answer.actions - batch.action.numpy()).mean() < 0.1 * batch.action.var().item()
    state = model.read_state(batch.obs.numpy())
    assert np.square(state - batch.proprio.numpy()).mean() < 0.1 * batch.proprio.var().item()
    blind = replace(batch, proprio=batch.proprio + 3, text=["unread"] * 64)
    assert np.array_equal(
        model.sample(observations(blind), "inverse", future=batch.future.numpy()).actions, answer.actions
    )


def test_a_reader_that_learned_from_a_mixture_answers_in_the_robots_units(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demos", "own"):
        recorded(tmp_path / name, acts=True)
    video = recorded(tmp_path / "video", acts=False, camera="phone")
    assert main("mix demos:0.5 own:0.5 --out mixture.json --size 16 16".split()) == 0
    small = "--train.steps 40 --train.batch-size 8 --train.threads 1 --model.width 16 --model.depth 1 --model.heads 2"
    window = "--window.chunk 3 --window.frame-offsets 1 2 3 --model.actions-per-token 1"
    assert main(f"train --recipe metaworld-inverse --data mixture.json --out reader {small} {window}".split()) == 0
    assert main("label video --with reader --out out".split()) == 0
    made, known = Store.open("out"), load_metadata(tmp_path / "demos")
    metadata = load_metadata(made.root)
    assert (metadata.embodiment, metadata.state, metadata.action) == ("slider", known.state, known.action)
    assert metadata.labels.state and made.layout.proprio_names == ("level",)
    true = np.concatenate([levels(s, LENGTHS[s]) for s in (0, 2)])
    assert np.abs(made.numeric()["observation.state"][:, 0] - true).max() < 40  # levels, not unit scale
    with pytest.raises(WamkitError, match="knows no embodiment 'other'"):
        label(Run.open(tmp_path / "reader"), video, tmp_path / "no", LabelOptions(embodiment="other"))
