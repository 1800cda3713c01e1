"""A run of wamkit as a policy of LeRobot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from lerobot_policy_wamkit.configuration_wamkit import WamkitConfig
from lerobot_policy_wamkit.lockstep import Lockstep
from lerobot_policy_wamkit.observations import IMAGE, IMAGES, observations, view_keys
from wamkit.inference.model import load
from wamkit.inference.policy import Policy, Session
from wamkit.runs.checkpoint import has_checkpoint
from wamkit.runs.config import require_run
from wamkit.runs.exported import export
from wamkit.runs.run import Run
from wamkit.types import WamkitError


class WamkitPolicy(PreTrainedPolicy):
    """A run that acts; or, if `dataset_meta` is given, one that `lerobot-train` trains on that data set.

    A folder of this policy holds config.json and model.safetensors, the file that `wamkit export` writes.
    Raises WamkitError for what is no run, and for cameras or actions that are not those of the run.
    """

    config_class = WamkitConfig
    name = "wamkit"

    def __init__(self, config: WamkitConfig, dataset_meta: Any = None, run: Run | None = None, **unused: Any):
        super().__init__(config)
        self.lockstep: Lockstep | None = None
        self._sessions: list[Session] = []
        self._episodes = 0
        if dataset_meta is None:
            self._serve(run or _opened(config.run))
            self._compare_features()
        elif not config.run:
            raise WamkitError("name the run folder to write: --policy.run=runs/NAME")
        else:
            device = ["--train.device", str(config.device)]
            self.lockstep = Lockstep(Path(dataset_meta.root), Path(config.run), [*device, *config.train])
            self.anchor = self.lockstep.anchor

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        dataset_meta: Any = None,
        **more: Any,
    ) -> WamkitPolicy:
        """The policy of a folder, or of a repository of the hub, that holds config.json and model.safetensors.

        dataset_meta: to resume training, which needs the run folder that the configuration names.
        """
        config = config or PreTrainedConfig.from_pretrained(pretrained_name_or_path, revision=revision)
        if dataset_meta is not None:
            if not config.run or not has_checkpoint(Path(config.run)):
                raise WamkitError(
                    f"{pretrained_name_or_path} is for inference; training goes on in a run folder, which "
                    f"--policy.run names, and {config.run or 'none'} is no such folder here"
                )
            return cls(config, dataset_meta=dataset_meta)
        path = Path(pretrained_name_or_path)
        file = path / SAFETENSORS_SINGLE_FILE
        if not path.is_dir():
            file = hf_hub_download(str(pretrained_name_or_path), SAFETENSORS_SINGLE_FILE, revision=revision)
        return cls(config, run=_opened(file)).eval()

    def _serve(self, run: Run) -> None:
        """Loads the model that acts."""
        if run.embodiments:
            raise WamkitError(
                f"{run.path} was trained on a mixture of robots, which this policy does not tell apart; train on one"
            )
        config, model = self.config, load(run, str(self.config.device))
        self.run, self.family = run, model.family
        self.policy = Policy(
            model, replan_every=config.replan_every, query=config.query, steps=config.denoising_steps, seed=config.seed
        )

    def _compare_features(self) -> None:
        """Completes the features of the configuration, or compares those that LeRobot took from an environment."""
        config, spec = self.config, self.run.spec
        image = PolicyFeature(FeatureType.VISUAL, (3, spec.height, spec.width))
        own = {config.cameras.get(camera, IMAGES + camera): image for camera in spec.cameras}
        if spec.proprio_dim:
            own[OBS_STATE] = PolicyFeature(FeatureType.STATE, (spec.proprio_dim,))
        action = {ACTION: PolicyFeature(FeatureType.ACTION, (spec.action_dim,))}
        config.input_features, config.output_features = config.input_features or own, config.output_features or action
        self._keys(k for k, f in config.input_features.items() if f.type is FeatureType.VISUAL)
        for key, feature in {**own, **action}.items():
            given = {**config.input_features, **config.output_features}.get(key, feature)
            if feature.type is not FeatureType.VISUAL and tuple(given.shape) != feature.shape:
                raise WamkitError(
                    f"{self.run.path} was trained on {feature.shape[0]} values of {key}, and here it has {given.shape}"
                )

    def _keys(self, found: Iterable[str]) -> tuple[str | None, ...]:
        return view_keys(self.run.spec.cameras, set(found), self.config.cameras, self.run.optional_views)

    def get_optim_params(self) -> list[nn.Parameter]:
        """The anchor of `Lockstep`. wamkit's trainer moves the weights itself."""
        return [self._training().anchor]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Takes one step of wamkit's trainer, on windows of its own: of `batch`, its number of rows alone matters.

        Returns the loss of the step and its parts. Raises WamkitError for a policy that was loaded to act, and in
        evaluation mode: to evaluate may not train.
        """
        lockstep = self._training()
        if not self.training:
            raise WamkitError(
                "wamkit computes no loss on LeRobot's held-out episodes: leave out --eval_steps; "
                """--policy.train='["--episodes.held-out", "5"]' holds some out for wamkit eval --data"""
            )
        return lockstep.step(len(batch[ACTION]))

    def reset(self) -> None:
        """Begins new episodes, one for each row of the next batch."""
        if self.lockstep is not None and not self.training:
            self._serve(self.lockstep.saved())
        self._episodes += len(self._sessions)
        self._sessions = []

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **unused: Any) -> Tensor:
        """The next action of each row, float32 (B, a) in the robot's units, as `wamkit.Policy.act` gives it."""
        rows = self._rows(batch)
        if not self._sessions:
            self._sessions = [Session(self.config.seed + self._episodes + i) for i in range(len(rows))]
        if len(rows) != len(self._sessions):
            raise WamkitError(f"a batch of {len(rows)} rows after one of {len(self._sessions)}: call reset() between")
        acted = [self.policy.act(row, session) for row, session in zip(rows, self._sessions, strict=True)]
        self._sessions = [session for _, session in acted]
        return torch.from_numpy(np.stack([action for action, _ in acted])).to(self.config.device)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **unused: Any) -> Tensor:
        """A chunk of actions for each row, float32 (B, A, a), without a history."""
        model = self.policy.model
        rows = [replace(row, past=(None,) * len(model.spec.past_offsets)) for row in self._rows(batch)]
        answer = model.sample(rows, self.policy.query, seed=self.config.seed, steps=self.policy.steps)
        assert answer.actions is not None
        return torch.from_numpy(answer.actions).to(self.config.device)

    def _rows(self, batch: dict[str, Any]) -> list[Any]:
        spec = self.run.spec
        keys = self._keys(key for key in batch if key == IMAGE or key.startswith(IMAGES))
        return observations(batch, keys, spec.proprio_dim, (spec.height, spec.width))

    def _save_pretrained(self, save_directory: Path, state_dict: Any = None) -> None:
        """Writes config.json and model.safetensors. The features follow from the run, so config.json names none."""
        run = self.run if self.lockstep is None else self.lockstep.saved()
        kept = self.config.run if self.lockstep is not None else ""
        config = replace(self.config, run=kept, input_features={}, output_features={}, pretrained_path=None)
        config._save_pretrained(save_directory)
        export(run, save_directory / SAFETENSORS_SINGLE_FILE)

    def _training(self) -> Lockstep:
        if self.lockstep is None:
            raise WamkitError("this policy was loaded to act; lerobot-train trains one, --policy.run=NEW_FOLDER")
        return self.lockstep


def _opened(path: str | Path) -> Run:
    if not str(path):
        raise WamkitError("name the run: --policy.run=runs/NAME, or --policy.path=FOLDER of a policy that was saved")
    require_run(Path(path))
    return Run.open(path)
