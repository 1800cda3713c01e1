"""The one trainer: every family, every stage, from the first step to a checkpoint that resumes bit for bit.

All randomness of step k (windows, augmentation, noise, noise levels) is a pure function of (seed, k), so a resumed run
needs no random state but the step, and gives the same weights as one that was never interrupted.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wamkit import old_names
from wamkit.config import ConfigError, nearest, save_json
from wamkit.data.loading.augment import Augment
from wamkit.data.loading.feature_cache import cached_features
from wamkit.data.loading.mixture import Mixture
from wamkit.data.loading.windows import Frames, Prefetcher
from wamkit.families.base import Family, Stage
from wamkit.files import atomic_write, exclusive, write_error
from wamkit.runs.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from wamkit.runs.config import TrainConfig
from wamkit.runs.run import find_device
from wamkit.training.optim import Optimizer
from wamkit.training.schedule import learning_rate, stage_spans
from wamkit.types import Batch, WamkitError
from wamkit.workers import one_thread

# The most memory that features of all windows may take.
FEATURE_BYTES = 2**30
_DECODERS = 4  # threads that make batches where videos are decoded for them


@dataclass(frozen=True)
class FeatureCache:
    """Where features of windows are kept from run to run, for which data (a checksum of it), and how many bytes they may take."""

    folder: Path
    data: str
    limit: int


Watch = Callable[[Family], dict[str, float]]
"""Figures of the model as a checkpoint would serve it, by name."""


class TrainingDiverged(WamkitError):
    """A loss or gradient is not finite; the message says which, when and after what."""


class Interrupted(WamkitError):
    """Training was asked to stop (Ctrl-C or SIGTERM); everything up to the named step is saved."""


def native_bf16(device: str) -> bool:
    """Whether bfloat16 products are faster than float32 here: on GPUs, and on CPUs with AVX512-BF16 or AMX."""
    if device != "cpu":
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _split(batch: Batch, parts: int) -> list[Batch]:
    """`batch` as `parts` runs of rows, of sizes that differ by one at most."""
    return [batch.rows(rows) for rows in torch.arange(len(batch), device=batch.obs.device).tensor_split(parts)]


class Trainer:
    """Trains one family on one set of frames and writes a run folder.

    out/ holds config.json, metrics.jsonl, tensorboard/, checkpoints/. Calling `run` again continues where it stopped.
    `watch` is asked at every checkpoint, and its figures join the metrics: a learning curve. It must not touch what it gets.
    `latents`: where what a frozen encoder makes of all windows is kept on disk, if it is.
    """

    def __init__(
        self,
        model: Family,
        frames: Frames | Mixture,
        config: TrainConfig,
        out: Path,
        run_config: dict,
        command: str = "",
        watch: Watch | None = None,
        latents: FeatureCache | None = None,
    ):
        self.latents = latents
        self.model, self.config, self.out, self.run_config = (
            model.to(find_device(config.device)),
            config,
            Path(out),
            run_config,
        )
        self.command, self.watch = command, watch
        if 2 * config.shift >= min(model.spec.height, model.spec.width):
            raise ConfigError(
                f"train.shift = {config.shift}: pictures are {model.spec.height}x{model.spec.width}, less than half that"
            )
        augment = Augment(config.shift, config.colour, config.drop_view)
        self.windows = frames.windows(model.spec, seed=config.seed, batch_size=config.batch_size, augment=augment)
        # Hidden matrices of the trunk and convolutions; embeddings, heads and norms are AdamW's in any case.
        muon = config.optimizer == "muon"
        matrices = [n for n, p in model.named_parameters() if muon and (p.ndim == 4 or ".blocks." in n and p.ndim == 2)]
        # On a CPU the batch is divided among threads with one core each: operators release the interpreter's lock, and
        # two such threads are twice as fast as one, while two threads inside each operator gave 1.4 times (docs/LOG.md).
        self.parts = min(config.threads, config.batch_size) if config.device == "cpu" else 1
        self.pool = ThreadPoolExecutor(self.parts, initializer=torch.set_num_threads, initargs=(1,))
        self.optimizer = Optimizer(
            model, lr=config.lr, weight_decay=config.weight_decay, matrices=matrices, threads=self.parts
        )
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self._name = {p: n for n, p in model.named_parameters()}
        self.step = 0
        self.elapsed_s = self.cpu_s = 0.0
        self.weights = dict(config.weights)
        self._bf16 = config.precision == "bf16" or (config.precision == "auto" and native_bf16(config.device))
        # Without autocast's cache of cast weights: all threads share it, and whichever leaves first empties it for the others,
        # so that where gradients are rounded would depend on their timing.
        self.autocast = lambda: torch.autocast(
            config.device.split(":")[0], torch.bfloat16, self._bf16, cache_enabled=False
        )

    # ------------------------------------------------------------------------------------------------------------- loop

    def run(self) -> Family:
        """Trains to the end of the last stage and returns the model with its averaged weights.

        Raises TrainingDiverged, or Interrupted after saving when SIGINT or SIGTERM arrived.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with exclusive(self.out), one_thread(), _stop_signals() as stopped:
                self._check_weights()
                self._resume()
                # Only now: a run that was refused must not leave its options in the folder of another.
                save_json(self.out / "config.json", {"command": self.command} | self.run_config)
                self._run_stages(stopped)
        except OSError as e:
            raise e if isinstance(e, WamkitError) else write_error(self.out, e) from e
        self.model.load_state_dict(self.average)
        return self.model.eval()

    def _run_stages(self, stopped: list[str]) -> None:
        with _metrics(self.out, self.step) as log, self._bar() as bar:
            for stage, start, end in stage_spans(self.model.stages(), self.config.steps):
                if self.step < end:
                    self._run_stage(stage, start, end, log, bar, stopped)

    def _run_stage(self, stage: Stage, start: int, end: int, log: _Log, bar: tqdm, stopped: list[str]) -> None:
        self.model.train()
        for name, p in self.model.named_parameters():
            p.requires_grad_(name.startswith(stage.prefixes))
        active = [p for p in self.model.parameters() if p.requires_grad]
        self.prepare(stage, end - start)
        threads = min(_DECODERS, os.cpu_count() or 1) if self.windows.decodes else 1
        prefetch = Prefetcher(self.windows.batch, self.step, end, threads=threads)
        try:
            while self.step < end:
                began, waited, cpu = time.perf_counter(), prefetch.waited_s, time.process_time()
                batch = next(prefetch)
                lr = stage.lr * learning_rate(self.step, start, end, self.config)
                losses, norm = self.update(batch, stage, active, lr)
                seconds = time.perf_counter() - began
                self.elapsed_s += seconds
                self.cpu_s += time.process_time() - cpu
                wait = (prefetch.waited_s - waited) / seconds
                self.step += 1
                if self.step == end:
                    self._adopt_average(stage)
                if self.step % self.config.log_every == 0 or self.step == end:
                    log.write(
                        {
                            "step": self.step,
                            "stage": stage.name,
                            "lr": lr,
                            "grad_norm": norm,
                            "seconds": seconds,
                            "wait": wait,
                            **losses,
                            **self._meters(batch, stage),
                        }
                    )
                    short = " ".join(f"{k} {v:.3f}" for k, v in losses.items() if "/" not in k)
                    bar.set_postfix_str(f"{stage.name} {short}")
                bar.update()
                if self.step % self.config.save_every == 0 or self.step == self.config.steps or stopped:
                    self._follow()
                    if self.watch is not None:
                        log.write({"step": self.step, "stage": stage.name, **self.watch(self._served())})
                    log.flush()
                    self._save()
                if stopped:
                    raise Interrupted(
                        f"{stopped[0]}: stopped and saved at step {self.step} of {self.config.steps} in {self.out}; the same command continues"
                    )
        finally:
            prefetch.close()

    def prepare(self, stage: Stage, steps: int) -> None:
        """Computes `Family.features` of all windows for a stage of so many steps, which batches then carry.

        Not where pictures are augmented, where the stage sees fewer windows than there are, or where the features would
        take more than FEATURE_BYTES, or more than `latents` allows: then the family computes them at every step.
        """
        self.windows.features, count, rows = {}, len(self.windows), self.config.batch_size

        @torch.no_grad()
        def part(low: int) -> dict[str, np.ndarray]:
            batch = self.windows.gather(np.arange(low, min(low + rows, count))).to(self.config.device)
            with self.autocast():
                return {k: v.float().cpu().numpy() for k, v in self.model.features(batch, stage.name).items()}

        if self.windows.augment or count > steps * rows:
            return
        first = self.pool.submit(part, 0).result()
        size = sum(v.nbytes / len(v) for v in first.values()) * count
        if first and self.latents is not None and size <= self.latents.limit:
            parts = lambda: self._ahead(part, range(0, count, rows))  # noqa: E731
            key = self._encoder(stage)
            self.windows.features = cached_features(self.latents.folder, key, count, parts, self.latents.limit)
        elif first and size <= FEATURE_BYTES:
            parts = [first, *self.pool.map(part, range(rows, count, rows))]
            self.windows.features = {k: np.concatenate([p[k] for p in parts]) for k in first}

    def _ahead(self, part: Callable[[int], dict[str, np.ndarray]], starts: range) -> Iterator[dict[str, np.ndarray]]:
        """`part` of all `starts` in order, by the pool's threads, a few at a time: its own `map` would begin all at once."""
        some = 4 * self.parts
        for i in tqdm(range(0, len(starts), some), unit="group", desc="encoding", leave=False):
            yield from self.pool.map(part, starts[i : i + some])

    def _encoder(self, stage: Stage) -> str:
        """A hash of what features of `stage` depend on: weights that it does not train, data, windows, precision."""
        facts = [self.latents.data, self.model.name, stage.name, str(self.model.spec), self._bf16, self.config.device]
        total = hashlib.sha256(json.dumps(facts).encode())
        trained = {n for n, _ in self.model.named_parameters() if n.startswith(stage.prefixes)}
        for name, x in self.model.state_dict().items():
            if name not in trained:
                total.update(
                    name.encode() + x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                )
        return total.hexdigest()[:32]

    def _check_weights(self) -> None:
        """Loss weights must name losses that exist: asks every stage once, on two rows."""
        batch = self.windows.gather(np.zeros(2, np.int64)).to(self.config.device)
        with torch.no_grad():
            known = {
                k
                for stage in self.model.stages()
                for k in self.model(batch, torch.Generator().manual_seed(0), stage.name)
            }
        for name in set(self.weights) - known:
            raise WamkitError(
                f"train.weights names the loss '{name}'{nearest(name, known)}, but '{self.model.name}' returns {', '.join(sorted(known))}"
            )

    def update(self, batch: Batch, stage: Stage, active: list[Tensor], lr: float) -> tuple[dict[str, float], float]:
        """One optimisation step: (mean loss by name, gradient norm before clipping)."""
        parts = _split(batch.to(self.config.device), self.parts)
        results = list(
            self.pool.map(lambda i: self._gradients(parts[i], i, stage, active, len(batch)), range(len(parts)))
        )
        losses_B = {name: torch.cat([r[0][name] for r in results]) for name in results[0][0]}
        shards = [range(i, len(active), self.parts) for i in range(self.parts)]

        def add_up(shard: range) -> list[Tensor]:
            for i in shard:
                active[i].grad = sum((r[1][i] for r in results[1:]), results[0][1][i])
            return list(torch._foreach_norm([active[i].grad for i in shard])) if shard else []

        norms = dict(zip((i for shard in shards for i in shard), sum(self.pool.map(add_up, shards), []), strict=True))
        total = torch.linalg.vector_norm(torch.stack([norms[i] for i in range(len(active))]))
        norm = total.item()
        values = {name: loss_B.mean().item() for name, loss_B in losses_B.items()}
        if not (math.isfinite(sum(values.values())) and math.isfinite(norm)):
            raise TrainingDiverged(self._diagnosis(values, losses_B, norm, batch, lr))
        values |= _by_source(losses_B, batch, self.windows.names)
        # A young average must not remember the initialisation: its memory grows with the stage.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))

        @torch.no_grad()
        def follow(moved: list[Tensor]) -> None:
            torch._foreach_lerp_([self.average[self._name[p]] for p in moved], moved, 1 - decay)

        # As torch.nn.utils.clip_grads_with_norm_, but on the pool's threads.
        scale = self.config.clip / (total + 1e-6) if norm > self.config.clip else None
        self.optimizer.step(lr, self.pool.map, follow, scale)
        self.optimizer.zero_grad()
        self.model.after_step()
        return values, norm

    def _gradients(
        self, part: Batch, index: int, stage: Stage, active: list[Tensor], rows: int
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Losses by name and gradients of their weighted sum over `part`, divided by the `rows` of the whole batch."""
        seed = np.random.SeedSequence((self.config.seed, self.step, index)).generate_state(1, np.uint64)[0] >> 1
        with self.autocast():
            losses_B = self.model(part, torch.Generator().manual_seed(int(seed)), stage.name)
        total = sum(self.weights.get(name, 1.0) * loss_B.sum() for name, loss_B in losses_B.items()) / rows
        grads = torch.autograd.grad(total, active, allow_unused=True)
        grads = tuple(torch.zeros_like(p) if g is None else g for p, g in zip(active, grads, strict=True))
        return {name: loss_B.detach() for name, loss_B in losses_B.items()}, grads

    def _adopt_average(self, stage: Stage) -> None:
        """At its end a stage's parameters become their average: later stages build on what the checkpoint will serve."""
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                if name.startswith(stage.prefixes):
                    p.copy_(self.average[name])

    @torch.no_grad()
    def _meters(self, batch: Batch, stage: Stage) -> dict[str, float]:
        return self.model.diagnostics(batch.to(self.config.device), stage.name)

    def _follow(self) -> None:
        """What no gradient moves is served as it is: parts not learning in this stage, and targets that follow others."""
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                if not p.requires_grad:
                    self.average[name].copy_(p)

    def _diagnosis(
        self, values: dict[str, float], losses_B: dict[str, Tensor], norm: float, batch: Batch, lr: float
    ) -> str:
        bad = {
            k: (~torch.isfinite(v)).nonzero().flatten().tolist()[:8]
            for k, v in losses_B.items()
            if not torch.isfinite(v).all()
        }
        inputs = [
            k
            for k, v in vars(batch).items()
            if isinstance(v, Tensor) and v.is_floating_point() and not torch.isfinite(v).all()
        ]
        rows = ", ".join(f"{k} in rows {r}" for k, r in bad.items()) or "none of the losses, but the gradient"
        return (
            f"training diverged at step {self.step}: not finite: {rows}; losses {values}, gradient norm {norm:.3g}, rate {lr:.2e}. "
            + (
                f"The data itself is not finite in {inputs}: run the data checks. "
                if inputs
                else "The data of this batch is finite. "
            )
            + (f"The last checkpoint is kept in {self.out / 'checkpoints'}; " if has_checkpoint(self.out) else "")
            + "a lower train.lr or train.clip usually helps."
        )

    def _bar(self) -> tqdm:
        return tqdm(
            total=self.config.steps, initial=self.step, desc="train", unit="step", dynamic_ncols=True, mininterval=1.0
        )

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def _served(self) -> Family:
        """A copy of the model as a checkpoint of this moment serves it: with its averaged weights."""
        served = copy.deepcopy(self.model)
        served.load_state_dict(self.average)
        return served.eval()

    def _save(self) -> None:
        optimizer = {str(i): part.state_dict() for i, part in enumerate(self.optimizer.parts)}
        save_checkpoint(
            self.out / "checkpoints",
            step=self.step,
            model_state=self.model.state_dict(),
            ema_state=self.average,
            optimizer_state=optimizer,
            rng_state={"seed": self.config.seed, "step": self.step},
            config=self.run_config,
            extra={
                "elapsed_s": self.elapsed_s,
                "cpu_s": self.cpu_s,
                "loader": {"seed": self.config.seed, "step": self.step},
            },
        )

    def _resume(self) -> None:
        if not has_checkpoint(self.out):
            return
        saved = load_checkpoint(self.out, training=True)
        before = old_names.run_config(saved.config)
        if before != self.run_config:
            found = sorted(_differences(before, self.run_config))
            named = [f"{path} was {was}, now {now}" for path, was, now in found[:4]] + ["..."] * (len(found) > 4)
            raise WamkitError(
                f"{self.out} was trained with another configuration ({'; '.join(named)}): choose another --out, or the same options"
            )
        self.model.load_state_dict(saved.model_state)
        self.average = {k: v.to(self.config.device) for k, v in saved.ema_state.items()}
        for i, part in enumerate(self.optimizer.parts):
            part.load_state_dict(saved.optimizer_state[str(i)])
        self.step, self.elapsed_s = saved.step, saved.extra["elapsed_s"]
        self.cpu_s = saved.extra.get("cpu_s", self.elapsed_s)


def _by_source(losses_B: dict[str, Tensor], batch: Batch, names: tuple[str, ...]) -> dict[str, float]:
    """Means over the rows of each data set of a mixture: "future/ego"; and how many rows each had: "rows/ego"."""
    out = {}
    for i, name in enumerate(names):
        if (here := batch.source == i).any():
            out |= {f"{k}/{name}": v[here.to(v.device)].mean().item() for k, v in losses_B.items()}
        out[f"rows/{name}"] = float(here.sum())
    return out


def _differences(a: object, b: object, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two configurations differ, and the two values there, shortened."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {*a, *b}:
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b:
        yield path, shorten(str(a), 40), shorten(str(b), 40)


@contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """Turns SIGINT and SIGTERM into an entry of the yielded list, so that the loop can save before it stops."""
    stopped: list[str] = []

    def note(number: int, frame: object) -> None:
        stopped.append(signal.Signals(number).name)

    old = {}
    try:
        old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are the caller's business
        old = {}
    try:
        yield stopped
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def read_metrics(path: Path) -> list[tuple[str, dict]]:
    """The rows of a metrics.jsonl, as text and as numbers. A last line that a kill cut short is left out.

    Raises WamkitError naming the line that is none.
    """
    rows, lines = [], path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append((line, row | {"step": int(row["step"])}))
        except (ValueError, KeyError, TypeError) as e:
            if number < len(lines):
                raise WamkitError(f"{path}, line {number} is no row of metrics; remove it, or the file") from e
    return rows


class _Log:
    """metrics.jsonl and TensorBoard, cut back to the step that a run resumes from, so that no step is logged twice."""

    def __init__(self, out: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

        path = out / "metrics.jsonl"
        rows = [line for line, row in read_metrics(path) if row["step"] <= step] if path.exists() else []
        atomic_write(path, "".join(line + "\n" for line in rows).encode())
        self._file = path.open("a")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict) -> None:
        self._file.write(json.dumps(row) + "\n")
        for key, value in row.items():
            if isinstance(value, float):
                self._board.add_scalar(key, value, row["step"])

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()


@contextmanager
def _metrics(out: Path, step: int) -> Iterator[_Log]:
    log = _Log(out, step)
    try:
        yield log
    finally:
        log.close()
