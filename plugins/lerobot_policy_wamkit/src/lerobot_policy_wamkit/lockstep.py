"""wamkit's trainer under LeRobot's training loop: one step of it for each of the loop's.

`lerobot-train` calls `forward`, `backward`, its optimizer and its scheduler in turn. Here `forward` takes a whole step
of `wamkit.training.trainer.Trainer`, gradients and weights included. What it returns for the loop to differentiate is
its loss as a function of one parameter, the `anchor`, which no network holds. The gradient of the anchor is the norm of
wamkit's gradients, so that the loop logs that; the optimizer leaves it where it is, and the scheduler shows wamkit's
learning rate. So the loop counts, logs, evaluates and saves, and wamkit learns as `wamkit train` does, to the bit.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lerobot.optim import LRSchedulerConfig, OptimizerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from wamkit.cli.parse import parse
from wamkit.cli.train import Train, configured
from wamkit.files import caching_in
from wamkit.runs.run import Run
from wamkit.training.launch import make_trainer
from wamkit.training.trackers.base import openings
from wamkit.training.trainer import Progress, Trainer
from wamkit.types import WamkitError


class Anchor(nn.Parameter):
    """The parameter that stands for the run in LeRobot's loop. steps: of the loop.   lr: wamkit's, of the last step."""

    steps: int = 0
    lr: float = 0.0


@OptimizerConfig.register_subclass("wamkit")
@dataclass
class LockstepOptimizerConfig(OptimizerConfig):
    """An optimizer that moves nothing. Its numbers are not those of wamkit's: see `train` of the policy's options."""

    lr: float = 1.0
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0

    def build(self, params: Any) -> torch.optim.Optimizer:
        """The optimizer of the anchor alone."""
        return _Still(params, {"lr": self.lr})


@LRSchedulerConfig.register_subclass("wamkit")
@dataclass
class LockstepSchedulerConfig(LRSchedulerConfig):
    """A scheduler that shows the learning rate of wamkit's trainer."""

    num_warmup_steps: int | None = None

    def build(self, optimizer: torch.optim.Optimizer, num_training_steps: int) -> LambdaLR:
        """Tells the anchor the number of steps, which LeRobot gives to schedulers alone."""
        (anchor,) = optimizer.param_groups[0]["params"]
        anchor.steps = num_training_steps
        return LambdaLR(optimizer, lambda _: anchor.lr)


class _Still(torch.optim.Optimizer):
    def step(self, closure: None = None) -> None:
        """Moves nothing."""


class Lockstep:
    """Trains a run as `wamkit train --data data --out run OPTIONS` does, one step at a call.

    The trainer is made at the first step, when LeRobot has told the number of steps and the size of its batches.
    """

    def __init__(self, data: Path, run: Path, options: Sequence[str]) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise WamkitError("wamkit trains in one process: start lerobot-train without accelerate launch")
        self.data, self.run, self.options = data, run, tuple(options)
        self.anchor = Anchor(torch.zeros(()))
        self._trainer: Trainer | None = None
        self._steps: Iterator[Progress] = iter(())
        self._last: Progress | None = None

    def arguments(self, rows: int) -> list[str]:
        """The options of `wamkit train` for batches of `rows` windows. Checkpoints are LeRobot's to ask for."""
        steps = str(self.anchor.steps)
        own = ["--train.steps", steps, "--train.batch-size", str(rows), "--train.save-every", "1000000000"]
        return ["--data", str(self.data), "--out", str(self.run), *self.options, *own]

    def step(self, rows: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of the next step, which is taken, for the loop to differentiate; and its parts by name.

        Raises WamkitError where the run has no more steps, and as `Trainer.run`.
        """
        if self._trainer is None:
            self._trainer = self._begin(rows)
            self._steps = self._trainer.steps()
        progress = next(self._steps, None)
        if progress is None:
            raise WamkitError(
                f"{self.run} is finished, and LeRobot's loop goes on: give another --policy.run, or more --steps"
            )
        self._last, weights = progress, dict(self._trainer.config.weights)
        losses = {name: loss_B.mean().item() for name, loss_B in progress.result.losses_B.items()}
        total = sum(weights.get(name, 1.0) * loss for name, loss in losses.items())
        self.anchor.lr = progress.lr
        if progress.step == self._trainer.config.steps:
            for _ in self._steps:  # ends it, which lets go of the folder
                pass
            for line in openings(self._trainer.trackers, self.run):
                print(line, flush=True)
        return total + (self.anchor - self.anchor.detach()) * progress.result.norm.item(), losses

    def saved(self) -> Run:
        """The run as it is now, after a checkpoint of the last step."""
        if self._last is None:
            raise WamkitError(f"{self.run} has taken no step yet")
        if not self._last.saved:
            self._last.save()
            self._last = self._last._replace(saved=True)
        return Run.open(self.run)

    def _begin(self, rows: int) -> Trainer:
        arguments = self.arguments(rows)
        print(f"LeRobot's loop drives: wamkit train {shlex.join(arguments)}", flush=True)
        args = parse(Train, "train", arguments)
        config, loading = configured(args, args.data)
        with caching_in(args.cache_dir):
            return make_trainer(
                config,
                args.data,
                args.out,
                command=shlex.join(["wamkit", "train", *arguments]),
                loading=loading,
                trackers=args.trackers,
            )
