"""A trained run as one artefact: its configuration, shapes, statistics, provenance and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wamkit import config as cfg
from wamkit import old_names
from wamkit.data.embodiment import Embodiment
from wamkit.families.base import Family
from wamkit.nn.normalizer import Normalizer
from wamkit.runs.checkpoint import Manifest, read_manifest, read_state, read_weights
from wamkit.runs.config import RunConfig, config_from_dict, config_to_dict, family_class, require_run
from wamkit.runs.provenance import Provenance
from wamkit.types import Spec, WamkitError


@dataclass(frozen=True)
class Run:
    """A run folder, opened once and handed on. It pickles to a few kilobytes, so worker processes get it too.

    path: the run folder.
    digest: SHA-256 of the checkpoint's manifest. It stands for weights, configuration and everything else in it.
    step: training steps that the checkpoint has seen.
    config: family, sizes, windows and training.
    spec: shapes and clocks.
    statistics: means and deviations of proprioception and actions, by name.
    provenance: where the training data came from.
    embodiments: those of a mixture, by the name of their data set; empty for a run trained on one data set.
    extra: what the trainer noted (`elapsed_s`, `cpu_s`, ...).
    described: the whole configuration as JSON, for reports.
    """

    path: Path
    digest: str
    step: int = field(compare=False)
    config: RunConfig = field(compare=False, repr=False)
    spec: Spec = field(compare=False, repr=False)
    statistics: Mapping[str, Any] = field(compare=False, repr=False)
    provenance: Provenance = field(compare=False, repr=False)
    embodiments: Mapping[str, Embodiment] = field(compare=False, repr=False)
    extra: Mapping[str, Any] = field(compare=False, repr=False)
    described: Mapping[str, Any] = field(compare=False, repr=False)
    manifest: Manifest = field(compare=False, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The newest checkpoint of the run folder `path`, or the checkpoint folder `path` itself.

        Reads and verifies the manifest and the configuration. Weights are read and verified when they are asked for,
        the state of training only when training resumes.
        Raises WamkitError if there is nothing at `path`, and CheckpointError, naming the file, for what is missing or
        damaged.
        """
        path = Path(path)
        require_run(path)
        manifest = read_manifest(path)
        state = read_state(manifest)
        described = old_names.run_config(state.config)
        config, spec, statistics = run_from_dict(described)
        return cls(
            path=path,
            digest=manifest.digest,
            step=state.step,
            config=config,
            spec=spec,
            statistics=statistics,
            provenance=cfg.from_dict(Provenance, described.get("provenance", {})),
            embodiments={n: cfg.from_dict(Embodiment, e) for n, e in described.get("embodiments", {}).items()},
            extra=state.extra,
            described=described,
            manifest=manifest,
        )

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by the model's own names, on the CPU. Raises CheckpointError if they are damaged."""
        return read_weights(self.manifest)

    def family(self, device: str = "cpu") -> Family:
        """The trained networks on `device`, in evaluation mode.

        Raises CheckpointError for damaged weights, and WamkitError for weights that do not fit the configuration and
        for a device that cannot be used.
        """
        family, weights = build(self.config, self.spec, self.statistics), self.weights()
        own = family.state_dict()
        wrong = {
            k
            for k in own.keys() | weights.keys()
            if getattr(own.get(k), "shape", 0) != getattr(weights.get(k), "shape", 1)
        }
        if wrong:
            raise WamkitError(
                f"{self.manifest.path} does not hold what its configuration describes, a '{self.config.family}' of "
                f"these sizes: {len(wrong)} of its tensors do not fit, {min(wrong)} among them. The configuration was "
                "changed after training, or belongs to another family"
            )
        family.load_state_dict(weights)
        return family.to(find_device(device)).eval()

    def embodiment(self, name: str = "") -> Embodiment | None:
        """The embodiment `name` of a mixture; by default the one that an environment exists for, None if none does.

        Raises WamkitError for an unknown name.
        """
        name = name or self.provenance.env.embodiment
        if name and name not in self.embodiments:
            known = f"it knows {', '.join(self.embodiments)}"
            alone = "it was trained on one embodiment alone, and needs no name"
            raise WamkitError(
                f"this model knows no embodiment '{name}'{cfg.nearest(name, self.embodiments)}; "
                f"{known if self.embodiments else alone}"
            )
        return self.embodiments[name] if name else None


def build(run: RunConfig, spec: Spec, statistics: Mapping[str, Any]) -> Family:
    """A freshly initialised family: its weights are a pure function of (configuration, seed)."""
    torch.manual_seed(run.train.seed)
    normalizer = Normalizer({k: (torch.tensor(v["mean"]), torch.tensor(v["std"])) for k, v in statistics.items()})
    return family_class(run.family)(run.model, spec, normalizer)


def run_to_dict(run: RunConfig, spec: Spec, statistics: Mapping[str, Any], provenance: Provenance) -> dict[str, Any]:
    """Everything in a `Run` besides the weights, JSON-able. It goes into every checkpoint and into config.json."""
    facts = {"spec": cfg.to_dict(spec), "statistics": statistics, "provenance": cfg.to_dict(provenance)}
    return config_to_dict(run) | facts


def run_from_dict(data: Mapping[str, Any]) -> tuple[RunConfig, Spec, dict[str, Any]]:
    """Configuration, shapes and statistics of what `run_to_dict` gave."""
    return config_from_dict(data), cfg.from_dict(Spec, data["spec"]), data["statistics"]


def find_device(name: str) -> torch.device:
    """The device of that name. Raises WamkitError if it cannot be used here."""
    try:
        found = torch.device(name)
        torch.zeros(1, device=found).item()  # `meta` holds no values; a missing GPU shows only in use
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        reason = str(e).splitlines()[0]
        raise WamkitError(f"device '{name}' cannot be used here ({reason}); `cpu` always can") from e
    return found
