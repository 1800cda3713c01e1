"""The origin of training data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wamkit import old_names
from wamkit.envs.spec import EnvSpec
from wamkit.files import read_json
from wamkit.hub.names import origin
from wamkit.metadata import check_action_bounds
from wamkit.types import WamkitError

if TYPE_CHECKING:
    from wamkit.data.format.store import Store


@dataclass(frozen=True)
class Provenance:
    """The environment and the reset states of a data set, so that evaluation plays in the same and resets to others.

    env: unnamed for data that no environment of wamkit made.
    collect_seed: seed of the collection.
    seeds: reset seeds of all episodes, ascending.
    episodes, frames: how many the data set holds.
    hub: name of the data set on the Hub, with the commit and the episodes; "" for one that was not downloaded.
    action_bounds: (lowest, highest) value of each action dimension, in the robot's units, to which answers are clipped;
        empty where the data do not say.
    """

    env: EnvSpec = field(default_factory=EnvSpec)
    collect_seed: int = 0
    seeds: tuple[int, ...] = ()
    episodes: int = 0
    frames: int = 0
    action_bounds: tuple[tuple[float, float], ...] = ()
    hub: str = ""

    @classmethod
    def of(cls, store: Store, episodes: int | None = None) -> Provenance:
        """The provenance of a store, from its `collect.json` if it has one. Raises WamkitError if that is damaged.

        episodes: only the first so many are used; None for all.
        """
        from wamkit.data.format.metadata_io import load_metadata  # needs pyarrow, which a model that acts does not

        path = store.root / "collect.json"
        try:
            collected = old_names.collected(read_json(path)) if path.exists() else {}
            env = EnvSpec(collected.get("env", ""), tuple(collected.get("tasks", ())), collected.get("options", {}))
        except (ValueError, AttributeError, TypeError) as e:
            raise WamkitError(f"{path} is damaged ({e}); restore it, or collect into a new folder") from e
        used = store.episodes[:episodes]
        seeds = tuple(sorted({m.seed for m in used}))
        metadata, actions = load_metadata(store.root), len(store.layout.action_names)
        bounds = metadata.action_bounds if metadata and actions else ()
        if bounds:
            check_action_bounds(bounds, actions)
        return cls(
            env,
            collected.get("seed", 0),
            seeds,
            len(used),
            sum(m.length for m in used),
            bounds,
            str(origin(store.root) or ""),
        )
