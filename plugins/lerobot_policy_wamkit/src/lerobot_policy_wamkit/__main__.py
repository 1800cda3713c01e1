"""Writes a run as a folder that `--policy.path` of LeRobot's commands takes:

python -m lerobot_policy_wamkit runs/first policies/first
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lerobot_policy_wamkit.configuration_wamkit import WamkitConfig
from lerobot_policy_wamkit.modeling_wamkit import WamkitPolicy
from lerobot_policy_wamkit.processor_wamkit import make_wamkit_pre_post_processors
from wamkit.files import check_place
from wamkit.types import WamkitError


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m lerobot_policy_wamkit", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder, or a file of wamkit export")
    parser.add_argument("out", type=Path, help="folder to write")
    args = parser.parse_args()
    try:
        check_place(args.out / "config.json")
        config = WamkitConfig(run=args.run, device="cpu")
        policy = WamkitPolicy(config)
        policy.save_pretrained(args.out)
        for pipeline in make_wamkit_pre_post_processors(config):
            pipeline.save_pretrained(args.out)
    except WamkitError as error:
        print(f"wamkit: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: step {policy.run.step}; lerobot-rollout --policy.path={args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
