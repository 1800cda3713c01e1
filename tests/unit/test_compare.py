"""A comparison, end to end on a small world: every job once, one file each, and a page that says what they say."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import re
import shutil
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wamkit import old_names
from wamkit.cli.compare import Compare
from wamkit.cli.parse import parse
from wamkit.config import ConfigError, from_dict, unsealed
from wamkit.data.loading.mixture_config import MixtureConfig, SourceConfig
from wamkit.envs.metaworld_tasks import DIFFICULTY
from wamkit.envs.spec import EnvSpec
from wamkit.eval.protocols import named_protocol
from wamkit.eval.suites.latency import Load, query_latency
from wamkit.experiments import run as module
from wamkit.experiments.comparisons import COMPARISONS, TUNED, Comparison, Entry
from wamkit.experiments.page import Result, write_page
from wamkit.experiments.run import Setup, compare, mixture_of, plan, read_result, write_comparison
from wamkit.inference.model import Model
from wamkit.rollout.collect import CollectConfig, collect
from wamkit.runs.config import changed
from wamkit.runs.fitted import DataFacts
from wamkit.runs.provenance import Provenance
from wamkit.runs.recipes import RECIPES
from wamkit.runs.run import Run
from wamkit.types import Observation, Query, WamkitError

TINY = {"model.width": 32, "model.depth": 1, "model.heads": 2}
TINY |= {"train.steps": 4, "train.save_every": 2, "train.batch_size": 4}
SMALL = Comparison(
    "Small",
    "Does it run?",
    "bc",
    (
        Entry("bc", "tiny-bc", (0, 1)),
        Entry("unified", "tiny-unified", (0,)),
        Entry("world_model", "tiny-world_model", (0,)),
        Entry("bc, 1 labelled", "tiny-bc", (0,), {"episodes.labelled": 1}),
    ),
)


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Setup:
    root = tmp_path_factory.mktemp("compare")
    options = {"height": 32, "width": 32, "max_steps": 90, "supersample": 1}
    world = CollectConfig(tasks=("drawer-open-v3",), out=root / "data", episodes=2, off_expert=0, options=options)
    collect(world, progress=False)
    return Setup(root / "data", root / "results", root / "work", episodes=2, held_out=1, processes=1)


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COMPARISONS._items, "small", lambda: SMALL)
        for name in ("bc", "unified", "world_model"):
            tiny = changed(RECIPES.get(f"metaworld-{name}")(), TINY)
            patch.setitem(RECIPES._items, f"tiny-{name}", lambda tiny=tiny: tiny)
        yield


@pytest.fixture(scope="module")
def page(setup) -> str:
    return compare("small", setup).read_text()


def results(setup) -> dict[str, Result]:
    folder = setup.out / "jobs"
    files = sorted(folder.glob("*.json"))
    return {p.stem: from_dict(Result, unsealed(json.loads(p.read_text()), p)) for p in files}


def test_every_job_leaves_one_small_file(setup, page):
    found = results(setup)
    assert sorted(found) == ["tiny-bc-0", "tiny-bc-1", "tiny-bc-labelled-1-0", "tiny-unified-0", "tiny-world_model-0"]
    assert all(p.stat().st_size < 20_000 for p in (setup.out / "jobs").glob("*.json"))
    assert all(r.training["cpu_s"] > 0 and sum(r.samples.values()) == 16 for r in found.values())
    assert found["tiny-unified-0"].samples == {"codec": 8, "main": 8}
    assert found["tiny-bc-0"].curve["step"] == (2, 4) and min(found["tiny-bc-0"].curve["held_out_action_error"]) > 0
    assert found["tiny-world_model-0"].episodes == {} and found["tiny-world_model-0"].latency == {}
    assert len(found["tiny-bc-0"].episodes["drawer-open-v3"]["outcomes"]) == 2
    assert "open_loop.skill.forward.8" in found["tiny-world_model-0"].figures
    assert all(r.load.cores >= 1 and r.load.cpu for r in found.values())


def test_the_page_holds_every_row_and_its_pictures_are_svg(setup, page):
    for name in ("bc", "unified", "world_model", "bc, 1 labelled"):
        assert f"\n| {name} |" in page
    assert "5 of 5 jobs are finished" in page
    for picture in (setup.out / "small").glob("*.svg"):
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_finished_jobs_are_read_in_a_fresh_clone_and_changed_ones_run_again(setup, page, monkeypatch, capsys):
    monkeypatch.setattr(module, "train_run", lambda *_, **__: pytest.fail("trained again"))
    shutil.rmtree(setup.work)
    compare("small", setup)
    assert "5 finished, 0 to run" in capsys.readouterr().out
    entries = tuple(dataclasses.replace(e, options={"train.lr": 1e-4}) for e in SMALL.entries[:1])
    monkeypatch.setitem(COMPARISONS._items, "small", lambda: dataclasses.replace(SMALL, entries=entries))
    with pytest.raises(WamkitError, match="no result of 'small'"):
        write_comparison("small", setup)


def test_a_result_outlives_new_options_and_no_other_change(setup, page):
    """An option that did not exist when a job was run had its default then."""
    path = setup.out / "jobs" / "tiny-bc-0.json"
    whole = path.read_text()
    old, other = (unsealed(json.loads(whole), path) for _ in range(2))  # early files have no checksum
    del old["configuration"]["model"]["proprio_noise"]
    other["configuration"]["model"]["gone"] = 1
    try:
        path.write_text(json.dumps(old))
        assert "5 of 5 jobs are finished" in write_comparison("small", setup).read_text()
        path.write_text(json.dumps(other))
        assert "4 of 5 jobs are finished" in write_comparison("small", setup).read_text()
    finally:
        path.write_text(whole)


def test_a_damaged_result_is_named(setup, page):
    path = setup.out / "jobs" / "tiny-bc-1.json"
    whole = path.read_text()
    path.write_text(whole[:50])
    try:
        with pytest.raises(WamkitError, match=r"bc-1.json is damaged"):
            write_comparison("small", setup)
    finally:
        path.write_text(whole)


def test_a_result_without_one_of_its_keys_is_refused_or_shown_without_it(tmp_path):
    path = Path(__file__).parents[2] / "docs/results/jobs/unified-0.json"
    whole, refused = old_names.job(unsealed(json.loads(path.read_text()), path)), set()
    for names in key_paths(whole):
        cut = json.loads(json.dumps(whole))
        *above, last = names
        del functools.reduce(operator.getitem, above, cut)[last]
        try:
            result = from_dict(Result, cut)
        except ConfigError as error:
            assert last in str(error)
            refused.add(last)
        else:
            write_page(Comparison("t", "q", "a", (Entry("a", ""),)), {"a": [result]}, 1, "c", tmp_path / "page.md")
    assert {"key", "trunk", "cpu_s", "outcomes", "held_out_action_error"} <= refused


def key_paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of the keys in nested dictionaries: of the configuration none, of long dictionaries the first ten."""
    for key in list(value)[: 10 if path else None] if isinstance(value, dict) and path != ("configuration",) else ():
        yield (*path, key)
        yield from key_paths(value[key], (*path, key))


def test_rows_that_would_share_a_file_are_refused(setup):
    rows = tuple(
        dataclasses.replace(SMALL.entries[0], name=n, recipe=r) for n, r in (("a", "bc"), ("b", "metaworld-bc"))
    )
    with pytest.raises(WamkitError, match=r"would be written into one file, bc-0.json: leave one of them out"):
        plan(dataclasses.replace(SMALL, entries=rows), setup)


def test_unknown_rows_and_options_are_refused(setup):
    with pytest.raises(WamkitError, match="no row 'bcc'"):
        compare("small", setup, only=("bcc",))
    with pytest.raises(WamkitError, match="unknown comparison 'leafs' .*did you mean 'leaves'"):
        compare("leafs", setup)
    with pytest.raises(ConfigError, match="no part 'modle'"):
        changed(RECIPES.get("metaworld-bc")(), {"modle.width": 3})
    with pytest.raises(ConfigError, match="widht"):
        changed(RECIPES.get("metaworld-bc")(), {"model.widht": 3})


@pytest.mark.parametrize("name", COMPARISONS.names())
def test_every_comparison_builds_its_runs(name):
    comparison = COMPARISONS.get(name)()
    names = [e.name for e in comparison.entries]
    assert len(set(names)) == len(names) and (not comparison.reference or comparison.reference in names)
    for entry in comparison.entries:
        run = changed(RECIPES.get(entry.recipe)(), entry.options)
        weights = [(s.weight, s.actions) for s in entry.sources] or [(1.0, True)]
        labelled = sum(w for w, actions in weights if actions) / sum(w for w, _ in weights)
        samples = run.train.steps * run.train.batch_size * labelled
        assert samples == pytest.approx(48_000), "the one budget, of samples with actions where data sets are mixed"


def outcome(seed: int, outcomes: str) -> Result:
    """A result with the given outcomes and nothing else."""
    window = {"window": {"frame_offsets": [8, 16]}}
    return Result(
        "k", "", seed, window, "leaf", ("policy",), {"trunk": 1, "all": 1}, {"main": 1}, {"cpu_s": 1.0},
        {"task-v3": {"first_seed": 0, "outcomes": outcomes, "steps": []}}, {}, {},
        {"step": [1], "held_out_action_error": [1.0]}, {},
    )  # fmt: skip


def test_pairs_are_the_same_seed_and_the_same_state(tmp_path):
    comparison = Comparison("t", "q", "a", (Entry("a", ""), Entry("b", "")))
    rows = {"a": [outcome(0, "1100"), outcome(1, "1100")], "b": [outcome(1, "1111"), outcome(7, "0000")]}
    text = write_page(comparison, rows, 4, "c", tmp_path / "page.md").read_text()
    line = next(x for x in text.splitlines() if x.startswith("| b | a | +"))
    assert line.split(" | ")[2] == "+50.0" and line.split(" | ")[4:6] == ["2", "0"]  # seed 1 alone is common


@pytest.mark.parametrize("outcomes", ["0" * 18, "1" * 18])
def test_rows_that_never_differ_are_not_known_to_be_equal(outcomes, tmp_path):
    comparison = Comparison("t", "q", "a", (Entry("a", ""), Entry("b", "")))
    rows = {name: [outcome(seed, outcomes) for seed in (0, 1)] for name in "ab"}
    text = write_page(comparison, rows, 4, "c", tmp_path / "page.md").read_text()
    assert "| b | a | +0.0 | -18.5 to +18.5 | 0 | 0 | 1 | 2 |" in text  # 18 states, however many seeds
    assert ("| 81% to 100% |" if "1" in outcomes else "| 0% to 19% |") in text


def test_groups_of_tasks_weigh_the_same_and_published_rows_stand_beside(tmp_path):
    """Two of four groups are solved, which hold 33 of the 50 tasks: 66 % of the episodes, 50 % of the groups."""
    solved = {task for name in ("easy", "very hard") for task in DIFFICULTY[name]}
    played = {
        t: {"first_seed": 0, "outcomes": "11" if t in solved else "00", "steps": [], "ends": ["solved"] * 2}
        for tasks in DIFFICULTY.values()
        for t in tasks
    }
    played["push-v3"] |= {"ends": ["never touched", "nearly"]}
    comparison = COMPARISONS.get("mt50")()
    rows = {"unified": [dataclasses.replace(outcome(0, ""), episodes=played)]}
    lines = write_page(comparison, rows, 4, "c", tmp_path / "page.md").read_text().splitlines()
    ours = next(x for x in lines if x.startswith("| unified | **66.0%**"))
    cells = [c.strip() for c in ours.split("|")]
    assert cells[4] == "**50.0%**" and cells[6:10] == ["100%", "0%", "0%", "100%"] and cells[10] == "66 of 100"
    task = next(x for x in lines if x.startswith("| push |"))
    assert "| hard | 0% |" in task and "1 never touched" in task and "1 nearly" in task
    vpp = next(x for x in lines if x.startswith("| VPP |"))
    assert [c.strip() for c in vpp.split("|")][2:4] == ["68.2", ""]  # its mean is over tasks
    for row in comparison.published:
        if None not in row.success:
            assert row.mean == pytest.approx(sum(row.success) / 4, abs=0.06) and row.of == "groups"


def test_a_caveat_belongs_to_its_comparison_and_times_to_a_load(tmp_path):
    rows = {"a": [outcome(0, "10")]}
    mine = Comparison("t", "q", "", (Entry("a", ""),))
    text = write_page(mine, rows, 1, "c", tmp_path / "page.md").read_text()
    assert "tuned" not in text and "unified" not in text and "the figure of each seed" in text
    assert "load that these times were taken under was not recorded" in text
    text = write_page(dataclasses.replace(mine, caveat=TUNED), rows, 1, "c", tmp_path / "page.md").read_text()
    assert text.endswith(TUNED + "\n") and all(COMPARISONS.get(n)().caveat == TUNED for n in ("leaves", "history"))
    parts = {"total": 1.0, "encode": 0.5, "prefill": 0.1, "step": 0.1, "steps": 4, "decode": 0.0}
    load = Load(5.0, 2, 1, "Some CPU")
    timed = dataclasses.replace(rows["a"][0], latency={"policy": parts}, load=load)
    text = write_page(mine, {"a": [timed]}, 1, "c", tmp_path / "page.md").read_text()
    assert "Load average 5.0 on Some CPU, 2 cores, 1 thread; the machine was BUSY, so times are too long." in text


def test_parts_of_a_query_add_up_and_the_model_is_left_as_it_was(spec, normalizer, monkeypatch):
    """By the clock of this process, so that other work of the machine is none of a part."""
    from wamkit.eval.suites import latency
    from wamkit.runs.config import family_class

    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=time.process_time))
    cls = family_class("unified")
    model = Model(cls(cls.Config(width=32, depth=1, heads=2), spec, normalizer).eval())
    g = np.random.default_rng(0)
    picture = g.integers(0, 256, (2, 3, 32, 32), np.uint8)
    obs = [Observation(picture, np.zeros(5, np.float32), "press")]
    before = model.sample(obs, "policy", seed=0).actions
    spent = query_latency(model, obs, Query.POLICY, repeats=9)
    parts = spent.encode + spent.prefill + spent.steps * spent.step + spent.decode
    assert spent.steps == 4 and min(spent.encode, spent.prefill, spent.step) > 0
    assert parts >= spent.total * 0.99
    assert "forward" not in vars(model.family.trunk) and np.array_equal(
        before, model.sample(obs, "policy", seed=0).actions
    )


def test_committed_results_are_recognised_whatever_names_have_changed(monkeypatch, tmp_path):
    """The results were made on `data/points` and `data/mt50`, whose provenance is written out here. No finished job
    would run again.

    The committed pages are those that the results give.
    """
    tasks = ("button-press-topdown-v3", "drawer-open-v3", "window-close-v3", "door-open-v3")
    fifty = named_protocol("metaworld-mt50").env.tasks
    options = {"goal_markers": True, "max_steps": 500, "height": 96, "width": 96, "supersample": 2}
    options["cameras"] = ["corner2", "gripperPOV"]
    bounds = ((-1.0, 1.0),) * 4
    made = {
        "points": Provenance(EnvSpec("metaworld", tasks, {"point_grid": 32}), 0, tuple(range(160)), 160, 13345),
        "mt50": Provenance(EnvSpec("metaworld", fifty, options), 0, tuple(range(2700)), 2700, 238276, bounds),
    }
    facts = DataFacts(2500, 238276, 83.0, 50, 80.0, 2, 96, 96)
    monkeypatch.setattr(Provenance, "of", lambda name: made[name])
    monkeypatch.setattr(module.Store, "open", lambda path: path.name)
    monkeypatch.setattr(module, "facts_of", lambda path: facts)
    results, again = Path(__file__).resolve().parents[2] / "docs/results", Path("docs/results")
    monkeypatch.chdir(tmp_path)  # the page names its folders, so they are the usual ones
    shutil.copytree(results / "jobs", again / "jobs")
    for page in sorted(results.glob("*.md")):
        if page.stem not in COMPARISONS:
            continue
        finished = int(re.search(r"(\d+) of \d+ jobs are finished", page.read_text())[1])
        data, held_out = (Path("data/mt50"), 2) if page.stem == "mt50" else (Path("data/points"), 6)
        jobs = plan(COMPARISONS.get(page.stem)(), Setup(data, results, tmp_path, held_out=held_out))
        assert sum(read_result(job) is not None for job in jobs) == finished, page.stem
        assert finished == len(jobs) or page.stem == "mt50", "the fifty tasks take many hours; not all are done"
        written = write_comparison(page.stem, Setup(data, again, Path("runs/compare"), held_out=held_out))
        for path in (page, *results.glob(f"{page.stem}/*.svg")):
            same = path.read_text() == (written.parent / path.relative_to(results)).read_text()
            assert same, f"`wamkit compare {page.stem} --page` writes another {path.name}"


def test_every_committed_result_is_read_under_keys():
    """Results of earlier versions have names in place of keys."""
    for path in (Path(__file__).parents[2] / "docs/results/jobs").glob("*.json"):
        result = from_dict(Result, old_names.job(unsealed(json.loads(path.read_bytes()), path)))
        tables = {key.partition(".")[0] for key in result.figures}
        assert tables <= {"open_loop", "coupling"} and not any(" " in key for key in result.figures), path.name


def test_a_flipped_bit_in_a_finished_job_is_found(setup, page):
    file = setup.out / "jobs/tiny-bc-1.json"
    good, (job,) = file.read_bytes(), [j for j in plan(SMALL, setup) if j.result == file]
    whole = read_result(job)
    assert len(whole.weights) == 64 and (not job.folder.exists() or whole.weights == Run.open(job.folder).digest)
    try:
        for bit in range(0, len(good) * 8, len(good) // 12):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            file.write_bytes(bad)
            try:
                assert read_result(job) == whole
            except WamkitError as error:
                assert "tiny-bc-1.json is damaged" in str(error)
    finally:
        file.write_bytes(good)


def test_the_page_names_the_command_that_made_it(setup, page):
    assert Setup(Path("data/x"), Path("docs/results"), Path("runs/compare")).arguments() == ["--data", "data/x"]
    args = parse(Compare, "compare", ["small", *setup.arguments()])
    assert Setup(args.data, args.out, args.work, args.episodes, args.held_out, setup.processes) == setup
    assert f"`wamkit compare small --data {setup.data}" in page


def test_each_seed_may_have_data_of_its_own(setup, page):
    sources = (SourceConfig("data", 0.3), SourceConfig("made/read-{seed}", 0.7))
    entries = (dataclasses.replace(SMALL.entries[0], name="read", sources=sources),)
    jobs = plan(dataclasses.replace(SMALL, entries=entries), setup)
    assert [j.result.name for j in jobs] == ["tiny-bc-data-read-0.json", "tiny-bc-data-read-1.json"]
    found = [json.loads(mixture_of(job, setup).read_text())["sources"] for job in jobs]
    assert [Path(s[1]["data"]).name for s in found] == ["read-0", "read-1"]
    assert len({job.folder for job in jobs}) == 2


def test_the_rows_about_labels_differ_in_name_and_file():
    entries = COMPARISONS.get("labels")().entries
    assert len({e.name for e in entries}) == len({e.slug for e in entries}) == len(entries)
    assert all(e.against in {x.name for x in entries} | {""} for e in entries)
    for entry in entries:
        MixtureConfig(entry.sources)
