"""The page and the images in it, read back with an HTML parser and PyAV; no browser needed."""

import base64
import io
import math
import re
import resource
from dataclasses import replace
from html.parser import HTMLParser

import av
import numpy as np
import pytest

from wamkit.eval.report.page import write_report
from wamkit.eval.report.tables import json_row, text_table
from wamkit.eval.results import (
    Clip,
    ClosedLoop,
    Curves,
    Imagined,
    Report,
    Row,
    Still,
    Sweep,
    Table,
    TaskResult,
    versions,
)
from wamkit.types import Episode, EvaluationError, Interval, Target, WamkitError
from wamkit.viz.charts import curve_svg
from wamkit.viz.images import difference, enlarge, mp4, png, save_video, side_by_side, strip_png

VOID = {"meta", "br", "img", "link", "input"}
NASTY = '<script>alert("x")</script> & co'


class Page(HTMLParser):
    """Collects tags with their attributes and text, and fails on tags that do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def every(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def moving(frames: int = 8, size: int = 32) -> np.ndarray:
    """uint8 (T, 3, size, size): a red square crossing a blue ground."""
    out = np.zeros((frames, 3, size, size), np.uint8)
    out[:, 2] = 90
    for t in range(frames):
        out[t, :, 8:16, t : t + 8] = np.array([220, 40, 30], np.uint8)[:, None, None]
    return out


def decode(content: bytes) -> np.ndarray:
    """uint8 (T, H, W, 3)."""
    with av.open(io.BytesIO(content)) as container:
        return np.stack(
            [f.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray() for f in container.decode(video=0)]
        )


def payload(uri: str, kind: str) -> bytes:
    assert uri.startswith(f"data:{kind};base64,")
    return base64.b64decode(uri.split(",")[1], validate=True)


def full_report() -> Report:
    frames = moving()
    rows = (
        Row("success", "success", 0.95, Interval(0.95, 0.88, 0.98), Target(above=0.85), ".0%"),
        Row("skill", "skill", 0.5, Interval(0.5, -math.inf, math.inf), Target(above=0.65), note=NASTY),
        Row("speed", "speed", 21.34, unit="ms", fmt=".1f"),
        Row("still", "still", math.nan, Interval(math.nan, math.nan, math.nan)),
    )
    steps = [
        {"step": s, "loss": 2.0 ** -(s / 50), "note": "text", "ok": True, "bad": math.nan} for s in range(0, 500, 5)
    ]
    return Report(
        title=f"first run {NASTY}",
        headline=rows[:2],
        tables=(Table("results", "Results", "How to read it.", rows),),
        closed_loop=(
            ClosedLoop(
                "unified", (TaskResult("drawer-open-v3", 16, 20, 88.0, 20.1, 24.9), TaskResult(NASTY, 0, 20)), 0.85
            ),
        ),
        imagined=tuple(Imagined("episode 3", o, frames, frames[::-1]) for o in (8, 16)),
        stills=(Still("episode 3", frames[0], frames[[2, 4]], frames[[3, 5]], (8, 16)),),
        clips=(Clip("drawer", frames, True), Clip("door", frames, False, note="200 steps")),
        curves=(Curves("training", steps), Curves("chosen", steps, {"both": ("loss", "absent"), "none": ("absent",)})),
        commands=(f"wamkit train --note '{NASTY}'",),
        versions=versions(),
        config={"seed": 0, "note": NASTY},
    )


def test_page_is_whole_self_contained_and_escaped(tmp_path):
    path = write_report(full_report(), tmp_path / "new" / "report.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href", "poster", "srcset"):
            assert attrs.get(name, "data:").startswith("data:")
    assert len(page.every("script")) == 1 and "@import" not in text and "url(" not in text
    assert "default-src 'none'" in next(m["content"] for m in page.every("meta") if "http-equiv" in m)
    assert "width=device-width" in next(m["content"] for m in page.every("meta") if m.get("name") == "viewport")
    assert page.text.count(NASTY) >= 5 and '"note": "<script>' in page.text
    assert not list(path.parent.glob("*.partial"))


def test_page_says_what_was_measured(tmp_path):
    page = Page(write_report(full_report(), tmp_path / "r.html").read_text(encoding="utf-8"))
    for words in (
        "1 of 2 targets met, 1 not shown",
        "above 85 %",
        "above 0.65",
        "not shown",
        "95%",
        "88% to 98%",
        "-∞ to ∞",
        "21.3 ms",
        "undefined",
        "16/20",
        "58% to 92%",
        "16/40",
        "20.1 / 24.9 ms",
    ):
        assert words in page.text, words
    assert "nan" not in page.text.lower()
    assert (
        len(page.every("section")) == sum("how" in a.get("class", "") for a in page.every("p")) == 7
    )  # each explains itself
    assert page.text.count("success") >= 2 and page.text.count("failed") == 1
    assert (
        sum(a.get("class") == "curve" for a in page.every("svg")) == 2
    )  # the numeric key of one, the chosen panel of the other


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.86, 0.99, "met"),
        (0.83, 1.0, "not shown"),  # 20 of 20 episodes: the value alone would have met it
        (0.85, 1.0, "not shown"),
        (0.2, 0.9, "not shown"),
        (0.2, 0.85, "missed"),
        (math.nan, math.nan, "not shown"),
    ],
)
def test_a_target_is_met_only_where_the_interval_says_so(low, high, verdict):
    value = (low + high) / 2
    row = Row("success", "success", value, Interval(value, low, high), Target(above=0.85), ".0%")
    below = Row("error", "error", -value, Interval(-value, -high, -low), Target(below=-0.85))
    assert row.verdict == below.verdict == verdict
    assert replace(row, interval=None).verdict == "not shown" and replace(row, target=None).verdict == ""
    told = json_row(Table("t", "T", "", (row,)), row)
    assert (told["target"], told["verdict"]) == ("above 85 %", verdict)
    assert told["passed"] is {"met": True, "missed": False}.get(verdict)
    said = text_table([Table("t", "T", "", (row,))])
    assert "above 85 %" in said and said.rstrip().endswith("MISSED" if verdict == "missed" else verdict)


def test_page_images_decode(tmp_path):
    page = Page(write_report(full_report(), tmp_path / "r.html").read_text(encoding="utf-8"))
    videos, frames = page.every("video"), moving()
    assert len(videos) == 4
    for video in videos:
        assert {"muted", "loop", "playsinline", "controls"} <= set(video)
        shown = decode(payload(video["src"], "video/mp4"))
        assert shown.shape[1:3] == (int(video["height"]), int(video["width"])) and len(shown) == 8
        assert payload(video["poster"], "image/png").startswith(b"\x89PNG")
    left = decode(payload(videos[0]["src"], "video/mp4"))[:, :, : 32 * 4]
    assert np.abs(left.astype(int) - enlarge(frames, 4).transpose(0, 2, 3, 1)).mean() < 4
    stills = [decode(payload(i["src"], "image/png"))[0] for i in page.every("img")]
    assert [s.shape for s in stills] == [(64, 64, 3)] + [(64, 2 * (3 * 32 + 4), 3)] * 2


def test_empty_report_has_no_empty_sections(tmp_path):
    page = Page(write_report(Report("nothing yet"), tmp_path / "r.html").read_text())
    assert "nothing yet" in page.text and not page.every("section") and not page.every("table")


def test_twelve_clips_stay_small(tmp_path):
    real = moving(60, 72)[..., :64, :64]
    noise = np.random.default_rng(0).normal(0, 4, real.shape)  # what a diffusion model leaves when it stops early
    clip = Imagined("noisy", 8, real, (real + noise).clip(0, 255).astype(np.uint8))
    size = write_report(Report("size", imagined=(clip,)), tmp_path / "r.html").stat().st_size
    assert size < 15e6 / 12


def test_png_is_lossless():
    image = np.random.default_rng(0).integers(0, 256, (3, 7, 5)).astype(np.uint8)
    assert np.array_equal(decode(png(image))[0], image.transpose(1, 2, 0))
    strip = decode(strip_png(moving(4), scale=2, gap=1))[0]
    assert strip.shape == (64, 2 * (4 * 32 + 3), 3) and (strip[:, 64:66] == 255).all()
    assert np.array_equal(strip[::2, 2 * 33 : 2 * 65 : 2], moving(4)[1].transpose(1, 2, 0))


def test_video_has_its_frames_rate_and_front_index(tmp_path):
    frames = moving(9, 33)  # odd sizes are padded
    path = save_video(tmp_path / "clip.mp4", frames, fps=12.5, scale=3)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat") and [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, float(stream.average_rate)) == (
            "h264",
            "yuv420p",
            12.5,
        )
    shown = decode(content)
    assert shown.shape == (9, 100, 100, 3)
    assert np.abs(shown[:, :99, :99].astype(int) - enlarge(frames, 3).transpose(0, 2, 3, 1)).mean() < 4
    assert mp4(frames, 12.5, 3) == content


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    page, clip = write_report(Report("old"), tmp_path / "report.html"), tmp_path / "clip.mp4"
    before, (soft, hard) = page.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(WamkitError, match="could not write .*report.html: .*free some space"):
            write_report(Report("new"), page)
        with pytest.raises(WamkitError, match="could not write .*clip.mp4: "):
            save_video(clip, moving(), 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [page] and page.read_bytes() == before
    with pytest.raises(WamkitError, match="could not write .*report.html: .*in the way"):
        write_report(Report("new"), page / "report.html")


def test_images_refuse_what_they_cannot_show(tmp_path):
    frames = moving()
    for call in (
        lambda: save_video(tmp_path / "x.mp4", frames[:0], 10),
        lambda: save_video(tmp_path / "x.mp4", frames, 0),
        lambda: save_video(tmp_path / "x.mp4", frames.astype(np.float32), 10),
        lambda: strip_png(frames.transpose(0, 2, 3, 1)),
        lambda: side_by_side([frames, frames[:, :, 1:]]),
    ):
        with pytest.raises(EvaluationError):
            call()
    assert not list(tmp_path.iterdir())


def test_difference_is_symmetric_and_does_not_wrap():
    low, high = np.full((3, 2, 2), 10, np.uint8), np.full((3, 2, 2), 250, np.uint8)
    assert (
        (difference(low, high) == 255).all() and (difference(high, low) == 255).all() and not difference(low, low).any()
    )
    assert (difference(low, low + 7) == 14).all()


@pytest.mark.parametrize(
    "values",
    [[1.0], [0.0, 0.0], [5.0, 5.0, 5.0], [1e-9, 1e9], [-3.0, 2.0], list(np.geomspace(1, 1e-5, 1000)), [1.0] * 50],
)
def test_curves_draw_any_finite_series(values):
    for log in (None, False, True) if min(values) > 0 else (None, False):
        svg = curve_svg({"loss <b>": (list(range(len(values))), values)}, log)
        numbers = [float(v) for v in re.findall(r"[ \",](-?[\d.]+),", svg.split("polyline", 1)[1])]
        assert numbers and all(math.isfinite(v) for v in numbers)
        assert "nan" not in svg and "inf" not in svg and "<b>" not in svg


def test_a_sweep_shows_rates_on_the_whole_scale_within_their_band_and_an_image_for_each_severity(tmp_path):
    success = (Interval(1.0, 0.75, 1.0), Interval(0.5, 0.25, 0.75))
    images = np.stack([np.full((3, 4, 4), v, np.uint8) for v in (10, 200)])
    sweep = Sweep(NASTY, "dark <b>", (0.0, 1.0), success, (images, images))
    text = write_report(Report("Varied", sweeps=(sweep,)), tmp_path / "page.html").read_text()
    page = Page(text)
    alts = [a["alt"] for tag, a in page.tags if tag == "img"]
    assert alts == [f"{NASTY} {s}" for s in "0101"] and "dark <b>" in page.text and "<b>" not in text
    (line,) = [a["points"] for tag, a in page.tags if tag == "polyline"]
    (band,) = [a["points"] for tag, a in page.tags if tag == "polygon"]
    line, band = ([float(p.split(",")[1]) for p in x.split()] for x in (line, band))
    per_one = 2 * (line[1] - line[0])  # pixels of a rate of 1
    expected = [line[0] + per_one * (1 - rate) for rate in (0.75, 0.25, 0.75, 1.0)]
    assert per_one > 150 and band == pytest.approx(expected, abs=0.2)


def test_task_result_from_episodes():
    def episode(solved_at: int | None, latency: tuple[float, ...]) -> Episode:
        success = np.zeros(50, bool)
        if solved_at is not None:
            success[solved_at - 1 :] = True
        zeros = np.zeros((50, 4), np.float32)
        return Episode(
            "drawer-open-v3",
            "open it",
            0,
            80.0,
            ("top",),
            None,
            zeros,
            zeros,
            zeros,
            zeros[:, 0],
            success,
            latency_s=latency,
        )

    result = TaskResult.of("drawer-open-v3", [episode(10, (0.010, 0.020)), episode(30, (0.030,)), episode(None, ())])
    assert (result.successes, result.episodes, result.median_steps, result.latency_p50_ms) == (
        2,
        3,
        20.0,
        pytest.approx(20.0),
    )
    assert TaskResult.of("x", [episode(None, ())]) == TaskResult("x", 0, 1)
