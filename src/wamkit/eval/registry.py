"""Evaluations by name, and the context in which they run.

`wamkit eval` runs every registered evaluation that the run, the environment and the options allow. One file in
`eval/suites/`, or in a package that announces it under the entry point group `wamkit.evaluations`, adds an evaluation:

    @EVALUATIONS.register("smoothness")
    class Smoothness(Evaluation):
        def run(self, context):
            row = Row("change", "mean change of an action", value, fmt=".3f")
            return EvalResult((Table("smoothness", "How smooth are its actions?", "0 is constant.", (row,), ACTION),))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from wamkit.config import Checked, Episodes, Processes
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.windows import Frames
from wamkit.envs.spec import EnvSpec
from wamkit.eval.held_out import check_unseen, validation_store
from wamkit.eval.protocols import Protocol
from wamkit.eval.results import EvalResult
from wamkit.inference.model import Model
from wamkit.registry import Registry, load_package
from wamkit.runs.provenance import Provenance
from wamkit.runs.run import Run
from wamkit.types import Query

T = TypeVar("T")

IMAGINING = (Query.FORWARD, Query.JOINT, Query.VIDEO)
"""Queries that imagine frames."""


@dataclass(frozen=True)
class EvalOptions(Checked):
    """Options of an evaluation beside its protocol.

    held_out: validation episodes a task; with 0 only closed loop is evaluated.
    processes: worker processes.
    suite: "main", or "full" for all evaluations.
    encoders: pretrained encoders for further metrics, KIND=WEIGHTS; see `named_encoders`.
    recordings: folder of the validation episodes, where several runs on the same data share it.
    report: whether to write the page.
    """

    held_out: Episodes = 6
    processes: Processes = 2
    suite: Literal["main", "full"] = "main"
    encoders: tuple[str, ...] = ()
    recordings: Path | None = None
    report: bool = True


@dataclass(frozen=True, eq=False)
class Context:
    """A run, and everything that its evaluations share.

    run: the run.   model: its model, with the embodiment that acts.
    protocol: the way it acts, with environment and tasks resolved.
    folder: where results go.
    """

    run: Run
    model: Model
    protocol: Protocol
    folder: Path
    options: EvalOptions = field(default_factory=EvalOptions)
    _shared: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def env(self) -> EnvSpec:
        """The environment of the evaluation."""
        return self.protocol.env

    @property
    def provenance(self) -> Provenance:
        """Provenance of the training data, with the environment of the evaluation."""
        return replace(self.run.provenance, env=self.env)

    def check_unseen(self, seeds: Iterable[int], what: str) -> None:
        """Raises WamkitError if one of these reset seeds was trained on."""
        check_unseen(self.run.path, self.run.learned_from, seeds, what)

    @property
    def acts(self) -> bool:
        """True if the model gives actions."""
        return not self.model.queries.isdisjoint((Query.POLICY, Query.JOINT))

    @property
    def imagines(self) -> bool:
        """True if the model imagines frames."""
        return not self.model.queries.isdisjoint(IMAGINING)

    @cached_property
    def frames(self) -> Frames:
        """Validation episodes from reset states that training never saw, recorded at the first use."""
        return self.record(self.options.held_out)

    def record(self, episodes: int, seed: int = 0) -> Frames:
        """Other validation episodes, `episodes` a task; recorded once and kept. seed: of their reset states."""
        folder = self.options.recordings or self.folder
        run, processes = self.run, self.options.processes
        store = validation_store(run.path, run.learned_from, self.env, folder, episodes, processes=processes, seed=seed)
        return open_frames(store.root, run.image_size)[0]

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """The value of `make`, called once per context, so that evaluations can share it."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]


class Evaluation(ABC):
    """One evaluation.

    suite: "main", or "full" for an evaluation that only the full suite has.
    order: evaluations run, and stand on the page, in ascending order; ties by name.
    needs_episodes: whether it needs validation episodes, so that it is left out where there are none.
    needs_snapshots: whether it compares what follows from one state, so that it is left out where the environment takes
        no snapshots.
    cached: whether its result is cached. False for an evaluation with a cache of its own.
    """

    suite: ClassVar[Literal["main", "full"]] = "main"
    order: ClassVar[int] = 1000
    needs_episodes: ClassVar[bool] = True
    needs_snapshots: ClassVar[bool] = False
    cached: ClassVar[bool] = True

    def needs(self, context: Context) -> bool:
        """True if model, environment and options allow it."""
        return True

    def check(self, context: Context) -> None:
        """Raises WamkitError, before any evaluation runs, where this one could not."""
        return None

    def settings(self, context: Context) -> Mapping[str, Any]:
        """Further settings that its figures depend on, JSON-able: part of the cache key and of summary.json."""
        return {}

    @abstractmethod
    def run(self, context: Context) -> EvalResult:
        """Evaluates."""


EVALUATIONS: Registry[type[Evaluation]] = Registry("evaluation", "wamkit.evaluations")


def evaluations() -> dict[str, Evaluation]:
    """All registered evaluations by name, in their order."""
    load_package("wamkit.eval.suites")
    found = {name: EVALUATIONS.get(name)() for name in EVALUATIONS.names()}
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))
