"""A trained run as one artefact: its configuration, shapes, statistics, provenance and weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from wamkit import config as cfg
from wamkit import old_names
from wamkit.data.embodiment import Embodiment
from wamkit.data.image_transform import ImageTransform
from wamkit.errors import nearest
from wamkit.families.base import Family
from wamkit.hub.names import named, origin
from wamkit.metadata import DatasetMetadata, check_action_bounds
from wamkit.nn.backbones.video_model import other_weights
from wamkit.nn.normalizer import Normalizer
from wamkit.runs.base_model import check_base, released_tensors
from wamkit.runs.checkpoint import (
    WEIGHTS,
    CheckpointError,
    Layout,
    Manifest,
    read_manifest,
)
from wamkit.runs.config import RunConfig, config_from_dict, config_to_dict, family_class, home, require_run
from wamkit.runs.exported import Exported
from wamkit.runs.learned import origins_of
from wamkit.runs.plugins import with_maker
from wamkit.runs.provenance import Provenance
from wamkit.types import Spec, WamkitError


@dataclass(frozen=True)
class Run:
    """A run folder, opened once and handed on. It pickles to a few kilobytes, so worker processes get it too.

    path: the run folder, or the file of `wamkit export`.
    digest: see `weights_digest`. It stands for whatever the answers depend on; equal trainings have equal ones.
    step: training steps that the checkpoint has seen.
    config: family, sizes, windows and training.
    spec: shapes and clocks.
    statistics: means and deviations of proprioception and actions, by name.
    provenance: where the training data came from; of a mixture, the data set whose embodiment acts.
    image: the transform that brings images of any size to that of the network; None for a run of an earlier version,
        which takes images of its own size alone.
    embodiments: those of a mixture, by the name of their data set; empty for a run trained on one data set.
    origins: where each data set of a mixture came from, by its name; empty for a run trained on one data set, and for
        mixtures of earlier versions, which noted `provenance` alone.
    optional_views: views that some of the training data lacked; an observation may lack them too.
    metadata: what each data set's numbers and cameras mean, by the name of the data set, "" for the only one; empty for
        a run of an earlier version.
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
    image: ImageTransform | None = field(compare=False, repr=False)
    embodiments: Mapping[str, Embodiment] = field(compare=False, repr=False)
    origins: Mapping[str, Provenance] = field(compare=False, repr=False)
    optional_views: tuple[str, ...] = field(compare=False, repr=False)
    metadata: Mapping[str, DatasetMetadata] = field(compare=False, repr=False)
    extra: Mapping[str, Any] = field(compare=False, repr=False)
    described: Mapping[str, Any] = field(compare=False, repr=False)
    manifest: Manifest | Exported = field(compare=False, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The newest checkpoint of the run folder `path`, the checkpoint folder `path` itself, or an exported file.

        A name on the Hub is downloaded, see `require_run`.

        Reads and verifies the manifest and the configuration. Weights are read and verified when they are asked for,
        the state of training only when training resumes.
        Raises WamkitError if there is nothing at `path`, and CheckpointError, naming the file, for what is missing or
        damaged.
        """
        path = require_run(Path(path))
        manifest = Exported.open(path) if path.is_file() else read_manifest(path)
        state = manifest.state()
        try:
            check_described(state.config)
            described = old_names.run_config(state.config)
            config, spec, statistics = run_from_dict(described)
            image = cfg.from_dict(ImageTransform, described["image"]) if "image" in described else None
            if image not in (None, ImageTransform.of(spec)):
                raise WamkitError(f"{image} does not fit the model's images, {spec.height}x{spec.width}")
            embodiments = {n: cfg.from_dict(Embodiment, e) for n, e in described.get("embodiments", {}).items()}
            for name, embodiment in embodiments.items():
                check_embodiment(name, embodiment, spec)
            origins = {n: cfg.from_dict(Provenance, o) for n, o in described.get("origins", {}).items()}
            provenance = cfg.from_dict(Provenance, described.get("provenance", {}))
            for name, origin in (origins or {"": provenance}).items():
                size = embodiments[name].own_action_size if name in embodiments else spec.action_dim
                if origin.action_bounds:
                    check_action_bounds(origin.action_bounds, size)
            optional = _optional_views(described, spec)
            metadata = {n: cfg.from_dict(DatasetMetadata, m) for n, m in described.get("metadata", {}).items()}
        except WamkitError as e:
            raise WamkitError(f"{manifest.described_in}: {with_maker(e, state.config)}") from e
        return cls(
            path=path,
            digest=manifest.digest if isinstance(manifest, Exported) else weights_digest(manifest, state.config),
            step=state.step,
            config=config,
            spec=spec,
            statistics=statistics,
            provenance=provenance,
            image=image,
            embodiments=embodiments,
            origins=origins,
            optional_views=optional,
            metadata=metadata,
            extra=state.extra,
            described=described,
            manifest=manifest,
        )

    @property
    def home(self) -> Path:
        """The folder that results go to: the run folder, or the one beside an exported file, named without suffix."""
        return home(self.path)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images that the network takes."""
        return self.spec.height, self.spec.width

    @property
    def name(self) -> str:
        """The folder's name, or that on the Hub."""
        found = origin(self.path)
        return found.repo if found else self.path.name

    @property
    def label(self) -> str:
        """The run as a command line names it: its path, or its name on the Hub with the commit."""
        return named(self.path)

    def is_named(self, digest: str) -> bool:
        """True if `digest`, as a result or a collection holds it, or its first digits, name these weights.

        Earlier versions wrote the digest of the manifest.
        """
        return bool(digest) and any(known.startswith(digest) for known in (self.digest, self.manifest.digest))

    @property
    def sources(self) -> Mapping[str, Provenance]:
        """Origins of all training data, by the name of the data set; "" for that of a run on one data set."""
        return self.origins or {"": self.provenance}

    @property
    def learned_from(self) -> Mapping[str, Provenance]:
        """Origins of all data that its weights learned from, by words: `sources`, and those of runs it started from."""
        return origins_of(self.described)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by the model's own names, on the CPU. Raises CheckpointError if they are damaged."""
        return self.manifest.weights()

    def family(self, device: str = "cpu") -> Family:
        """The trained networks on `device`, in evaluation mode.

        Raises CheckpointError for damaged weights, and WamkitError for weights that do not fit the configuration and
        for a device that cannot be used. Names, types and shapes are compared before any memory is taken.
        """
        found = self.manifest.layout()
        try:
            own = layout(self.config, self.spec, self.statistics, most=len(found))
        except WamkitError as e:
            raise WamkitError(f"{self.manifest.described_in}: {with_maker(e, self.described)}") from e
        if wrong := sorted({k for k, _ in own.items() ^ found.items()}):
            raise WamkitError(
                f"{self.manifest.path} does not hold what its configuration describes, a '{self.config.family}' of "
                f"these sizes: {len(wrong)} of its tensors do not fit, {wrong[0]} among them. The configuration was "
                "changed after training, or belongs to another family"
            )
        check_base(self.config.model, self.described)
        with other_weights():
            family, weights = build(self.config, self.spec, self.statistics), self.weights()
        if bad := next((n for n, x in weights.items() if x.is_floating_point() and not x.isfinite().all()), ""):
            raise CheckpointError(
                f"{self.manifest.weights_in}: {bad} holds NaN or infinity; use an earlier one, or train again"
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
                f"this model knows no embodiment '{name}'{nearest(name, self.embodiments)}; "
                f"{known if self.embodiments else alone}"
            )
        return self.embodiments[name] if name else None

    def action_bounds(self, embodiment: str = "") -> tuple[tuple[float, float], ...]:
        """(lowest, highest) value of each action dimension of `embodiment`; empty where the data did not say.

        embodiment: as in the method of that name. The unified actions of a mixture have no bounds.
        """
        name = embodiment or self.provenance.env.embodiment
        if name or not self.embodiments:
            return self.sources[name].action_bounds if name in self.sources else ()
        return ()


UNANSWERED = (
    *("train", "episodes", "mixture", "shares", "origins", "optional_views", "plugins", "metadata", "start"),
    "processes",
)
"""Parts of a run's configuration that change its answers by way of the weights alone."""


def weights_digest(manifest: Manifest, config: Mapping[str, Any]) -> str:
    """SHA-256 of the weights' bytes and of the configuration as stored, without `UNANSWERED`.

    No clock, path or number of steps is in it, so that two trainings with the same bits have the same digest.
    """
    kept = {k: v for k, v in config.items() if k not in UNANSWERED}
    content = json.dumps([manifest.files[WEIGHTS]["sha256"], kept], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def build(run: RunConfig, spec: Spec, statistics: Mapping[str, Any]) -> Family:
    """A freshly initialised family: its weights are a pure function of (configuration, seed)."""
    torch.manual_seed(run.train.seed)
    # From numpy, so that they hold values under `layout` as well; see `_ShapesAlone`.
    scales = {
        k: (torch.from_numpy(np.array(v["mean"], np.float32)), torch.from_numpy(np.array(v["std"], np.float32)))
        for k, v in statistics.items()
    }
    normalizer = Normalizer(scales, {k: v["limit"] for k, v in statistics.items() if "limit" in v})
    return family_class(run.family)(run.model, spec, normalizer)


class _ShapesAlone(TorchFunctionMode):
    """Answers for the meta device without the values of initial weights: draws, `arange`, arithmetic, `stack`,
    `cat`.

    torch's own way is by Python references, of which the first imports torch._dynamo and sympy: three times the time of
    importing torch. What is not listed here still goes that way.
    """

    _ELEMENTWISE = (Tensor.add, Tensor.sub, Tensor.mul, Tensor.div)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if func in (torch.rand, torch.randn):
            return torch.empty(*args, **kwargs)
        if func is torch.arange and not kwargs and all(isinstance(x, int) for x in args):
            return torch.empty(len(range(*args)), dtype=torch.int64)
        given = args[0] if func in (torch.stack, torch.cat) else args
        if not all(x.is_meta for x in given if isinstance(x, Tensor)):
            return func(*args, **kwargs)
        if func in self._ELEMENTWISE and len(args) == 2 and not kwargs:
            shapes, kind = [x.shape for x in args if isinstance(x, Tensor)], torch.result_type(*args)
            if kind.is_floating_point or func is not Tensor.div:
                return torch.empty(np.broadcast_shapes(*shapes), dtype=kind)
        if func in (torch.stack, torch.cat) and len({(x.ndim, x.dtype) for x in given}) == 1:
            shape, parts, at = list(args[0][0].shape), args[0], kwargs.get("dim", (*args, 0)[1])
            if func is torch.stack:
                at %= len(shape) + 1
                return torch.empty([*shape[:at], len(parts), *shape[at:]], dtype=parts[0].dtype)
            shape[at] = sum(x.shape[at] for x in parts)
            return torch.empty(shape, dtype=parts[0].dtype)
        return func(*args, **kwargs)


def layout(run: RunConfig, spec: Spec, statistics: Mapping[str, Any], most: int) -> dict[str, Layout]:
    """Types and shapes of the weights that `build` makes, by name, found without memory for any.

    most: tensors that are expected. Raises WamkitError where the configuration asks for far more, as soon as it does,
    and for one that no model can be built of.
    """
    left = iter(range(2 * most + 100 + released_tensors(run.model)))  # with what is not saved

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is not None and next(left, None) is None:
            raise WamkitError(
                f"the configuration of this '{run.family}' describes more tensors than the {most} of its weights; it "
                "was changed after training"
            )

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        with torch.device("meta"), _ShapesAlone():
            family = build(run, spec, statistics)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as e:
        if isinstance(e, WamkitError):
            raise
        raise WamkitError(f"no '{run.family}' can be built of its configuration ({str(e).splitlines()[0]})") from e
    finally:
        for hook in hooks:
            hook.remove()
    return {k: Layout(v.dtype, tuple(v.shape)) for k, v in family.state_dict().items()}


def run_to_dict(run: RunConfig, spec: Spec, statistics: Mapping[str, Any], provenance: Provenance) -> dict[str, Any]:
    """Everything in a `Run` besides the weights, JSON-able. It goes into every checkpoint and into config.json."""
    facts = {"spec": cfg.to_dict(spec), "statistics": statistics, "provenance": cfg.to_dict(provenance)}
    return config_to_dict(run) | facts | {"image": cfg.to_dict(ImageTransform.of(spec))}


_DESCRIBED = ("model", "spec", "statistics")
_OPTIONAL = (
    "image",
    "plugins",
    "window",
    "train",
    "episodes",
    "provenance",
    "source",
    "embodiments",
    "robots",
    "origins",
    "metadata",
    "base",
)
_GROUPS = (*_DESCRIBED, *_OPTIONAL)
_SIDES = {"height": 8192, "width": 8192, "proprio_dim": 8192, "action_dim": 8192, "chunk": 8192, "point_grid": 1024}
"""Largest sizes in the shapes of a run: more than any camera or robot has."""


def check_described(config: Mapping[str, Any]) -> None:
    """Raises WamkitError unless the parts of a run's configuration, as stored, are there, and are groups of values."""
    if missing := [k for k in ("family", *_DESCRIBED) if k not in config]:
        raise WamkitError(f"the configuration lacks '{missing[0]}': wamkit did not write it")
    if not isinstance(config["family"], str):
        raise WamkitError(f"family is no name: {cfg.shown(config['family'])}")
    for key in (k for k in _GROUPS if k in config):
        if not isinstance(config[key], Mapping):
            raise WamkitError(f"{key} is no group of values: {cfg.shown(config[key])}")


def _statistics(data: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """Means and deviations by name. Raises ConfigError unless they are finite numbers, as many as `spec` says."""
    sizes = {"proprio": spec.proprio_dim, "action": spec.action_dim}
    for name, entry in data.items():
        found = [entry.get(k) for k in ("mean", "std")] if isinstance(entry, Mapping) else [None]
        columns: list[list[Any]] = [list(c) if isinstance(c, (list, tuple)) else [None] for c in found]
        size = sizes.get(name, len(columns[0]))
        for values in columns:
            if len(values) != size or not all(type(x) in (int, float) and abs(x) < 3e38 for x in values):
                raise cfg.ConfigError(f"statistics.{name}: expected mean and std of {size} finite numbers each")
        limit = entry.get("limit", 1.0)
        if type(limit) not in (int, float) or not 0 < limit < 3e38:
            raise cfg.ConfigError(f"statistics.{name}: limit is {cfg.shown(limit)}: expected a positive number")
    return dict(data)


def _optional_views(data: Mapping[str, Any], spec: Spec) -> tuple[str, ...]:
    names = data.get("optional_views", [])
    if not isinstance(names, list) or any(name not in spec.cameras for name in names):
        raise cfg.ConfigError(f"optional_views: expected some of the cameras {spec.cameras}, got {cfg.shown(names)}")
    return tuple(names)


def _check_spec(spec: Spec) -> None:
    cfg.check_bounds(spec, **{k: (k in ("height", "width", "chunk"), most) for k, most in _SIDES.items()})
    cfg.check_bounds(spec, fps=(1e-6, 1e6), frame_offsets=(1, spec.chunk))
    if not 1 <= spec.views <= 64 or len(spec.frame_offsets) > 256 or len(spec.past_offsets) > 256:
        raise cfg.ConfigError("spec: 1 to 64 cameras, and at most 256 frame_offsets and past_offsets are supported")


def check_embodiment(name: str, embodiment: Embodiment, spec: Spec) -> None:
    """Raises WamkitError for an embodiment of a mixture that does not fit the shapes `spec`."""
    parts = (("state", embodiment.state_size, spec.proprio_dim), ("action", embodiment.action_size, spec.action_dim))
    fits = len(embodiment.views) == spec.views and all(-1 <= v < 64 for v in embodiment.views)
    for part, size, expected in parts:
        fits &= size == expected
        for slot in getattr(embodiment, part):
            own, scales = range(8192)[slot.own], (slot.shift, slot.scale)
            fits &= 0 <= slot.field.start < slot.field.stop == own.stop and 0 <= slot.at < slot.at + slot.size <= size
            fits &= all(len(x) in (0, slot.size) and all(abs(v) < 3e38 for v in x) for x in scales)
            fits &= 0 <= slot.limit < 3e38
    own_size = max((slot.field.stop for slot in embodiment.action), default=0)
    fits &= all(0 <= i < own_size and abs(v) < 3e38 for i, v in embodiment.locked)
    if not fits:
        raise WamkitError(f"embodiments.{name} does not fit the shapes of the model; it was changed after training")


def run_from_dict(data: Mapping[str, Any]) -> tuple[RunConfig, Spec, dict[str, Any]]:
    """Configuration, shapes and statistics of what `run_to_dict` gave."""
    spec = cfg.from_dict(Spec, data["spec"])
    _check_spec(spec)
    return config_from_dict(data), spec, _statistics(data["statistics"], spec)


def find_device(name: str) -> torch.device:
    """The device of that name. Raises WamkitError if it cannot be used here."""
    try:
        found = torch.device(name)
        torch.zeros(1, device=found).item()  # `meta` holds no values; a missing GPU shows only in use
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        reason = str(e).splitlines()[0]
        raise WamkitError(f"device '{name}' cannot be used here ({reason}); `cpu` always can") from e
    return found
