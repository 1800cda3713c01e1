"""`wamkit collect`: demonstrations of scripted experts, and episodes that show what actions do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace

from wamkit.cli.parse import COMMANDS, Options, join


@dataclass(frozen=True)
class Collect(Options):
    """Record demonstrations of scripted experts, and off-expert episodes."""

    _: KW_ONLY
    executor: str = "local"
    """Executor of the jobs: local, processes of this machine; or ray, the cluster that RAY_ADDRESS names, else one
    that is started on this machine. The recordings are the same."""

    @classmethod
    def resolve(cls, argv: Sequence[str]) -> type[Options]:
        """Adds the fields of `CollectConfig`."""
        from wamkit.rollout.plan import CollectConfig

        return join(cls, CollectConfig)


@COMMANDS.register("collect")
def run(args: Collect) -> None:
    """Collects, and prints the size of the data set."""
    from wamkit.executors.base import executing_on
    from wamkit.files import check_place
    from wamkit.rollout.plan import CollectConfig
    from wamkit.runs.config import require_run

    config = CollectConfig(**{f.name: getattr(args, f.name) for f in fields(CollectConfig)})
    config.env_spec.check()
    check_place(config.out / "collect.json")
    config = replace(config, policies=tuple(require_run(policy) for policy in config.policies))
    with executing_on(args.executor):
        from wamkit.rollout.collect import collect

        store = collect(config)
    print(f"collected: {len(store)} episodes, {store.frames} frames in {store.root}")
