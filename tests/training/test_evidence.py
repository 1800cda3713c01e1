"""Stages that the data hold no evidence for are refused before training, whatever the family."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.cases.lerobot_folders import Recordings, write_v3

from wamkit.families.base import FAMILIES
from wamkit.runs.config import RunConfig, WindowConfig
from wamkit.runs.meta_model import EXAMPLE
from wamkit.runs.recipes import RECIPES
from wamkit.training.evidence import check_evidence, evidence_of
from wamkit.training.launch import train_run
from wamkit.types import Query, WamkitError

NO_ACTIONS = dataclasses.replace(EXAMPLE, action_dim=0)


def evidence(length: int = 40, acts: bool = True, shows: bool = True, spec=EXAMPLE) -> frozenset[Query]:
    return evidence_of(np.array([length]), np.array([acts]), np.array([shows]), spec)


def run(family: str) -> RunConfig:
    return RunConfig(family, FAMILIES.get(family).Config(), window=WindowConfig())


def test_evidence_of_windows() -> None:
    assert evidence() == frozenset(Query)
    assert evidence(spec=NO_ACTIONS) == evidence(acts=False) == {Query.VIDEO}
    assert evidence(shows=False) == {Query.FORWARD, Query.INVERSE}
    assert evidence(8) == {Query.POLICY} and evidence(9) == frozenset(Query)
    assert evidence(1, acts=False) == frozenset()


@pytest.mark.parametrize("family", FAMILIES.names())
def test_each_family_is_refused_without_evidence_and_no_other(family: str) -> None:
    imagines = {"unified", "mot", "discrete", "shared_rep", "query_ar", "hidden_state"}
    check_evidence(run(family), EXAMPLE, evidence(), Path("data"))
    if family in imagines:  # they learn from video alone, too
        check_evidence(run(family), EXAMPLE, evidence(acts=False), Path("data"))
    else:
        with pytest.raises(WamkitError, match=f"data has nothing for stage '.+' of '{family}'.+s with actions; "):
            check_evidence(run(family), EXAMPLE, evidence(acts=False), Path("data"))
    with pytest.raises(WamkitError, match=f"data has nothing for stage '.+' of '{family}' to learn from"):
        check_evidence(run(family), EXAMPLE, evidence(1, acts=False), Path("data"))


def test_stage_that_learns_from_pairs_is_named() -> None:
    with pytest.raises(WamkitError, match="stage 'idm' of 'cascade_idm' .*it teaches inverse"):
        check_evidence(run("cascade_idm"), NO_ACTIONS, evidence(spec=NO_ACTIONS), Path("data"))
    with pytest.raises(WamkitError, match="of 'world_model' .*more than 8 steps; lower --window.frame-offsets"):
        check_evidence(run("world_model"), EXAMPLE, evidence(8), Path("data"))


def test_behaviour_cloning_of_data_without_actions_leaves_nothing_behind(tmp_path: Path) -> None:
    data = write_v3(tmp_path / "data", Recordings(action="extra"))
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*")}
    with pytest.raises(WamkitError, match="stage 'main' of 'bc' to learn from: it teaches policy, and there are no"):
        train_run(RECIPES.get("metaworld-bc")(), data, tmp_path / "run")
    assert {p: p.stat().st_mtime_ns for p in data.rglob("*")} == before and not (tmp_path / "run").exists()
