"""Options of the policy, as LeRobot's command line gives them: `--policy.type=wamkit --policy.run=runs/first`."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig

from lerobot_policy_wamkit.lockstep import LockstepOptimizerConfig, LockstepSchedulerConfig


@PreTrainedConfig.register_subclass("wamkit")
@dataclass
class WamkitConfig(PreTrainedConfig):
    """Options of `WamkitPolicy`.

    run: the run folder, or a file of `wamkit export`. For `lerobot-train`, the run folder to write.
    query: `policy`, or `joint` to imagine the future along with the actions.
    replan_every: actions that are taken of each chunk; None for half of it.
    denoising_steps: of a query; None for the model's own number.
    seed: of the noise. Row i of a batch draws from seed + i, and a reset goes on after the last row, like the seeds
        that lerobot-eval gives to environments.
    cameras: for views of the run that LeRobot names otherwise, the key of their images.
    train: for `lerobot-train`, further options of `wamkit train`.
    """

    run: str = ""
    query: str = "policy"
    replan_every: int | None = None
    denoising_steps: int | None = None
    seed: int = 0
    cameras: dict[str, str] = field(default_factory=dict)
    train: list[str] = field(default_factory=list)
    # wamkit normalises by the statistics of the run. LeRobot's processors pass everything on as it is.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {kind: NormalizationMode.IDENTITY for kind in ("VISUAL", "STATE", "ACTION")}
    )

    @property
    def observation_delta_indices(self) -> None:
        """None: the policy keeps earlier observations itself, and wamkit's trainer loads its own windows."""
        return None

    @property
    def action_delta_indices(self) -> None:
        """None, likewise."""
        return None

    @property
    def reward_delta_indices(self) -> None:
        """None."""
        return None

    def get_optimizer_preset(self) -> LockstepOptimizerConfig:
        """An optimizer that moves nothing: wamkit's trainer has its own."""
        return LockstepOptimizerConfig()

    def get_scheduler_preset(self) -> LockstepSchedulerConfig:
        """A scheduler that shows the learning rate of wamkit's trainer."""
        return LockstepSchedulerConfig()

    def validate_features(self) -> None:
        """Nothing to do: `WamkitPolicy` compares features with the run."""
