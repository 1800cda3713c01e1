"""Text files as other programs write them, what macOS leaves in folders, and terminals that are not UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from lerobot_folders import Recordings, square_frames, write_v3, write_v21, write_video

from wamkit import files
from wamkit.config import load_json
from wamkit.data.format.store import Store
from wamkit.data.importers import IMPORTERS, SourceError
from wamkit.data.importers.run import Import, import_data
from wamkit.data.loading.mixture_config import MixtureConfig
from wamkit.runs.provenance import Provenance

MARKS = ("utf-8-sig", "utf-16", "utf-16-be")
"""Encodings of Excel and of Windows' editors and shells. The second begins with a mark, the third is given one."""


def write(path: Path, text: str, encoding: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((("\ufeff" if encoding == "utf-16-be" else "") + text).encode(encoding))


def texts_of(source: Path, out: Path, format: str = "video", **options) -> list[str]:  # noqa: A002
    options = IMPORTERS.get(format).Options(**options)
    store = import_data(Import(format=format, source=source, out=out, on_error="fail"), options)
    return [m.text for m in store.episodes]


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "ouvre la boîte\n"),
        ("captions.csv", "file,text,start,stop\na.mp4,ouvre la boîte,,\n"),
        ("captions.jsonl", '{"file": "a.mp4", "text": "ouvre la boîte"}\n'),
    ],
)
def test_captions_with_a_byte_order_mark(tmp_path, name, text, encoding):
    write_video(tmp_path / "in/a.mp4", square_frames(5))
    write(tmp_path / "in" / name, text, encoding)
    assert texts_of(tmp_path / "in", tmp_path / "out") == ["ouvre la boîte"]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_captions_between_other_marks(tmp_path, mark):
    """Semicolons and tabs between columns; then decimals are commas, and commas in texts need no quotes."""
    write_video(tmp_path / "in/a.mp4", square_frames(20))
    rows = [("file", "text", "start", "stop"), ("a.mp4", "ouvre, puis ferme", "0,5", "1,5")]
    write(tmp_path / "in/captions.csv", "".join(mark.join(row) + "\r\n" for row in rows), "utf-8-sig")
    options = IMPORTERS.get("video").Options()
    store = import_data(Import(format="video", source=tmp_path / "in", out=tmp_path / "out"), options)
    assert store.episode(0).texts() == [""] * 5 + ["ouvre, puis ferme"] * 10 + [""] * 5


def test_narrations_of_epic_with_semicolons(tmp_path):
    write_video(tmp_path / "in/P01_01.mp4", square_frames(20))
    head = "video_id;start_timestamp;stop_timestamp;narration;narration_id;verb;noun"
    row = "P01_01;00:00:00,50;00:00:01,50;cut the onion, then stop;P01_01_0;cut;onion"
    write(tmp_path / "in/EPIC_100_train.csv", f"{head}\n{row}\n", "utf-8")
    assert texts_of(tmp_path / "in", tmp_path / "out", "epic") == ["cut the onion, then stop"]


@pytest.mark.parametrize("encoding", ["utf-32", "utf-16-le", "utf-16-be"])
def test_captions_in_wide_encodings_without_a_known_mark_are_named(tmp_path, encoding):
    """Each character of "open" is followed by zeros, which decode as characters too."""
    write_video(tmp_path / "in/a.m4v", square_frames(5))
    (tmp_path / "in/a.txt").write_bytes("open the box".encode(encoding).replace(b"\xfe\xff", b"", 1))
    with pytest.raises(SourceError, match=r"a\.txt is not UTF-8 text .*; save it as UTF-8"):
        texts_of(tmp_path / "in", tmp_path / "out")


def test_captions_as_spreadsheets_of_other_countries_write_them(tmp_path):
    write_video(tmp_path / "in/a.mp4", square_frames(10))
    (tmp_path / "in/captions.csv").write_text("file;text;start;stop\r\na.mp4;Öffne, bitte;;\r\na.mp4;Zu;0,2;0,5\r\n")
    store = import_data(
        Import(format="video", source=tmp_path / "in", out=tmp_path / "out"), IMPORTERS.get("video").Options()
    )
    assert store.episode(0).texts() == ["Öffne, bitte"] * 2 + ["Zu"] * 3 + ["Öffne, bitte"] * 5


def test_instructions_with_other_line_ends(tmp_path):
    """JSON writes a line separator, U+2028, and Windows' ellipsis, U+0085, as they are; a line ends at its end."""
    tasks = ("push\u2028the block", "lift it\u0085", "put it\x0bdown")
    root = write_v21(tmp_path / "in", Recordings(lengths=(3, 3, 3), tasks=tasks))
    path = root / "meta/tasks.jsonl"
    path.write_text("".join(json.dumps(json.loads(x), ensure_ascii=False) + "\r\n" for x in path.open()), "utf-8")
    assert texts_of(root, tmp_path / "out", "lerobot2") == list(tasks)


def test_captions_in_another_encoding_are_named(tmp_path):
    """Nothing tells which of the many encodings it is: the remedy is to save the file, not to fetch it again."""
    write_video(tmp_path / "in/a.mp4", square_frames(5))
    write(tmp_path / "in/captions.csv", "file,text\na.mp4,ouvre la boîte\n", "cp1252")
    with pytest.raises(SourceError, match=r"captions.csv is not UTF-8 text \(.* at byte 27\); save it as UTF-8$"):
        texts_of(tmp_path / "in", tmp_path / "out")


def test_json_files_with_a_byte_order_mark(tmp_path):
    """Descriptions of a data set, a mixture, a collection: all files that a user may have opened in an editor."""
    root = write_v3(tmp_path / "v3", Recordings(lengths=(5, 5)))
    old = write_v21(tmp_path / "v21", Recordings(lengths=(5, 5)))
    marked = [root / "meta/info.json", *(old / "meta").glob("*.json*"), root / "collect.json", tmp_path / "mix.json"]
    (root / "collect.json").write_text('{"env": "pusht", "tasks": ["push-t"], "seed": 7}')
    (tmp_path / "mix.json").write_text('{"sources": [{"data": "v3"}]}')
    for path in marked:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    store = Store.open(root)
    assert len(store) == 2 and Provenance.of(store).env.tasks == ("push-t",)
    assert texts_of(old, tmp_path / "out", "lerobot2") == ["push the block"] * 2
    assert [s.data for s in load_json(MixtureConfig, tmp_path / "mix.json").sources] == ["v3"]


def test_what_macos_leaves_in_folders_is_left_alone(tmp_path):
    """`._NAME` beside NAME on foreign disks, `.DS_Store`, and the hidden copies of notebooks and waste baskets."""
    source = tmp_path / "in"
    write_video(source / "deep/a.mp4", square_frames(5))
    for name in ("deep/._a.mp4", "._deep/b.mp4", "__MACOSX/deep/._a.mp4", ".DS_Store", ".Trash-1000/files/c.mp4"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"\0\5\x16\7" + bytes(400))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.DS_Store").write_bytes(bytes(10))
    assert texts_of(source, tmp_path / "out", text="push") == ["push"]
    assert Store.open(tmp_path / "out").episodes[0].length == 5


def test_every_importer_reads_its_folder_without_hidden_files():
    """A scan with pathlib alone would find them."""
    for path in (Path(files.__file__).parent / "data/importers").glob("*.py"):
        assert not any(word in path.read_text() for word in (".rglob(", ".glob(", ".iterdir(")), path.name


@pytest.mark.parametrize("format", ["libero", "aloha", "egodex"])
def test_hidden_hdf5_files(tmp_path, format):  # noqa: A002
    for name in ("episode_0.hdf5", "._episode_0.hdf5", ".ipynb_checkpoints/episode_1.hdf5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with h5py.File(tmp_path / name, "w") as file:
            file["data/demo_0/x"] = np.zeros(3)
    cls = IMPORTERS.get(format)
    names = list(cls(tmp_path, cls.Options()).episodes())
    assert len(names) == 1 and "._" not in names[0] and "ipynb" not in names[0]


def run(*args: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """`python -m wamkit`, as where its console script is not on the path."""
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-m", "wamkit", *args], capture_output=True, env=environment, timeout=300)


def test_terminals_that_are_not_utf8(tmp_path):
    """A character that the terminal lacks is shown by its code; the work is done and the exit code tells so."""
    write_video(tmp_path / "in/boîte.mp4", square_frames(5))
    write(tmp_path / "in/boîte.txt", "ouvre la boîte", "utf-8")
    out = tmp_path / "boîte"
    done = run("import", "video", str(tmp_path / "in"), "--out", str(out), PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and b"bo\\xeete" in done.stdout, done.stderr
    assert Store.open(out).episodes[0].text == "ouvre la boîte"
    wrong = run("validate", str(tmp_path / "nulle-part-où"), PYTHONIOENCODING="ascii")
    assert wrong.returncode == 1 and b"nulle-part-o\\xf9: there is no such folder" in wrong.stderr
    odd = run("validate", os.fsdecode(bytes(tmp_path) + b"/bo\xeete"))
    assert odd.returncode == 1 and b"bo\\udceete" in odd.stderr and b"Traceback" not in odd.stderr


def test_the_package_runs_as_a_module():
    done = run("--version")
    assert done.returncode == 0 and done.stdout.strip() and not done.stderr
    assert json.loads(b'"%s"' % done.stdout.strip())
