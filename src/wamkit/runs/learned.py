"""Episodes from which the weights of a run learned: its own, and those of the runs that it started from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from wamkit import config as cfg
from wamkit.data.loading.mixture_config import MixtureConfig
from wamkit.hub.names import hub_name, origin
from wamkit.runs.config import held_out_episodes
from wamkit.runs.provenance import Provenance

if TYPE_CHECKING:
    from wamkit.data.format.store import Store  # needs pyarrow, which a model that acts does not

PARTS = ("provenance", "origins", "mixture", "held_out", "episodes")
"""Entries of a run's configuration that describe what it learned from."""


def learned_from(described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`PARTS` of a run and then of each run that it started from.

    described: the run's configuration, under present names. A start that an earlier version noted has none.
    """
    own = {part: described[part] for part in PARTS if part in described}
    return [own, *described.get("start", {}).get("learned_from", [])]


def origins_of(described: Mapping[str, Any]) -> dict[str, Provenance]:
    """Origins of all data of `learned_from`, by the words for them."""
    out = {}
    for number, part in enumerate(learned_from(described)):
        for name, found in (part.get("origins") or {"": part.get("provenance", {})}).items():
            words = f"the data set '{name}' of its mixture" if name else "its data"
            out[f"{words}{', of the run that it started from' * (number > 0)}"] = cfg.from_dict(Provenance, found)
    return out


def seen_by(described: Mapping[str, Any], store: Store, actions: bool = False) -> Bool[np.ndarray, " E"]:
    """True for the episodes of `store` from which the weights of a run learned, with `actions` or as video too.

    A data set with as many frames in as many first episodes as the run's is taken for the same, and may have grown; one
    on the Hub is the same by its name.
    """
    return np.any([_seen(part, store, actions) for part in learned_from(described)], 0)


def _seen(part: Mapping[str, Any], store: Store, actions: bool) -> Bool[np.ndarray, " E"]:
    """`seen_by` for one run's own data."""
    own = part.get("provenance", {})
    if "mixture" not in part:
        episodes = part.get("episodes", {})
        labelled, more = episodes.get("labelled"), episodes.get("action_free", 0)
        first = None if labelled is None else slice(labelled + more * (not actions))
        return _chosen(cfg.from_dict(Provenance, own), store, held_out_episodes(part), first)
    sources, origins = cfg.from_dict(MixtureConfig, part["mixture"]).sources, part.get("origins", {})
    origin_of = {s.label: cfg.from_dict(Provenance, origins.get(s.label, own)) for s in sources}
    chosen = [(origin_of[s.label], s.demonstrations) for s in sources if s.actions or not actions]
    found = [_chosen(trained, store, (), part and slice(*part)) for trained, part in chosen]
    return np.any(found, 0) if found else np.zeros(len(store), bool)


def _chosen(
    trained: Provenance, store: Store, held_out: Sequence[int], demonstrations: slice | None
) -> Bool[np.ndarray, " E"]:
    """True for the episodes of `store` that are among those of `trained` without `held_out`.

    demonstrations: which of their demonstrations alone; None for all episodes.
    """
    lengths = np.array([m.length for m in store.episodes])
    here, there = origin(store.root), hub_name(trained.hub) if trained.hub else None
    number = np.arange(len(lengths))  # counted from the first episode that the run had
    if here is not None and there is not None and here.repo == there.repo:
        number += (here.episodes or (0, 0))[0] - (there.episodes or (0, 0))[0]
    elif len(lengths) < trained.episodes or lengths[: trained.episodes].sum() != trained.frames:
        return np.zeros(len(lengths), bool)
    learned = (number >= 0) & ~np.isin(number, held_out)
    if demonstrations is None or not len(number):
        return learned & (number < trained.episodes)
    if number[0] > 0:  # without the first episodes, demonstrations cannot be counted
        return learned
    shows = np.array([m.is_demonstration for m in store.episodes])
    return np.isin(np.arange(len(number)), np.flatnonzero(shows & learned)[demonstrations])
