"""The trainer: every family, every stage, from the first step to a checkpoint that resumes bit for bit.

A finished run that is given more steps trains further. It goes on from the state that it ended with, averaged weights
and the optimiser's moments, and all its stages come again, each with its share of the additional steps: warm-up and
cosine are laid out anew over these. Windows and noise go on with the step.

All randomness of step k (windows, augmentation, noise, noise levels) is a pure function of (seed, k). A resumed run
needs no random state but the step, and ends with the same weights as one that was never interrupted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from wamkit.config import ConfigError
from wamkit.data.loading.augment import Augment
from wamkit.data.loading.mixture import Mixture
from wamkit.data.loading.windows import Frames, Prefetcher
from wamkit.errors import nearest
from wamkit.families.base import Family, Stage
from wamkit.runs.config import TrainConfig
from wamkit.runs.run import find_device
from wamkit.training.divergence import Taken, check_finite
from wamkit.training.imagined import futures, is_shown, shown_windows
from wamkit.training.interruption import Interrupted, stop_signals
from wamkit.training.metrics import Metrics, NoMetrics, loss_means
from wamkit.training.precision import autocast
from wamkit.training.precompute import FeatureCache, Precompute
from wamkit.training.run_folder import RunFolder, digest
from wamkit.training.schedule import learning_rate, stage_spans
from wamkit.training.step import StepResult, check_learns, check_prefix, make_step
from wamkit.training.trackers.base import DEFAULT_TRACKERS
from wamkit.training.tracking import goes_on
from wamkit.training.world import World
from wamkit.types import Batch, WamkitError
from wamkit.workers import one_thread

_DECODERS = 4  # threads that make batches where videos are decoded for them

Watch = Callable[[Family], dict[str, float]]
"""Figures by name of the model as a checkpoint would serve it. It must not change the model."""
Validate = Callable[[Frames, Family], dict[str, float]]
"""The same on frames that training leaves out."""


class Progress(NamedTuple):
    """A step that was taken.

    step: number of steps so far, this one included.   lr: its learning rate.   result: its losses and gradient norm.
    saved: whether the trainer has written a checkpoint of it.   save: writes one.
    """

    step: int
    lr: float
    result: StepResult
    saved: bool
    save: Callable[[], None]


SHOWN = 4
"""Windows, spread over the data, whose frames trackers show."""


class Trainer:
    """Trains one family on one set of frames and writes a run folder. Calling `run` again continues where it stopped.

    A finished run continues, too, if the configuration has more steps than it took; see the module.

    cache: keeps features of frozen encoders on disk.   held_out: frames of the episodes that are left out, kept for
    whoever validates.   trackers: names of `wamkit.training.trackers.base.TRACKERS`.   world: the processes that train
    together; the first writes the run folder.
    Raises ConfigError for an augmentation that does not fit the images, WamkitError for a device that is not there.
    """

    def __init__(
        self,
        model: Family,
        frames: Frames | Mixture,
        config: TrainConfig,
        folder: RunFolder,
        cache: FeatureCache | None = None,
        trackers: Sequence[str] = DEFAULT_TRACKERS,
        held_out: Frames | None = None,
        world: World = World(),  # noqa: B008 (frozen)
    ):
        height, width = model.spec.height, model.spec.width
        if 2 * config.shift >= min(height, width):
            raise ConfigError(
                f"train.shift = {config.shift}: images are {height}x{width}; choose less than half of that"
            )
        check_prefix(model, config.prefix)
        check_learns(model)
        device = find_device(config.device)
        # Of a model that is divided, no process has room for more than its part.
        self.model, self.config, self.folder = model.to(device) if world.size == 1 else model, config, folder
        self.trackers, self.held_out, self.world = tuple(trackers), held_out, world
        augment = Augment(config.shift, config.colour, config.drop_view)
        self.windows = frames.windows(model.spec, seed=config.seed, batch_size=config.batch_size, augment=augment)
        self.strategy = make_step(self.model, config, world)
        self.precompute = Precompute(self.model, self.windows, config, self.strategy, cache)
        self.step = self.began = 0  # `began`: the step from which stages and learning rates are laid out
        self.elapsed_s = self.cpu_s = 0.0

    def run(self, watch: Watch | None = None) -> Family:
        """Trains to the end of the last stage and returns the model with its averaged weights.

        watch: asked at every checkpoint; its figures join the metrics, as a learning curve.
        Raises TrainingDiverged, or Interrupted after saving when a signal of `SIGNALS` arrived.
        """
        for _ in self.steps(watch):
            pass
        return self.model.eval()

    def steps(self, watch: Watch | None = None) -> Iterator[Progress]:
        """Trains as `run` does, for a caller that has a loop of its own: every step is taken when it is asked for.

        The weights are the averaged ones once the iterator has ended. Until then, or until it is closed, the run folder
        is held against other processes, and signals are noted instead of obeyed.
        """
        with self._writing(), one_thread(), stop_signals() as stopped:
            self.folder.check_shared(self.world)
            self.world.check_same({"configuration": digest(self.folder.config), "PyTorch": torch.__version__})
            self._check_loss_weights()
            self._resume()
            self.world.check_same({"step": str(self.step)})  # of the checkpoint that each of them sees
            # Only now: a run that was refused must not leave its options in the folder of another.
            if self.world.first:
                self.folder.save_config()
            if 0 < self.began == self.step < self.config.steps:
                more = f"from step {self.began} to {self.config.steps}"
                print(f"{self.folder.path} is trained further, {more}", flush=True)
            place = (self.folder.path, self.step, self.config.steps, self.trackers, self.folder.config)
            with Metrics(*place) if self.world.first else NoMetrics() as metrics:
                if not self.step:
                    shown = np.linspace(0, len(self.windows) - 1, SHOWN).astype(np.int64)
                    metrics.show_frames(self.windows.gather(shown))
                for stage, start, end in stage_spans(self.model.stages(), self.config.steps - self.began):
                    if self.step < self.began + end:
                        yield from self._stage(stage, self.began + start, self.began + end, metrics, stopped, watch)
        self.strategy.finish()

    def _writing(self) -> AbstractContextManager[None]:
        return self.folder.writing() if self.world.first else nullcontext()

    def _stage(
        self, stage: Stage, start: int, end: int, metrics: Metrics | NoMetrics, stopped: list[str], watch: Watch | None
    ) -> Iterator[Progress]:
        self.strategy.begin(stage)
        self.precompute.prepare(stage, end - start)
        threads = min(_DECODERS, os.cpu_count() or 1) if self.windows.decodes else 1
        taken: list[Taken] = []
        draw = partial(self.windows.batch, rows=self.world.rows(self.config.batch_size))
        with closing(Prefetcher(draw, self.step, end, threads=threads)) as batches:
            while self.step < end:
                began, waited, cpu = time.perf_counter(), batches.waited_s, time.process_time()
                batch = next(batches)
                lr = stage.lr * learning_rate(self.step, start, end, self.config)
                result = self.strategy(batch, self.step, lr)
                taken.append(Taken(self.step, lr, result))
                signal, done = self.world.agreed(next(iter(stopped), "")), self.step + 1
                logs = done % self.config.log_every == 0 or done == end
                saves = done % self.config.save_every == 0 or done == self.config.steps or bool(signal)
                if self.config.device == "cpu" or logs or saves:  # other devices would have to be waited for
                    check_finite(taken, self.windows.batch, self.folder.path)
                    taken.clear()
                seconds = time.perf_counter() - began
                self.elapsed_s += seconds
                self.cpu_s += time.process_time() - cpu
                self.step = done
                if done == end:
                    self.strategy.average.adopt(self.model, stage)
                if logs:
                    times = {"seconds": seconds, "wait": (batches.waited_s - waited) / seconds}
                    self._log(metrics, stage, batch, result, {"lr": lr, "grad_norm": result.norm.item()} | times)
                metrics.advance()
                if self.trackers and is_shown(done, self.config.steps):
                    self._show_imagined(metrics)
                save = partial(self._save, stage, metrics, watch)
                if saves:
                    save()
                if signal:
                    raise Interrupted(
                        f"{signal}: stopped and saved at step {done} of {self.config.steps} in {self.folder.path}; "
                        "the same command continues",
                        signal,
                    )
                yield Progress(done, lr, result, saves, save)

    @torch.no_grad()
    def _log(
        self, metrics: Metrics | NoMetrics, stage: Stage, batch: Batch, result: StepResult, figures: dict[str, float]
    ) -> None:
        every = batch
        if self.windows.names:
            every = replace(batch, source=self.world.gather(batch.source, self.config.batch_size))
        losses = loss_means(result.losses_B, every, self.windows.names)
        # Divided weights are bfloat16 where a GPU trains in it, and need autocast.
        with autocast(self.config) if self.world.size > 1 else nullcontext():
            diagnostics = self.model.diagnostics(batch.to(self.config.device), stage.name)
        metrics.write({"step": self.step, "stage": stage.name} | figures | losses | diagnostics)
        metrics.show(stage.name, losses)

    def _show_imagined(self, metrics: Metrics | NoMetrics) -> None:
        """Shows what the averaged weights imagine. No fault in it stops training, and no weight changes."""
        if self.world.size == 1 and not metrics.tracking:
            return
        served = self.strategy.average.served(self.model)
        if not metrics.tracking:  # another process shows it
            return
        with goes_on(f"a look at imagined frames at step {self.step}"):
            batch = self.windows.gather(shown_windows(self.windows, SHOWN))
            if (imagined := futures(served, batch)) is not None:
                metrics.show_imagined(batch, imagined, self.step)

    def _check_loss_weights(self) -> None:
        """Refuses weights of losses that the family does not return: asks every stage once, on two rows."""
        batch = self.windows.gather(np.zeros(2, np.int64)).to(self.config.device)
        with torch.no_grad(), autocast(self.config):
            losses = [self.model(batch, torch.Generator().manual_seed(0), s.name) for s in self.model.stages()]
        names = sorted({name for stage in losses for name in stage})
        for name, _ in self.config.weights:
            if name not in names:
                raise WamkitError(
                    f"train.weights names the loss '{name}'{nearest(name, names)}, but '{self.model.name}' returns "
                    f"{', '.join(names)}"
                )

    def _save(self, stage: Stage, metrics: Metrics | NoMetrics, watch: Watch | None) -> None:
        average = self.strategy.average
        average.copy_frozen(self.model)
        if watch is not None:
            served = average.served(self.model)
            if self.world.first:
                metrics.write({"step": self.step, "stage": stage.name, **watch(served)})
        metrics.flush()
        place = {"seed": self.config.seed, "step": self.step}
        times = {"elapsed_s": self.elapsed_s, "cpu_s": sum(self.world.all(self.cpu_s))}
        extra = times | {"loader": place} | ({"began": self.began} if self.began else {})
        self.folder.save(self.world, step=self.step, rng_state=place, extra=extra, **self.strategy.state())
        if self.world.first:
            metrics.tracking.commit()
        self.world.wait()

    def _resume(self) -> None:
        if (saved := self.folder.load(self.world, self.strategy.place)) is not None:
            self.strategy.load_state(saved)
            self.step, self.elapsed_s = saved.step, saved.extra["elapsed_s"]
            self.cpu_s = saved.extra.get("cpu_s", self.elapsed_s) if self.world.first else 0.0  # their sum is saved
            further = saved.config["train"]["steps"] != self.config.steps
            self.began = saved.step if further else saved.extra.get("began", 0)
