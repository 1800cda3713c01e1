"""Importing: what every importer goes through. Continuing, leaving out, doubles, alignment, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from wamkit.config import ConfigError
from wamkit.data.format.metadata_io import from_modality, load_metadata, modality
from wamkit.data.format.schema import Layout
from wamkit.data.format.store import Store
from wamkit.data.importers import IMPORTERS, Importer, Recording, SourceError
from wamkit.data.importers.base import checked, inside
from wamkit.data.importers.run import FILE, Import, import_data, left_out, require_whole, shifted
from wamkit.files import StoreError
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Span


def film(seed: int, steps: int, size: tuple[int, int]):
    """A bright square that moves: a fresh iterator a call."""

    def pictures():
        for t in range(steps):
            out = np.full((*size, 3), 30 + seed, np.uint8)
            out[4 : 4 + 8, 2 * t : 2 * t + 8] = 220
            yield out

    return pictures


@dataclasses.dataclass(frozen=True)
class MadeOptions:
    """Of the importer in this file."""

    offset: int = 0


class Made(Importer):
    """Episodes made up here: names 0 .. n - 1, and files that say which are broken."""

    Options = MadeOptions
    asked: list[str] = []

    def layout(self) -> Layout:
        return Layout(
            ("scene", "wrist"), (3, 32, 32), ("x", "y"), ("u",), 10.0, "made", sizes=((32, 32), (16, 48)), expert=False
        )

    def metadata(self) -> DatasetMetadata:
        return DatasetMetadata(
            "made", "made", "position", 10.0, offset=self.options.offset,
            state=(Field("xy", 0, 2, "position", unit="m"),),
            action=(Field("u", 0, 1, "gripper"),), cameras={"scene": CameraFacts(), "wrist": CameraFacts("wrist")},
        )  # fmt: skip

    def episodes(self) -> Sequence[str]:
        return [p.stem for p in sorted(self.root.glob("*.json"))]

    def read(self, name: str) -> Recording:
        self.asked.append(name)
        said = json.loads((self.root / f"{name}.json").read_text())
        if "broken" in said:
            raise SourceError(f"{self.root}/{name}.json: {said['broken']}")
        seed, T = said["seed"], said["steps"]
        rng = np.random.default_rng(seed)
        return Recording(
            name=name,
            text="push",
            state=rng.normal(size=(T, 2)).astype(np.float32),
            action=np.arange(T, dtype=np.float32)[:, None],
            images={"scene": film(seed, said.get("film", T), (32, 32)), "wrist": film(seed, T, (16, 48))},
            spans=(Span(2, 4, "pull"),),
            success=np.arange(T) == T - 1,
        )


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A source of three episodes."""
    monkeypatch.setitem(IMPORTERS._items, "made", Made)
    Made.asked = []
    root = tmp_path / "source"
    root.mkdir()
    for i in range(3):
        write(root, i)
    return root


def write(root: Path, number: int, **said) -> None:
    (root / f"{number}.json").write_text(json.dumps({"seed": number, "steps": 6 + number} | said))


def run(source: Path, options=None, **more) -> Store:
    out = source.parent / "store"
    return import_data(Import(format="made", source=source, out=out, **more), options)


def test_what_is_imported_is_what_was_there(made):
    store = run(made)
    store = Store.open(store.root)
    assert [m.source for m in store.episodes] == ["0", "1", "2"] and store.layout.size("wrist") == (16, 48)
    episode = store.episode(1)
    wrote = Made(made, MadeOptions()).read("1")
    assert np.array_equal(episode.proprio, wrote.state) and np.array_equal(episode.action, wrote.action)
    assert episode.texts() == ["push", "push", "pull", "pull", "push", "push", "push"] and episode.spans == wrote.spans
    assert episode.succeeded and store.numeric()["task_index"].tolist()[:6] == [0, 0, 1, 1, 0, 0]
    for camera in ("scene", "wrist"):
        decoded, real = store.decode(1, camera), np.stack(list(wrote.images[camera]()))
        assert np.abs(decoded.transpose(0, 2, 3, 1).astype(int) - real).mean() < 3
    assert load_metadata(store.root) == Made(made, MadeOptions()).metadata()
    assert json.loads((store.root / FILE).read_text())["complete"]


def test_a_second_call_reads_only_what_is_missing(made):
    run(made, limit=2)
    write(made, 3)
    Made.asked = []
    assert len(run(made)) == 4 and Made.asked == ["2", "3"]


def test_what_cannot_be_read_stops_the_import_or_is_left_out(made):
    write(made, 1, broken="the file is cut off")
    with pytest.raises(SourceError, match="1.json: the file is cut off"):
        run(made)
    store = made.parent / "store"
    with pytest.raises(StoreError, match="its import was cut off; run the same `wamkit import` again"):
        require_whole(store)
    assert [m.source for m in run(made, on_error="skip").episodes] == ["0", "2"]
    require_whole(store)
    assert left_out(store) == {"1": f"{made}/1.json: the file is cut off"}


def test_an_episode_without_steps_is_left_out(made):
    write(made, 1, steps=0)
    with pytest.raises(SourceError, match=r"source: episode 1 has no steps; leave it out by --on-error skip"):
        run(made)
    assert [m.source for m in run(made, on_error="skip").episodes] == ["0", "2"]


def test_episodes_that_the_source_has_no_more_stay_and_are_told(made, capsys):
    assert len(run(made)) == 3 and "no longer" not in capsys.readouterr().out
    (made / "1.json").unlink()
    assert len(run(made)) == 3
    assert f"1 episodes of {made.parent / 'store'} are no longer in {made}: 1" in capsys.readouterr().out


def test_not_one_readable_episode_is_an_error(made):
    for i in range(3):
        write(made, i, broken="no")
    with pytest.raises(SourceError, match="none of its 3 episodes can be read; the first: .*0.json: no"):
        run(made, on_error="skip")


def test_doubles_are_named_also_across_calls(made):
    run(made, limit=2)
    write(made, 2, seed=0, steps=6)
    with pytest.raises(SourceError, match="episode 2 is identical to episode 0"):
        run(made)
    assert [m.source for m in run(made, on_error="skip").episodes] == ["0", "1"]


def test_a_video_that_is_too_short_is_no_episode(made):
    write(made, 1, film=5)
    with pytest.raises(SourceError, match="episode 1, camera scene: there are 5 images for 7 steps"):
        run(made)
    assert len(Store.open(made.parent / "store")) == 1


def test_other_numbers_do_not_go_into_the_same_store(made):
    run(made)
    with pytest.raises(StoreError, match="imported otherwise: options.offset was 0, now 1"):
        run(made, MadeOptions(offset=1))


def test_what_was_seen_after_each_action_is_shifted(made):
    """The square is at 2 t in image t, and action t is t: an observation must come before its action."""
    wrote = Made(made, MadeOptions()).read("0")
    moved = shifted(wrote)
    assert len(moved) == len(wrote) - 1 and moved.action[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert np.array_equal(moved.state, wrote.state[:-1])
    shown = [int(p[4].max(-1).argmax()) // 2 for p in moved.images["scene"]()]
    assert shown == [0, 1, 2, 3, 4] and moved.success.tolist() == [False] * 4 + [True]
    episode = run(made, MadeOptions(offset=1)).episode(0)
    assert episode.action[:, 0].tolist() == [1, 2, 3, 4, 5] and len(episode.images) == 5


def test_names_that_lead_out_and_numbers_that_are_none(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "in/link").symlink_to(tmp_path / "secret")
    for name in ("../secret", "/etc/passwd", "link", "a/../../secret"):
        with pytest.raises(SourceError, match="leads out of this folder"):
            inside(tmp_path / "in", name)
    assert inside(tmp_path / "in", "a/b") == tmp_path / "in/a/b"
    with pytest.raises(SourceError, match="action is NaN or infinite at step 1"):
        checked(np.array([[0.0], [np.inf]]), (2, 1), "action")
    with pytest.raises(SourceError, match=r"action is \(2, 1\) instead of \(3, -1\)"):
        checked(np.zeros((2, 1)), (3, -1), "action")


def test_meaning_is_checked_and_survives_groots_file(made):
    metadata = Made(made, MadeOptions()).metadata()
    with pytest.raises(ConfigError, match="state.xy covers dimensions 0 to 2 of 1"):
        metadata.check(1, 1)
    back = from_modality(modality(metadata))
    assert [(f.name, f.start, f.stop) for f in back.state] == [("xy", 0, 2)] and set(back.cameras) == {"scene", "wrist"}
    root = run(made).root
    (root / "meta/wamkit.json").unlink()
    assert load_metadata(root) == back
    (root / "meta/modality.json").write_text("{")
    with pytest.raises(StoreError, match="its metadata cannot be read"):
        load_metadata(root)


def test_unknown_formats_and_missing_sources(tmp_path):
    with pytest.raises(LookupError, match="unknown importer 'robomimc' .did you mean 'robomimic'"):
        import_data(Import(format="robomimc", source=tmp_path, out=tmp_path / "o"))
    with pytest.raises(SourceError, match="nowhere: there is no such file or folder"):
        import_data(Import(format="robomimic", source=tmp_path / "nowhere", out=tmp_path / "o"))


def test_whatever_a_reader_raises_is_an_error_of_the_source(made, monkeypatch):
    """Also while images are read, and texts that no file can hold; another episode can then be imported."""

    def read(self, name):
        recording = Made.__dict__["plain"](self, name)
        if name == "0":
            raise RecursionError("maximum recursion depth exceeded")
        if name == "1":

            def images():
                yield from ()
                raise OverflowError("too large")

            return dataclasses.replace(recording, images={"scene": images, "wrist": images})
        return dataclasses.replace(recording, text="\udcff") if name == "2" else recording

    monkeypatch.setattr(Made, "plain", Made.read, raising=False)
    monkeypatch.setattr(Made, "read", read)
    write(made, 3)
    with pytest.raises(SourceError, match=r"source \(episode 0\): maximum recursion depth exceeded; .*--on-error skip"):
        run(made)
    assert [m.source for m in run(made, on_error="skip").episodes] == ["3"]
    skipped = left_out(made.parent / "store")
    assert "too large" in skipped["1"] and "a text is not UTF-8" in skipped["2"]
    for content in ("[" * 100_000, "{}", "\xff", '{"complete": 1}'):
        (made.parent / "store" / FILE).write_bytes(content.encode("latin-1"))
        with pytest.raises(StoreError, match=FILE):
            require_whole(made.parent / "store")
