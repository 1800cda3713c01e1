"""LeRobotDataset v2.1 and v3.0 are judged alike, and the advice about a fault fits whoever made the data."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_folders import Recordings, write_v3, write_v21

from wamkit.data.format.store import Store, StoreError
from wamkit.data.importers import SourceError
from wamkit.data.importers.run import Import, import_data
from wamkit.data.validate import validate
from wamkit.registry import load_package

load_package("wamkit.data.importers")
DATA = "data/chunk-000/file-000.parquet"


def imported(source: Path, out: Path) -> Store:
    return import_data(Import(format="lerobot2", source=source, out=out))


def both(tmp_path: Path, data: Recordings) -> list[Store]:
    """The data as a v3.0 folder, and as a v2.1 folder after its import."""
    return [
        Store.open(write_v3(tmp_path / "v3", data)),
        imported(write_v21(tmp_path / "v21", data), tmp_path / "out"),
    ]


@pytest.mark.parametrize("tasks", [("", "push", "push"), ("", "", ""), (" ", "push", "")])
def test_episodes_without_an_instruction_are_read(tmp_path, tasks):
    for store in both(tmp_path, Recordings(tasks=tasks)):
        assert [m.text for m in store.episodes] == list(tasks)
        assert [store.episode(e).texts()[0] for e in range(3)] == list(tasks)
        share = np.mean([not t.strip() for t in tasks])
        assert f"note: {share:.0%} of its steps have no text" in map(str, validate(store.root, progress=False))


def message(root: Path) -> str:
    with pytest.raises(StoreError) as error:
        Store.open(root)
    return str(error.value)


def test_the_advice_for_data_of_others_does_not_ask_to_record_it_again(tmp_path):
    root = write_v3(tmp_path / "v3")
    (root / DATA).write_bytes(b"no parquet")
    assert "record" not in message(root) and "LeRobotDataset v3.0): fetch it again" in message(root)
    (root / DATA).unlink()
    assert "file-000.parquet (episode 0) is missing" in message(root) and "hf download NAME" in message(root)


def test_the_advice_for_a_download_of_the_hub_names_the_command(tmp_path):
    root = tmp_path / "hub/datasets--lerobot--push_t/snapshots/abc"
    shutil.copytree(write_v3(tmp_path / "v3"), root)
    (root / "meta/tasks.parquet").write_bytes(b"")
    assert "hf download lerobot/push_t --repo-type dataset --force-download" in message(root)
    video = root / "videos/observation.images.top/chunk-000/file-000.mp4"
    shutil.copy(tmp_path / "v3/meta/tasks.parquet", root / "meta/tasks.parquet")
    video.write_bytes(video.read_bytes()[:2000])
    with pytest.raises(StoreError, match=r"episode 1, camera top\): .*hf download lerobot/push_t"):
        Store.open(root).decode(1, "top")


def test_the_advice_for_imported_data_names_the_import(tmp_path):
    source = write_v21(tmp_path / "v21")
    root = imported(source, tmp_path / "out").root
    (root / DATA).unlink()
    assert f"remove {root} and run `wamkit import lerobot2 {source} --out {root}` again" in message(root)


def test_the_advice_for_a_file_that_is_imported(tmp_path):
    source = write_v21(tmp_path / "v21")
    (source / "data/chunk-000/episode_000001.parquet").write_bytes(b"no parquet")
    with pytest.raises(SourceError, match="fetch the file again, or leave the episode out by --on-error skip") as error:
        imported(source, tmp_path / "out")
    assert "record" not in str(error.value)


def test_damaged_facts_about_the_import_do_not_hide_the_fault(tmp_path):
    root = write_v3(tmp_path / "v3")
    (root / DATA).unlink()
    (root / "import.json").write_text("{")
    assert "file-000.parquet (episode 0) is missing" in message(root)
    (root / "import.json").write_text(json.dumps({"source": ["x"] * 400, "format": None}))
    assert "file-000.parquet (episode 0) is missing" in message(root) and len(message(root)) < 1500


def jumping(episode: int, steps: int) -> np.ndarray:
    """A hardware clock: jitter of 12 ms, and a gap of 0.7 s after step 7."""
    times = np.arange(steps) / 10 + np.random.default_rng(episode).normal(0, 0.012, steps)
    times[8:] += 0.7
    return times


CLOCKS = {
    "jitter": (lambda e, n: np.arange(n) / 10 + np.random.default_rng(e).normal(0, 0.012, n), None),
    "jump": (jumping, 8),
    "late": (lambda e, n: np.arange(n) / 10 + 3.2, 0),
    "unknown": (lambda e, n: np.zeros(n), 1),
    "backwards": (lambda e, n: np.where(np.arange(n) == 5, 0, np.arange(n) / 10), 5),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_a_clock_that_jitters_or_jumps_gets_one_verdict(tmp_path, name):
    """Rows and frames belong together by number; `validate` says where the clock is off."""
    clock, step = CLOCKS[name]
    data = Recordings(clock=clock, lengths=(12, 10))
    for store in both(tmp_path, data):
        for e in range(2):
            assert np.array_equal(store.episode(e).action, data.rows(e)["action"])
            assert (
                np.abs(store.decode(e, "top")[:, :, 12].astype(int) - data.images(e)[:, 12].transpose(0, 2, 1)).mean()
                < 9
            )
        found = [str(f) for f in validate(store.root, progress=False) if "timestamp" in str(f)]
        assert len(found) == (0 if step is None else 2)
        assert all(f"timestamp of step {step} is" in f and "10 steps a second do not give" in f for f in found)


@pytest.mark.parametrize("rate", [5, 30])
def test_a_clock_of_another_rate_gets_one_verdict(tmp_path, rate):
    data = Recordings(clock=lambda e, n: np.arange(n) / (rate if e == 1 else 10))
    reason = (
        rf"\(episode 0*1\): its rows are not 10 a second, from step \d on, but {rate} by their timestamps; correct fps"
    )
    with pytest.raises(StoreError, match=reason):
        Store.open(write_v3(tmp_path / "v3", data))
    with pytest.raises(SourceError, match=reason):
        imported(write_v21(tmp_path / "v21", data), tmp_path / "out")


def test_an_import_that_goes_on_keeps_its_notes(tmp_path):
    source = write_v21(tmp_path / "v21", Recordings(clock=jumping))
    table = source / "data/chunk-000/episode_000002.parquet"
    table.rename(tmp_path / "away")
    with pytest.raises(SourceError, match="it is missing"):
        imported(source, tmp_path / "out")
    (tmp_path / "away").rename(table)
    root = imported(source, tmp_path / "out").root
    assert sum("timestamp of step 8" in str(f) for f in validate(root, progress=False)) == 3
    facts = json.loads((root / "import.json").read_text())
    assert facts["complete"] and list(facts["notes"]) == ["000000", "000001", "000002"]


STORED = {
    "float64": pa.float64(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "bool": pa.bool_(),
}


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("fixed", [False, True])
def test_types_of_columns_get_one_verdict(tmp_path, dtype, fixed):
    """Numbers of any width, in lists of fixed length or not, declared as they are."""
    numbers = lambda e, n: np.random.default_rng(e).integers(0, 2 if dtype == "bool" else 3000, (n, 4))  # noqa: E731
    data = Recordings(lengths=(4, 6), action_dtype=dtype, columns=lambda e, n: {"action": numbers(e, n).astype(dtype)})
    new, old = write_v3(tmp_path / "v3", data), write_v21(tmp_path / "v21", data)
    for path in [*new.glob("data/*/*"), *old.glob("data/*/*")]:
        retype(path, pa.list_(STORED[dtype], 4) if fixed else pa.large_list(STORED[dtype]))
    for store in (Store.open(new), imported(old, tmp_path / "out")):
        action = store.numeric()["action"]
        assert action.dtype == np.float32
        assert np.array_equal(action, np.concatenate([numbers(e, n) for e, n in enumerate(data.lengths)]))


def retype(path: Path, action: pa.DataType) -> None:
    """Stores the indices as int32, times as float64, and the actions as given."""
    table = pq.read_table(path)
    kinds = {k: pa.int32() for k in ("frame_index", "episode_index", "index", "task_index")}
    kinds |= {"timestamp": pa.float64(), "action": action}
    for name, kind in kinds.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(table[name].to_pylist(), kind))
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("dtype", "values", "reason"),
    [
        (
            "int64",
            lambda n: np.full((n, 4), 1 << 24) + np.arange(4),
            "it holds whole numbers that float32 does not keep apart",
        ),
        ("int64", lambda n: np.full((n, 4), 0.5), "it holds numbers that are no int64"),
        ("float32", lambda n: np.full((n, 3), 0.5), "cannot reshape"),
    ],
)
def test_what_a_type_would_lose_gets_one_verdict(tmp_path, dtype, values, reason):
    data = Recordings(action_dtype="float64", columns=lambda e, n: {"action": values(n)})
    new, old = write_v3(tmp_path / "v3", data), write_v21(tmp_path / "v21", data)
    for root in (new, old):
        info = json.loads((root / "meta/info.json").read_text())
        info["features"]["action"]["dtype"] = dtype
        (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(StoreError, match=f"column 'action': {reason}"):
        Store.open(new)
    with pytest.raises(SourceError, match=f"column 'action': {reason}"):
        imported(old, tmp_path / "out")


def test_further_columns_are_read_alike(tmp_path):
    """Of any type and shape; a matrix becomes a vector."""
    more = {"observation.ticks": ("int16", (5,)), "level": ("uint8", (1,)), "matrix": ("float32", (2, 3))}
    draw = lambda e, n, kind, size: np.random.default_rng(e).integers(0, 99, (n, *size)).astype(kind)  # noqa: E731
    flat = {k: (kind, (int(np.prod(size)),)) for k, (kind, size) in more.items()}
    data = Recordings(columns=lambda e, n: {k: draw(e, n, *f) for k, f in flat.items()})
    new, old = write_v3(tmp_path / "v3", data), write_v21(tmp_path / "v21", data)
    for root in (new, old):
        info = json.loads((root / "meta/info.json").read_text())
        info["features"] |= {k: {"dtype": kind, "shape": size, "names": None} for k, (kind, size) in more.items()}
        (root / "meta/info.json").write_text(json.dumps(info))
    for store in (Store.open(new), imported(old, tmp_path / "out")):
        for key, (kind, size) in flat.items():
            found = store.numeric()[key].reshape(60, *size)
            assert found.dtype == kind
            assert np.array_equal(found, np.concatenate([draw(e, 20, kind, size) for e in range(3)]))
        assert {(k, d, n) for k, d, n in store.layout.extras} == {(k, d, s[0]) for k, (d, s) in flat.items()}


@pytest.mark.parametrize(("unit", "count"), [("milliseconds", 1_000), ("nanoseconds", 1_000_000_000)])
def test_a_clock_in_another_unit_is_named(tmp_path, unit, count):
    data = Recordings(clock=lambda e, n: np.arange(n) / 10 * count)
    reason = rf"its timestamps count {unit}, and must be seconds; divide them by {count:,}"
    with pytest.raises(StoreError, match=reason):
        Store.open(write_v3(tmp_path / "v3", data))
    with pytest.raises(SourceError, match=reason):
        imported(write_v21(tmp_path / "v21", data), tmp_path / "out")


def test_facts_as_pandas_writes_them(tmp_path):
    """A camera that episodes lack makes whole numbers floats, and empty cells NaN."""
    data = Recordings(second_camera="observation.images.wrist")
    root = write_v3(tmp_path / "v3", data)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    for key in [k for k in rows[0] if k.startswith("videos/observation.images.wrist/")]:
        for e, row in enumerate(rows):
            row[key] = float("nan") if e == 1 else float(row[key])
    pq.write_table(pa.Table.from_pylist(rows), path)
    store = Store.open(root)
    assert [m.absent for m in store.episodes] == [(), ("wrist",), ()]
    assert store.decode(2, "wrist").std() > 10 and not store.decode(1, "wrist").any()


def test_a_camera_with_a_path_for_a_name(tmp_path):
    """DROID's names. lerobot makes no new data with a "/", and opens what has it."""
    data = Recordings(lengths=(5, 4), camera="observation/exterior_image_1_left")
    for store in both(tmp_path, data):
        assert store.cameras == ("observation.exterior_image_1_left",)
        difference = store.decode(1, store.cameras[0]).transpose(0, 2, 3, 1).astype(int) - data.images(1)
        assert np.abs(difference).mean() < 9
        assert not [f for f in validate(store.root, progress=False) if f.level == "error"]


def test_what_another_copy_would_have_too_is_not_to_be_fetched_again(tmp_path):
    root = write_v3(tmp_path / "v3", Recordings(columns=lambda e, n: {"action": np.full((n, 4), np.nan, np.float32)}))
    assert message(root).endswith(
        "(episode 0, step 0): action is NaN or infinite; correct the values, or leave the episode out"
    )


def test_an_empty_cell_is_found(tmp_path):
    data = Recordings(lengths=(5, 6))
    new, old = write_v3(tmp_path / "v3", data), write_v21(tmp_path / "v21", data)
    reason = "column 'observation.state': its cell in row {} is empty, as pandas stores NaN"
    for path, row in ((new / DATA, 7), (old / "data/chunk-000/episode_000001.parquet", 2)):
        table = pq.read_table(path)
        values = table["observation.state"].to_pylist()
        values[row][1] = None
        at = table.column_names.index("observation.state")
        pq.write_table(table.set_column(at, "observation.state", pa.array(values, pa.list_(pa.float32()))), path)
    with pytest.raises(StoreError, match=reason.format(7) + ".*; correct the values, or leave the episode out$"):
        Store.open(new)
    with pytest.raises(SourceError, match=reason.format(2)):
        imported(old, tmp_path / "out")


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (b"RIFF\x24\0\0\0WEBPVP8 ", "it is neither PNG nor JPEG; write it as one of these"),
        ("gray16be", "it has 16 bits a channel; if it is a depth map, meta/info.json must mark it"),
        ("rgba", ""),
    ],
)
def test_kinds_of_images_get_one_verdict(tmp_path, data, advice):
    """What is intact needs no other copy: the advice says what to write instead. Transparency is left out."""
    shape = (32, 32, 4 if data == "rgba" else 3)
    frame = np.arange(32 * 32 * 4, dtype=np.uint16).reshape(32, 32, 4)
    frame = frame[..., 0] * 16 if data == "gray16be" else (frame % 251).astype(np.uint8)
    cell = data if isinstance(data, bytes) else png(frame, data)
    recordings = Recordings(lengths=(3, 2), height=32, width=32)
    for write in (write_v3, write_v21):
        root = write(tmp_path / write.__name__, recordings)
        info = json.loads((root / "meta/info.json").read_text())
        info["features"]["observation.images.top"] |= {"dtype": "image", "shape": shape}
        (root / "meta/info.json").write_text(json.dumps(info))
        for path in root.glob("data/*/*"):
            table = pq.read_table(path)
            cells = pa.array([{"bytes": cell, "path": "a.png"}] * table.num_rows)
            pq.write_table(table.append_column("observation.images.top", cells), path)
        read = lambda root=root: (  # noqa: E731
            Store.open(root) if root.name == "write_v3" else imported(root, tmp_path / "out")
        ).decode(1, "top")
        if advice:
            with pytest.raises((StoreError, SourceError)) as error:
                read()
            assert advice in str(error.value) and "fetch" not in str(error.value)
        else:
            difference = np.abs(read()[0].transpose(1, 2, 0).astype(int) - frame[..., :3])
            assert difference.max() == 0 if root.name == "write_v3" else difference.mean() < 20


def png(image: np.ndarray, pixels: str) -> bytes:
    """A PNG of the pixel format `pixels`, by FFmpeg."""
    out = io.BytesIO()
    with av.open(out, "w", format="image2pipe") as container:
        stream = container.add_stream("png")
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], pixels
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, pixels)))
        container.mux(stream.encode())
    return out.getvalue()
