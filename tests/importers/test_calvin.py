"""CALVIN: inclusive ends, texts of parts of a stretch, and a pickle that may only hold what is plain."""

from __future__ import annotations

import io
import os
import pickle  # house: writes what the importer must refuse
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from wamkit.data.importers import IMPORTERS, SourceError
from wamkit.data.importers.plain_pickle import plain_object
from wamkit.data.importers.run import Import, import_data
from wamkit.registry import load_package
from wamkit.types import Span

load_package("wamkit.data.importers")
PLAY = Path(__file__).parent / "data/calvin"


def importer(path=PLAY, **options):
    cls = IMPORTERS.get("calvin")
    return cls(path, cls.Options(**options))


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(PLAY, tmp_path / "calvin"))


def test_stretches_of_play(tmp_path):
    store = import_data(Import(format="calvin", source=PLAY, out=tmp_path / "o"))
    assert [m.source for m in store.episodes] == ["3-10", "20-24"] and store.layout.size("rgb_gripper") == (16, 16)
    for e, steps in ((0, np.arange(3, 11)), (1, np.arange(20, 25))):
        episode = store.episode(e)
        np.testing.assert_allclose(episode.proprio[:, 0], steps / 100, atol=1e-6)
        np.testing.assert_allclose(episode.action[:, 0], steps / 30, atol=1e-6)
        for camera in ("rgb_static", "rgb_gripper"):
            shown = store.decode(e, camera).astype(float).mean((1, 2, 3))
            np.testing.assert_allclose(shown, 8 * steps, atol=2)
        with np.load(PLAY / f"episode_{steps[2]:07d}.npz") as file:
            np.testing.assert_array_equal(episode.proprio[2], file["robot_obs"].astype(np.float32))
    push, drawer = ["push the block"] * 3, ["open the drawer"] * 3
    assert store.episode(0).texts() == ["", *push, "", *drawer] and store.episode(1).texts() == [""] * 5


def test_only_what_was_annotated_and_absolute_actions():
    source = importer(only_annotated=True, action="actions")
    assert list(source.episodes()) == ["4-6", "8-10"]
    read = source.read("8-10")
    assert read.text == "open the drawer" and read.spans == (Span(0, 3, "open the drawer"),)
    np.testing.assert_allclose(read.action[:, 0], np.array([9, 10, 11]) / 100, atol=1e-6)
    assert source.metadata().control_mode == "absolute end-effector"


def test_damage_is_named(copy):
    (copy / "episode_0000005.npz").unlink()
    with pytest.raises(SourceError, match=r"episode_0000005.npz \(episode 3-10\): it is missing"):
        importer(copy).read("3-10")
    path = copy / "episode_0000022.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SourceError, match=r"episode_0000022.npz \(episode 20-24\)"):
        importer(copy).read("20-24")
    np.save(copy / "ep_start_end_ids.npy", np.array([[9, 3]]))
    with pytest.raises(SourceError, match="ep_start_end_ids.npy: it is not a list of first and last steps"):
        importer(copy).episodes()


class Harm:
    def __reduce__(self):
        return os.system, ("touch /tmp/wamkit-was-here",)


def test_a_pickle_that_would_run_something_is_refused(copy):
    annotations = copy / "lang_annotations/auto_lang_ann.npy"
    np.save(annotations, {"language": {"ann": [Harm()]}, "info": {"indx": [(3, 4)]}}, allow_pickle=True)
    with pytest.raises(SourceError, match=r"auto_lang_ann.npy: it tries to run posix.system; refused"):
        importer(copy).read("3-10")
    assert not Path("/tmp/wamkit-was-here").exists()
    np.save(copy / "ep_start_end_ids.npy", np.array([Harm()], dtype=object), allow_pickle=True)
    with pytest.raises(SourceError, match="ep_start_end_ids.npy: .*holds objects instead of numbers; refused"):
        importer(copy).episodes()


class Call:
    """Something whose pickle calls `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def annotate(copy, pickled: bytes) -> None:
    """Writes an annotation file whose npy head is NumPy's own, and whose pickle is this."""
    file = io.BytesIO()
    np.save(file, np.array({}, object), allow_pickle=True)
    head = 10 + int.from_bytes(file.getvalue()[8:10], "little")
    (copy / "lang_annotations/auto_lang_ann.npy").write_bytes(file.getvalue()[:head] + pickled)


def annotations(steps, texts) -> dict:
    return {"info": {"indx": steps}, "language": {"ann": texts}}


def test_a_pickle_that_follows_a_pointer_does_not_end_the_process(copy):
    """NumPy's own ndarray, called with eight bytes of the file as a pointer: a segmentation fault when unpickled."""
    annotate(copy, pickle.dumps(annotations(Call(np.ndarray, (1,), "O", b"AAAAAAAA"), ["x"])))
    code = (
        "import sys; from pathlib import Path; from wamkit.data.importers.calvin import Calvin\n"
        "try: Calvin(Path(sys.argv[1]), Calvin.Options()).read('3-10')\n"
        "except Exception as error: print(error)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(copy)], capture_output=True, text=True)
    assert ended.returncode == 0 and "auto_lang_ann.npy: it tries to run numpy.ndarray; refused" in ended.stdout


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x04]\x94(" + b"K\x01" * 5 + b"e", "ends too early|exhausted before"),
        (b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".", "it has no list info.indx"),
        (b"\x80\x04}(]K\x01u.", "neither text nor number"),
        (b"\x80\x04e.", "damaged at byte 2"),
        (b"\x80\x04cnumpy\nndarray\n)R.", "it tries to run numpy.ndarray; refused"),
        (b"\x80\x04cnumpy\ndtype\n\x8c\x02V8\x85R.", "an array of neither numbers nor texts; refused"),
        (b"\x80\x04cbuiltins\neval\n.", "it tries to run builtins.eval; refused"),
        (b"\x80\x04cnumpy\nndarray\n)\x81.", "it has the instruction NEWOBJ"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged at byte"),
        (pickle.dumps(annotations([(3, 4)], [["push"]])), "language.ann of annotation 0 is a list instead of a text"),
        (pickle.dumps(annotations([(3, 4)], ["\ud800"])), "language.ann of annotation 0 is not UTF-8"),
        (
            pickle.dumps(annotations([(3, 10**12)], ["push"])),
            "info.indx of annotation 0 is not a first and a last step",
        ),
        (pickle.dumps(annotations([(4, 3)], ["push"])), "info.indx of annotation 0 is not a first and a last step"),
        (pickle.dumps(annotations([(3, 4)], ["push", "pull"])), "it has 1 places .* for 2 texts"),
    ],
)
def test_pickles_that_are_no_annotations_are_refused_in_one_line(copy, pickled, message):
    annotate(copy, pickled)
    with pytest.raises(SourceError, match=rf"auto_lang_ann.npy: .*({message})") as error:
        importer(copy).read("3-10")
    assert "\n" not in str(error.value) and len(str(error.value)) < 900


def test_arrays_that_do_not_hold_what_they_declare_are_refused(copy):
    """A shape of 10^12 numbers over eight bytes, rows of nothing, and a text of characters that there are not."""
    whole = pickle.dumps(annotations(np.array([[3, 4]]), np.array(["push"])), protocol=4)
    annotate(copy, whole)
    assert importer(copy).read("3-10").spans == (Span(0, 2, "push"),)
    long = pickle.dumps((10**12, 2))[pickle.dumps((10**12, 2)).index(b"\x8a") : -3]
    at = whole.index(b"K\x01K\x02\x86")  # the shape (1, 2)
    annotate(copy, whole[:at] + long + whole[at + 4 :])
    with pytest.raises(SourceError, match=r"content that does not fill its array \(1000000000000, 2\)"):
        importer(copy).read("3-10")
    annotate(copy, whole.replace("push".encode("utf-32-le"), b"\xff" * 16))
    with pytest.raises(SourceError, match="auto_lang_ann.npy: .*characters that there are not"):
        importer(copy).read("3-10")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_numpy_and_python_pickle_is_read_back(protocol):
    """Against Python's own unpickler, for every array that annotation files have."""
    content = {
        "info": {"indx": [(np.int64(3), 4), (5, 6)], "episodes": []},
        "emb": np.arange(6, dtype=">f4").reshape(1, 2, 3),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3)),
        "texts": np.array(["push", "öffnen"]),
        "objects": np.array(["a", None, 2.5, (1,)], dtype=object),
        "more": [None, True, b"\xff", -1, 2**40, 10**30, 0.5, (), (1, 2, 3, 4), "x" * 300],
    }

    def same(read, wrote):
        if isinstance(wrote, np.ndarray):
            assert list(read) == wrote.tolist()
        elif isinstance(wrote, dict):
            assert list(read) == list(wrote)
            for key in wrote:
                same(read[key], wrote[key])
        else:
            assert read == wrote

    arrays = (k for k, v in content.items() if isinstance(v, np.ndarray))
    for key in arrays if protocol == 5 else ():
        content[key] = []  # np.save never writes protocol 5
    same(plain_object(pickle.dumps(content, protocol=protocol)), content)


def test_steps_that_are_not_there_are_not_allocated(copy):
    """10^12 steps would be 60 TB."""
    for ids, message in (
        ([[3, 10**12]], "not a list of first and last steps"),
        ([[3, 10**8]], "episode_0000011.npz .*it is missing"),
        ([[-5, 10]], "not a list of first and last steps"),
        ([[3.0, 10.0]], "instead of whole numbers"),
    ):
        np.save(copy / "ep_start_end_ids.npy", np.array(ids))
        with pytest.raises(SourceError, match=message):
            importer(copy).read(importer(copy).episodes()[0])


def npy(shape, dtype="<f8", content=b"") -> bytes:
    """An npy file whose head declares this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("robot_obs", npy((350_000_000,)), "'robot_obs' declares float64 .350000000,., 2800000000 bytes, and has 0"),
        ("robot_obs", npy((-1,), content=bytes(120)), "'robot_obs' declares"),
        ("robot_obs", npy((3,), "|S5", bytes(15)), "'robot_obs' holds .S5 instead of numbers"),
        ("rgb_static", npy((1, 40_000, 3), "|u1", bytes(120_000)), "robot_obs"),
        ("rgb_static", npy((4, 4, 4), "|u1", bytes(64)), "'rgb_static' is uint8 .4, 4, 4. instead of uint8 .H, W, 3."),
        ("rgb_static", npy((0, 4, 3), "|u1"), "the height of 'rgb_static' is 0 instead of a whole number"),
        ("rgb_static", b"no array", "magic string"),
        ("rgb_static", npy((2,) * 3000, "|u1"), "'rgb_static' declares uint8"),
    ],
)
def test_members_are_no_larger_than_they_declare(copy, name, content, message):
    path = copy / "episode_0000004.npz"
    with zipfile.ZipFile(path) as old:
        members = {m: old.read(m) for m in old.namelist()}
    members[f"{name}.npy"] = content
    if name == "rgb_static" and "robot_obs" in message:
        del members["robot_obs.npy"]
    with zipfile.ZipFile(path, "w") as new:
        for member, data in members.items():
            new.writestr(member, data)
    with pytest.raises(SourceError, match=rf"episode_0000004.npz \(episode 3-10\): .*{message}") as error:
        importer(copy).read("3-10")
    assert "\n" not in str(error.value)


def test_a_member_that_unpacks_to_more_than_any_array_takes_is_not_unpacked(copy, monkeypatch):
    monkeypatch.setattr("wamkit.data.importers.npy.LIMIT", 10**7)
    with zipfile.ZipFile(copy / "episode_0000004.npz", "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("rgb_static.npy", npy((1000, 4000, 3), "|u1") + bytes(12_000_000))
    with pytest.raises(SourceError, match=r"'rgb_static' declares uint8 \(1000, 4000, 3\), 12000000 bytes"):
        importer(copy).read("3-10")


def test_pipes_and_links_that_lead_out(copy, tmp_path):
    for name in ("ep_start_end_ids.npy", "lang_annotations/auto_lang_ann.npy", "episode_0000004.npz"):
        kept = (copy / name).read_bytes()
        (copy / name).unlink()
        os.mkfifo(copy / name)
        with pytest.raises(SourceError, match=f"{name}.*: it is a pipe or a device instead of a file"):
            importer(copy).read("3-10")
        (copy / name).unlink()
        (tmp_path / "elsewhere").write_bytes(kept)
        (copy / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(SourceError, match="leads out of this folder"):
            importer(copy).read("3-10")
        (copy / name).unlink()
        (copy / name).write_bytes(kept)
