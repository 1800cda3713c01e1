"""Evidence in a data set of what a family's stages teach, looked for before anything is trained.

A loss over no valid values is 0, so behaviour cloning of data without actions would "train" without an error.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wamkit.errors import WamkitError
from wamkit.families.base import Stage
from wamkit.runs.base_model import video_backbone
from wamkit.runs.config import RunConfig, family_class
from wamkit.runs.meta_model import meta_model
from wamkit.training.memory import is_pretrained
from wamkit.types import Query, Spec


def evidence_of(lengths: np.ndarray, acts: np.ndarray, shows: np.ndarray, spec: Spec) -> frozenset[Query]:
    """The queries that at least one window of E episodes is evidence of.

    lengths: int (E,), steps of the model's clock in each episode.
    acts, shows: bool (E,), true for episodes with actions, and for demonstrations.
    """
    acts, ahead = acts & (spec.action_dim > 0), lengths > _ahead(spec)
    there = {
        Query.POLICY: acts & shows,
        Query.VIDEO: shows & ahead,
        Query.FORWARD: acts & ahead,
        Query.INVERSE: acts & ahead,
        Query.JOINT: acts & shows & ahead,
    }
    return frozenset(query for query, episodes in there.items() if episodes.any())


def _ahead(spec: Spec) -> float:
    """Steps to the nearest future frame; infinite where none is predicted."""
    return min(spec.frame_offsets, default=np.inf)


def check_evidence(run: RunConfig, spec: Spec, found: frozenset[Query], data: Path) -> list[Query]:
    """The queries of the family that `data` teach nothing about.

    found: the queries that the data are evidence of, see `evidence_of`.

    Raises WamkitError, naming the stage and what it needs, for a stage of `run` that can learn nothing at all.
    """
    queries = family_class(run.family).queries
    unknown = is_pretrained(run) and video_backbone(run.model) is None
    stages = (Stage("main", 1.0, ("",)),) if unknown else meta_model(run, spec).stages()
    for stage in stages:
        taught = queries if stage.teaches is None else stage.teaches
        if taught and not taught & found:
            raise WamkitError(
                f"{data} has nothing for stage '{stage.name}' of '{run.family}' to learn from: it teaches "
                f"{', '.join(q for q in Query if q in taught)}, and there are no "
                f"{_missing(taught, found, spec)}"
            )
    return [query for query in Query if query in queries - found]


def _missing(taught: frozenset[Query], found: frozenset[Query], spec: Spec) -> str:
    """The evidence that a stage lacks, and what to do."""
    ahead = f"episodes of more than {_ahead(spec):g} steps"
    shorter = "lower --window.frame-offsets, or record longer episodes"
    if Query.VIDEO in taught or found & {Query.POLICY} and not found & {Query.VIDEO}:
        return f"demonstrations in {ahead}; {shorter}"
    if not spec.action_dim:
        return (
            "actions in it; train a family that learns from video alone, or say by `wamkit describe` which columns "
            "are actions"
        )
    return "demonstrations with actions; record some, or train a family that learns from what is there"
