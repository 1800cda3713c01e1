"""First-person video: EPIC-KITCHENS, Ego4D and EgoDex. What is narrated when, which image belongs to which pose."""

from __future__ import annotations

import json
import time

import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from video_files import frames_shown, write_video
from wamkit.config import ConfigError
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.importers import IMPORTERS, SourceError
from wamkit.data.importers.egodex import JOINTS
from wamkit.data.importers.run import Import, import_data
from wamkit.registry import load_package

load_package("wamkit.data.importers")
EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,verb,"
    "verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)


def importer(name, path, **options):
    cls = IMPORTERS.get(name)
    return cls(path, cls.Options(**options))


@pytest.fixture
def kitchen(tmp_path):
    """A video of two seconds whose image k is 4 k brighter than the first, and its narrations."""
    tmp_path = tmp_path / "epic"
    (tmp_path / "P01/videos").mkdir(parents=True)
    write_video(tmp_path / "P01/videos/P01_01.MP4", 50, fps=25)
    rows = (
        "P01_01_0,P01,P01_01,00:00:00.1,00:00:00.40,00:00:01.20,24,72,open door,open,3,door,3,['door'],[3]\n"
        "P01_01_1,P01,P01_01,00:00:01.1,00:00:01.20,00:00:09.00,72,540,take cup,take,0,cup,13,['cup'],[13]\n"
        "P02_01_0,P02,P02_01,00:00:01.1,00:00:01.20,00:00:09.00,72,540,not here,take,0,cup,13,['cup'],[13]\n"
        "P01_01_9,P01,P01_01,00:01:00.0,00:01:00.00,00:01:02.00,1,2,too late,take,0,cup,13,['cup'],[13]\n"
    )
    (tmp_path / "EPIC_100_train.csv").write_text(EPIC + rows)
    (tmp_path / "EPIC_100_video_info.csv").write_text("video_id,duration,fps,resolution\nP01_01,2,25,64x48\n")
    return tmp_path


def test_epic_takes_times_and_not_frame_numbers(kitchen):
    source = importer("epic", kitchen, fps=5.0, size=(32, 32))
    assert list(source.episodes()) == ["P01_01_0", "P01_01_1", "P01_01_9"]
    read = source.read("P01_01_0")
    assert read.text == "open door" and len(read) == 4 and frames_shown(read.images["head"]()) == [10, 15, 20, 25]
    assert frames_shown(source.read("P01_01_1").images["head"]()) == [30, 35, 40, 45], (
        "to the end of the video and no further"
    )
    with pytest.raises(SourceError, match="it has 2.0 seconds, the narration is from 60 to 62"):
        source.read("P01_01_9")
    store = import_data(
        Import(format="epic", source=kitchen, out=kitchen.parent / "o", on_error="skip"), source.options
    )
    assert [m.text for m in store.episodes] == ["open door", "take cup"] and not store.layout.action_names
    assert load_metadata(store.root).cameras["head"].role == "ego"
    once = (kitchen / "EPIC_100_train.csv").read_text()
    for row, message in (
        (once[len(EPIC) :].splitlines()[0], "line 6 has a duplicate narration: P01_01_0"),
        ("P01_01_7,P01,P01_01,00:00:00.1", "line 6 is cut off: P01_01_7"),
    ):
        (kitchen / "EPIC_100_train.csv").write_text(once + row)
        with pytest.raises(SourceError, match=message):
            importer("epic", kitchen).episodes()
    (kitchen / "EPIC_100_train.csv").write_text(EPIC)
    with pytest.raises(SourceError, match="none of its 2 .*files has a narration of one of its 1 videos"):
        importer("epic", kitchen).episodes()


def test_videos_that_differ_and_doubles(kitchen):
    write_video(kitchen / "P02_01.mp4", 20, fps=30)
    with pytest.raises(SourceError, match=r"P01_01.MP4 has 25 frames a second, .*P02_01.mp4 has 30"):
        importer("epic", kitchen, fps=None).layout()
    assert importer("epic", kitchen, fps=5.0).layout().fps == 5
    write_video(kitchen / "P01_01.mp4", 20, fps=25)
    with pytest.raises(SourceError, match="P01/videos/P01_01.MP4 and P01_01.mp4 are both video P01_01; remove one"):
        importer("epic", kitchen).episodes()


def test_ego4d_narrations_hold_until_the_next(tmp_path):
    write_video(tmp_path / "abc.mp4", 50, fps=25)
    said = [(0.4, "#C C opens the drawer"), (1.0, "#O A man X walks"), (1.2, "#C C #unsure"), (1.4, "#c C takes a cup")]
    rows = [{"timestamp_sec": t, "narration_text": text, "annotation_uid": "u"} for t, text in said]
    (tmp_path / "narration.json").write_text(
        json.dumps({"abc": {"narration_pass_1": {"narrations": rows}}, "other": {}})
    )
    source = importer("ego4d", tmp_path, fps=5.0, size=(32, 32), longest=0.4)
    read = [source.read(n) for n in source.episodes()]
    assert [r.text for r in read] == ["opens the drawer", "takes a cup"]
    assert [frames_shown(r.images["head"]()) for r in read] == [[10, 15], [35, 40]]
    longer = importer("ego4d", tmp_path, fps=5.0, of="all", longest=5.0)
    assert [longer.read(n).text for n in longer.episodes()] == ["opens the drawer", "A man X walks", "takes a cup"]
    assert frames_shown(longer.read("abc/1/0").images["head"]()) == [10, 15, 20]
    assert frames_shown(longer.read("abc/1/2").images["head"]()) == [35, 40, 45], "to the end of the video"
    twice = [
        {"timestamp_sec": t, "narration_text": f"#C C {w}"} for t, w in ((0.4, "looks"), (0.4, "walks"), (1.0, "sits"))
    ]
    (tmp_path / "narration.json").write_text(json.dumps({"abc": {"narration_pass_1": {"narrations": twice}}}))
    together = importer("ego4d", tmp_path, fps=5.0)
    assert [together.read(n).text for n in together.episodes()] == ["looks", "walks", "sits"]
    assert [frames_shown(together.read(f"abc/1/{i}").images["head"]()) for i in (0, 1)] == [[10, 15, 20]] * 2
    for when, message in (
        (float("nan"), "NaN is no number"),
        (-1.0, "'#C C waits' in video abc is -1.0"),
    ):
        row = {"timestamp_sec": when, "narration_text": "#C C waits"}
        (tmp_path / "narration.json").write_text(json.dumps({"abc": {"narration_pass_2": {"narrations": [row]}}}))
        with pytest.raises(SourceError, match=f"narration.json.*{message}"):
            importer("ego4d", tmp_path).episodes()
    (tmp_path / "narration.json").write_text("{")
    with pytest.raises(SourceError, match="narration.json"):
        importer("ego4d", tmp_path).episodes()


@pytest.fixture
def hands(tmp_path):
    """Two recordings of one task; the second has poses whose fingers stand still in the world while the head turns."""
    tmp_path = tmp_path / "egodex"
    folder = tmp_path / "part1/fold_shirt"
    folder.mkdir(parents=True)
    for i, N in enumerate((12, 8)):
        write_video(folder / f"{i}.mp4", N, size=(48, 64), mark=4 * i)
        with h5py.File(folder / f"{i}.hdf5", "w") as file:
            poses = np.tile(np.eye(4, dtype=np.float32), (N, 1, 1))
            camera = poses.copy()
            camera[:, :3, :3] = Rotation.from_euler("y", 3 * np.arange(N)[:, None], degrees=True).as_matrix()
            camera[:, 1, 3] = 1.5
            file["transforms/camera"] = camera
            for j, name in enumerate(JOINTS):
                at = poses.copy()
                at[:, :3, 3] = (0.1, 1.2, -0.4 - j / 100)
                file[f"transforms/{name}"] = at
            file["camera/intrinsic"] = np.array([[736.6, 0, 32.0], [0, 736.6, 24.0], [0, 0, 1]], np.float32)
            file.attrs["llm_description"], file.attrs["llm_description2"] = "Fold the shirt.", "Unfold the shirt."
            file.attrs["llm_type"], file.attrs["which_llm_description"] = "reversible", str(i + 1)
    return tmp_path


def test_egodex_is_video_unless_hands_are_asked_for(hands):
    source = importer("egodex", hands, size=(32, 32))
    store = import_data(Import(format="egodex", source=hands, out=hands.parent / "o"), source.options)
    assert [(m.source, m.length, m.text) for m in store.episodes] == [
        ("part1/fold_shirt/0", 12, "Fold the shirt."),
        ("part1/fold_shirt/1", 8, "Unfold the shirt."),
    ]
    assert store.layout.action_names == () and store.layout.fps == 30
    # 48 x 64 becomes 32 x 43, of which 32 columns are kept: the centre stays in the centre, to half a pixel.
    np.testing.assert_allclose(
        np.reshape(load_metadata(store.root).cameras["head"].intrinsics, (3, 3)),
        [[736.6 * 43 / 64, 0, 16.5], [0, 736.6 * 32 / 48, 16], [0, 0, 1]],
        rtol=1e-6,
    )


def test_egodex_hands_are_seen_from_the_camera(hands):
    """The action is where the hand is next; a hand that stands still moves as the head turns, at its distance."""
    source = importer("egodex", hands, size=(32, 32), hands=True)
    read = source.read("part1/fold_shirt/0")
    assert read.state.shape == read.action.shape == (11, 36) and len(list(read.images["head"]())) == 11
    np.testing.assert_array_equal(read.state[1:], read.action[:-1])
    np.testing.assert_allclose(read.state[0, :3], [0.1, -0.3, -0.4], atol=1e-6)
    away = np.linalg.norm(read.state[:, :3], axis=1)
    np.testing.assert_allclose(away, away[0], atol=1e-6)
    turned = Rotation.from_euler("y", -30, degrees=True).apply([0.1, -0.3, -0.4])
    np.testing.assert_allclose(read.state[10, :3], turned, atol=1e-6)
    assert frames_shown(read.images["head"]()) == list(range(11)) and source.metadata().action[0].frame == "camera"


def test_egodex_damage_is_named(hands):
    with pytest.raises(ConfigError, match="fps = 15: EgoDex has one pose a frame"):
        importer("egodex", hands, fps=15.0)
    poses = hands / "part1/fold_shirt/1.hdf5"
    with h5py.File(poses, "r+") as file:
        del file["transforms/camera"]
        file["transforms/camera"] = np.tile(np.eye(4), (5, 1, 1))
    with pytest.raises(SourceError, match=r"1.hdf5 \(episode part1/fold_shirt/1\): it has 5 poses, the video 8 frames"):
        importer("egodex", hands).read("part1/fold_shirt/1")
    with h5py.File(hands / "part1/fold_shirt/0.hdf5", "r+") as file:
        del file.attrs["llm_description"]
    with pytest.raises(SourceError, match="it has no description"):
        importer("egodex", hands).read("part1/fold_shirt/0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 200_000, "nested more than 64 deep"),
        ("[]", "no object with videos as keys"),
        ('{"abc": []}', "it has a list in place of an object with 'narration_pass_1'"),
        ('{"abc": {"narration_pass_1": {"narrations": {}}}}', "'narrations' is a dict instead of a list"),
        ('{"abc": {"narration_pass_1": {"narrations": [{"timestamp_sec": 1}]}}}', "it has no 'narration_text'"),
        (
            '{"abc": {"narration_pass_1": {"narrations": [{"timestamp_sec": "1", "narration_text": "x"}]}}}',
            "timestamp_sec of 'x' in video abc is '1' instead of a number",
        ),
        (
            '{"abc": {"narration_pass_1": {"narrations": [{"timestamp_sec": 1e300, "narration_text": "x"}]}}}',
            "timestamp_sec of 'x' in video abc is 1e.300",
        ),
    ],
)
def test_ego4d_narrations_are_checked(tmp_path, content, message):
    write_video(tmp_path / "abc.mp4", 5, fps=25)
    (tmp_path / "narration.json").write_text(content)
    with pytest.raises(SourceError, match=f"narration.json.*{message}"):
        importer("ego4d", tmp_path).episodes()


def test_many_narrations_take_no_quadratic_time(tmp_path):
    """100,000 at one instant took ten minutes."""
    write_video(tmp_path / "abc.mp4", 5, fps=25)
    rows = [{"timestamp_sec": 0.0, "narration_text": f"#C C waits {i}"} for i in range(100_000)]
    (tmp_path / "narration.json").write_text(json.dumps({"abc": {"narration_pass_1": {"narrations": rows}}}))
    began = time.process_time()
    assert len(importer("ego4d", tmp_path).episodes()) == 100_000
    assert time.process_time() - began < 10
