"""HTML of observations, samples and episodes in notebooks: its structure, escaping, and size."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from wamkit.data.format.stills import decode_image
from wamkit.data.format.video import Video
from wamkit.types import Episode, Observation, Query, Sample, Span
from wamkit.viz.notebook import curves, video

EVIL = "<script>alert('x')</script> & \"more\" " + "y" * 5000
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def episode(steps: int = 5, size: int = 8, views: int = 2, **fields) -> Episode:
    given = {
        "task": "drawer-open-v3",
        "text": "open the drawer",
        "seed": 3,
        "fps": 80.0,
        "cameras": tuple(f"camera{v}" for v in range(views)),
        "images": noise(steps, views, 3, size, size),
        "proprio": np.zeros((steps, 4), np.float32),
        "action": np.linspace(-1, 1, 4 * steps, dtype=np.float32).reshape(steps, 4),
        "action_expert": np.zeros((steps, 4), np.float32),
        "reward": np.zeros(steps, np.float32),
        "success": np.arange(steps) >= 3,
    }
    return Episode(**(given | fields))


class Page(HTMLParser):
    """Tags, sources and words of a text of HTML, whose tags must be closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.sources, self.words, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open
        assert all(source.startswith("data:") for source in self.sources)
        assert not re.search("href|url|http|@import", re.sub('base64,[^"]*', "", text), re.I)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(tag)
        self.sources += [value for name, value in attributes if name == "src"]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page(thing) -> Page:
    return Page(thing._repr_html_())


def pixels(source: str) -> np.ndarray:
    kind, content = source.split(",")
    assert kind == "data:image/png;base64"
    data = base64.b64decode(content)
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))  # of PNG's header
    return decode_image(data, (height, width)).to_ndarray(format="rgb24")


def test_an_observation_shows_each_view_its_state_and_its_text():
    obs = Observation(noise(2, 3, 8, 12), np.array([0.5, -2], np.float32), "open the drawer", past=(None,))
    shown = page(obs)
    assert shown.tags.count("img") == 2 and {"script", "style", "link"}.isdisjoint(shown.tags)
    for view, source in enumerate(shown.sources):
        assert np.array_equal(pixels(source).transpose(2, 0, 1), obs.images[view])
    said = "|".join(shown.words)
    assert "Observation" in said and "open the drawer" in said and "0.5, -2" in said
    assert "0 of 1 earlier moments" in said


def test_views_of_several_sizes_and_views_that_were_not_seen():
    images = (noise(3, 8, 8), noise(3, 4, 6))
    shown = page(Observation(images, np.zeros(1, np.float32), "t", view_valid=np.array([True, False])))
    assert [pixels(s).shape for s in shown.sources] == [(8, 8, 3), (4, 6, 3)]
    assert "views not seen|1" in "|".join(shown.words)
    assert "no images" in page(Observation(None, np.zeros(1, np.float32), "t")).words
    odd = Observation(np.zeros((1, 3, 4, 4)), np.zeros(1, np.float32), "t")
    assert "no images, but float64 (1, 3, 4, 4)" in page(odd).words


def test_a_sample_shows_frames_and_actions():
    future, actions = noise(3, 2, 3, 8, 8), RNG.normal(size=(16, 4)).astype(np.float32)
    shown = page(Sample(Query.JOINT, actions, future))
    assert shown.tags.count("img") == 3 and shown.tags.count("svg") == 4
    first = pixels(shown.sources[0]).transpose(2, 0, 1)
    assert np.array_equal(first[..., :8], future[0, 0]) and np.array_equal(first[..., -8:], future[0, 1])
    assert f"{actions[0, 2]:.3g}" in shown.words and f"{actions[:, 2].max():.3g}" in shown.words
    assert page(Sample(Query.POLICY, actions, None)).tags.count("img") == 0
    points = page(Sample(Query.POLICY, actions, None, np.zeros((2, 64, 3), np.float32)))
    assert "64 scene points in 2 frames" in points.words


@pytest.mark.parametrize("answers", [1, 4, 9])
def test_of_a_batch_the_first_answers_are_shown(answers):
    sample = Sample(Query.JOINT, np.zeros((answers, 16, 4), np.float32), noise(answers, 2, 1, 3, 8, 8))
    shown = page(sample)
    assert shown.tags.count("img") == 2 * min(answers, 4) and str(answers) in shown.words
    assert ("and 5 more answers" in shown.words) == (answers == 9)
    assert page(sample.row(0)).tags.count("img") == 2


def test_an_episode_shows_its_video():
    shown = page(episode(noise=0.1, source="take <7>"))
    assert shown.tags.count("video") == 1 and shown.sources[0].startswith("data:video/mp4;base64,")
    assert base64.b64decode(shown.sources[0].split(",")[1])[4:8] == b"ftyp"
    said = "|".join(shown.words)
    assert "5 steps, 80 a second" in said and "from step 3 on" in said and "take <7>" in said
    assert "success|no" in "|".join(page(episode(success=np.zeros(5, bool))).words)
    assert "no images" in page(episode(images=None)).words
    assert page(episode(steps=3, action=np.zeros((3, 0), np.float32))).tags.count("svg") == 4


@pytest.mark.parametrize("field", ["task", "text", "source"])
def test_texts_are_escaped_and_shortened(field):
    html = episode(**{field: EVIL}, spans=(Span(0, 2, EVIL),))._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html and len(html) < 60_000
    cameras = episode(cameras=(EVIL, "b"))._repr_html_()
    assert "<script" not in cameras
    html = Observation(None, np.zeros(2, np.float32), EVIL)._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html and len(html) < 2000


def test_the_size_is_bounded():
    """Noise, which no codec makes smaller, of many large cameras and a long episode."""
    obs = Observation(noise(10, 3, 240, 320), np.zeros(500, np.float32), "t")
    assert len(obs._repr_html_()) < 1_200_000 and "and 2 more images" in page(obs).words
    assert "488 more" in "".join(page(obs).words)
    sample = Sample(Query.VIDEO, None, noise(5, 10, 5, 3, 48, 64))
    shown = page(sample)
    assert shown.tags.count("img") == 4 * 8 and shown.words.count("and 2 more images") == 4
    assert pixels(shown.sources[0]).shape == (48, 4 * 64 + 3 * 2, 3)
    assert len(episode(steps=200, size=96, views=6)._repr_html_()) < 3_000_000
    values = episode(images=None, action=np.zeros((5, 100), np.float32))
    assert "and 88 more dimensions" in page(values).words


def test_values_that_are_not_finite_have_no_line():
    action = np.zeros((5, 1), np.float32)
    action[2] = np.nan
    assert "not finite" in page(episode(action=action)).words


def test_videos_and_curves_of_ones_own():
    shown = page(video(noise(130, 3, 8, 8), 20.0))
    assert shown.tags == ["video"]
    with Video(base64.b64decode(shown.sources[0].split(",")[1]), 20 / 3, (8, 8)) as clip:
        assert clip.count == 44  # every third
    shown = page(curves({"<loss>": (range(5), [5.0, 4, 3, 2, 1]), "other": (range(5), [1.0] * 5)}))
    assert shown.tags.count("polyline") == 2 and "<loss>" in shown.words


def test_objects_are_what_they_were():
    a, b = (dataclasses.replace(Sample(Query.POLICY, None, None)) for _ in range(2))
    assert a == b and repr(a).startswith("Sample(query=")
