"""Where the training data came from."""

from __future__ import annotations

import json
from typing import Any

from wamkit import old_names
from wamkit.data.format.store import Store
from wamkit.types import WamkitError


def source(store: Store) -> dict[str, Any]:
    """Where the demonstrations came from, so that evaluation meets the same world and other reset states."""
    path = store.root / "collect.json"
    try:
        collected = old_names.collected(json.loads(path.read_text())) if path.exists() else {}
    except (ValueError, AttributeError, TypeError) as e:
        raise WamkitError(f"{path} is damaged ({e}); restore it, or collect into a new folder") from e
    return {
        "env": collected.get("env", ""),
        "options": collected.get("options", {}),
        "tasks": list(collected.get("tasks", ())),
        "collect_seed": collected.get("seed", 0),
        "seeds": sorted({m.seed for m in store.episodes}),
        "episodes": len(store),
        "frames": store.frames,
    }
