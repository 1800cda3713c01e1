"""RLDS, on files that tensorflow-datasets wrote: numbers as TensorFlow reads them; damage is found by its checksums."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from wamkit.config import save_json
from wamkit.data.importers import IMPORTERS, SourceError
from wamkit.data.importers import tfrecord as records
from wamkit.data.importers.run import Import, import_data
from wamkit.metadata import DatasetMetadata, Field

FILES = Path(__file__).parent / "data/rlds"
TINY = FILES / "tiny/1.0.0"


def importer(path=TINY, **options):
    cls = IMPORTERS.get("rlds")
    return cls(path, cls.Options(**options))


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(TINY, tmp_path / "tiny/1.0.0"))


def test_checksums_known_answers(monkeypatch):
    """RFC 3720, B.4, with the fast way and the slow one."""
    for _ in range(2):
        assert records.crc32c(bytes(32)) == 0x8A9136AA and records.crc32c(b"\xff" * 32) == 0x62A8AB43
        assert records.crc32c(bytes(range(32))) == 0x46DD794E
        monkeypatch.setitem(__import__("sys").modules, "google_crc32c", None)


def test_episodes_are_those_that_tensorflow_reads(tmp_path):
    source = importer(rate=5.0)
    store = import_data(Import(format="rlds", source=TINY, out=tmp_path / "o"), source.options)
    assert len(store) == 3 and store.layout.fps == 5 and store.layout.cameras == ("image", "wrist_image")
    with np.load(FILES / "truth.npz") as truth:
        for i in range(3):
            episode, read = store.episode(i), source.read(store.episodes[i].source)
            np.testing.assert_array_equal(episode.action, truth[f"action{i}"].astype(np.float32))
            np.testing.assert_array_equal(episode.proprio, truth[f"state{i}"])
            assert episode.texts() == truth[f"text{i}"].tolist()
            np.testing.assert_array_equal(np.stack(list(read.images["image"]())), truth[f"image{i}"])
            jpeg = np.stack(list(read.images["wrist_image"]())).astype(int)
            assert np.abs(jpeg - truth[f"wrist{i}"]).mean() < 1.5
            shown = episode.images[:, 0].astype(float).mean((1, 2, 3)) / 10
            np.testing.assert_allclose(shown, np.arange(len(episode)), atol=0.3)
            assert episode.success.tolist() == [False] * (len(episode) - 1) + [True]
    assert any(episode.spans for episode in map(store.episode, range(3)))


def test_which_numbers_and_what_they_mean(tmp_path):
    source = importer(state=("state",), action=("action", "discount"))
    assert source.layout().action_names == (*(f"action_{i}" for i in range(7)), "discount_0")
    with pytest.raises(
        SourceError, match="its steps have no vector 'observation/qpos'.*; they have action, observation/state"
    ):
        importer(state=("qpos",)).layout()
    metadata = DatasetMetadata("Tiny", "arm", "delta", action=(Field("hand", 0, 7, "position", "delta"),))
    save_json(tmp_path / "m.json", metadata)
    said = importer(metadata=tmp_path / "m.json").metadata()
    assert said.embodiment == "arm" and said.cameras["wrist_image"].role == "wrist"
    assert [f.kind for f in importer().metadata().action] == ["other"]


def test_damage_is_named(copy):
    first = min(copy.glob("*.tfrecord-00000*"))
    whole = first.read_bytes()
    for at, message in ((3, "record 0 is damaged or cut off"), (200, "its CRC is wrong")):
        first.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SourceError, match=message) as error:
            importer(copy).read(importer(copy).episodes()[0])
        assert str(first) in str(error.value)
    first.write_bytes(whole[:-100])
    with pytest.raises(SourceError, match="more than the file has; is it cut off"):
        importer(copy).episodes()
    first.write_bytes(
        (2**40).to_bytes(8, "little")
        + records.masked(records.crc32c((2**40).to_bytes(8, "little"))).to_bytes(4, "little")
    )
    with pytest.raises(SourceError, match="declares 1099511627776 bytes"):
        importer(copy).episodes()
    first.unlink()
    with pytest.raises(SourceError, match="file 0 of 2 of the split 'train' is missing"):
        importer(copy).episodes()
    with pytest.raises(SourceError, match="there are no files of the split 'test'"):
        importer(copy, split="test").episodes()
    (copy / "features.json").unlink()
    with pytest.raises(SourceError, match="there is no such file; name the folder of one version"):
        importer(copy).layout()


def test_messages_that_are_none_do_not_hang_or_read_beyond():
    """Cut anywhere, a message is refused or read in part; nothing else happens."""
    path = min(TINY.glob("*.tfrecord-00000*"))
    message = records.record(path, records.offsets(path)[0])
    for end in range(0, len(message), 997):
        try:
            records.example(message[:end])
        except (SourceError, KeyError, ValueError):
            continue
    with pytest.raises(SourceError, match="this is not a tf.train.Example"):
        records.example(b"\xff" * 20)


def field(number: int, content: bytes | int) -> bytes:
    """A protobuf field, shorter than 128 bytes or a number."""
    if isinstance(content, int):
        out = bytes([number << 3])
        while content > 127:
            out, content = out + bytes([content & 127 | 128]), content >> 7
        return out + bytes([content])
    return bytes([number << 3 | 2, len(content)]) + content


def test_a_number_in_place_of_a_message_is_not_that_many_bytes():
    """`bytes(2**40)` is a terabyte of zeros."""
    for entry in (
        field(1, 2**40) + field(2, b""),
        field(1, b"a") + field(2, 2**40),
        field(1, b"a") + field(2, field(1, 2**40)),
        field(1, b"a") + field(2, field(1, field(1, 2**40))),
        field(1, b"a") + field(2, field(2, field(1, 2**40))),
    ):
        with pytest.raises(SourceError, match="a number in place of a message"):
            records.example(field(1, field(1, entry)))
    with pytest.raises(SourceError, match="a feature has no name"):
        records.example(field(1, field(1, field(2, b""))))
    numbers = field(1, b"a") + field(2, field(3, field(1, bytes([1, 172, 2])) + field(1, 7)))
    assert records.example(field(1, field(1, numbers)))["a"].tolist() == [1, 300, 7]


def test_a_file_name_that_declares_a_billion_files(copy):
    first = min(copy.glob("*.tfrecord-00000*"))
    first.rename(copy / "tiny-train.tfrecord-00000-of-99999999999")
    next(copy.glob("*.tfrecord-00001*")).unlink()
    with pytest.raises(SourceError, match="file 1 of 99999999999 of the split 'train' is missing"):
        importer(copy).episodes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: "[" * 100_000, "nested more than 64 deep"),
        (lambda t: "[1]", "a list in place of an object with 'featuresDict'"),
        (lambda t: t.replace('"7"', '"1000000000"'), "the size of 'action' in features.json is 1000000000"),
        (lambda t: t.replace('"7"', '"-1"'), "the size of 'action' in features.json is -1"),
        (lambda t: t.replace('"7"', '"x"'), "features.json"),
        (lambda t: t.replace('"featuresDict"', '"other"'), "it has no 'featuresDict'"),
    ],
)
def test_features_are_checked(copy, change, message):
    path = copy / "features.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(SourceError, match=message):
        importer(copy).layout()
