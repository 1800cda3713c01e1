"""Elements, pages and charts are well-formed markup, and what they are given cannot become markup."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from math import log

import pytest

from wamkit.types import Interval
from wamkit.viz.charts import curve_svg, interval_svg, panels_file, rates_file, scatter_svg
from wamkit.viz.html import element, header, page, section, table

NASTY = '<b>"&'
RATE = Interval(0.5, 0.25, 1.0)
SPACE = "{http://www.w3.org/2000/svg}"


def test_an_element_escapes_attributes_and_rounds_numbers():
    assert element("line", class_="grid", x1=1 / 3, y1=2.0) == '<line class="grid" x1="0.3" y1="2"/>'
    assert element("a", "text", text_anchor=NASTY) == '<a text-anchor="&lt;b&gt;&quot;&amp;">text</a>'


def test_a_page_loads_nothing_and_runs_only_the_script_it_was_given():
    plain, alive = page(NASTY, ""), page("t", "", "let x = 1;")
    assert "default-src 'none'" in plain and "script" not in plain and NASTY not in plain
    assert "script-src 'unsafe-inline'" in alive and "<script>let x = 1;</script>" in alive


def test_sections_without_parts_are_left_out():
    assert section("Title", "how", []) == ""
    root = ElementTree.fromstring(section(NASTY, NASTY, [table(["a", NASTY], ["<tr><td>1</td><td>2</td></tr>"])]))
    assert [th.text for th in root.iter("th")] == ["a", NASTY] and root.find("div/h2").text == NASTY
    assert ElementTree.fromstring(header(NASTY)).find("h1").text == NASTY


@pytest.mark.parametrize(
    "drawing",
    [
        curve_svg({NASTY: ([0, 1, 2], [1.0, 2.0, 3.0])}, over=NASTY),
        interval_svg(RATE, target=0.5),
        scatter_svg([(NASTY, RATE, RATE)], NASTY, NASTY),
        rates_file({NASTY: (RATE, [0.25, 0.75])}, NASTY),
        panels_file({NASTY: [([1, 2], [1.0, 0.1])]}, NASTY),
    ],
)
def test_charts_are_well_formed(drawing):
    assert ElementTree.fromstring(drawing).tag.removeprefix(SPACE) == "svg"


def test_rates_stand_in_proportion():
    root = ElementTree.fromstring(rates_file({"a": (Interval(0, 0, 0), []), "b": (Interval(1, 1, 1), [0.5])}, "rates"))
    centres = {c.get("class") + c.get("cy"): float(c.get("cx")) for c in root.iter(f"{SPACE}circle")}
    assert centres == {"dot20": 270, "dot44": 730, "seed44": 500}


def test_panels_share_a_logarithmic_scale_and_show_the_first_in_each():
    curves = {"a": [([1, 2], [1.0, 0.01])], "b": [([1, 2], [0.1, 0.1])]}
    first, second = ElementTree.fromstring(panels_file(curves, "panels")).iter(f"{SPACE}g")
    lines = {p.get("class"): p.get("points") for p in second.iter(f"{SPACE}polyline")}
    assert lines["other"] == next(p.get("points") for p in first.iter(f"{SPACE}polyline") if p.get("class") == "line")
    heights = [float(p.split(",")[1]) for p in (lines["other"] + " " + lines["line"]).split()]
    assert heights[0] == 22 and heights[1] == 98 and heights[2] == pytest.approx(22 + 76 * log(10) / log(100), abs=0.1)


def test_a_value_axis_from_zero_is_linear():
    values = [float(x) for x in range(1, 10)]
    assert ">5<" in curve_svg({"a": (range(9), values)}, bounds=(0.0, 10.0))
