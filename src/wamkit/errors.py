"""The base of all errors, and how they name the nearest. It imports nothing slow, so that a wrong command is answered
before torch is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WamkitError(Exception):
    """Base of every error that wamkit raises on purpose: it says what was wrong, where, and what to do.

    exit_code: of a command that ends with it.
    It may quote a file or a user's own words: their line breaks become spaces, and the middle of a line that is longer
    than anybody reads is left out.
    """

    exit_code = 1

    def __str__(self) -> str:
        return shortened(super().__str__())


EXTRAS = {
    "pyarrow": "train",
    "tensorboard": "train",
    "tqdm": "train",
    "metaworld": "metaworld",
    "mujoco": "metaworld",
    "gym_pusht": "pusht",
    "gymnasium_robotics": "gymnasium-robotics",
    "gym_aloha": "aloha",
    "panda_gym": "panda",
    "pygame": "gamepad",
    "wamkit_client": "serve",
    "websockets": "serve",
    "msgpack": "serve",
    "prometheus_client": "serve",
    "h5py": "import",
    "imagecodecs": "import",
    "huggingface_hub": "hub",
    "yaml": "hub",
    "s3fs": "cloud",
    "accelerate": "pretrained",
    "transformers": "pretrained",
    "diffusers": "pretrained",
    "peft": "pretrained",
    "torchcodec": "torchcodec",
    "trackio": "trackio",
    "wandb": "wandb",
    "rerun": "rerun",
    "ray": "ray",
}
"""Packages that only a part of wamkit needs, by the name that is imported -> the extra that installs them."""


def missing_package(error: ImportError) -> str:
    """A line with the remedy, where the import of one of EXTRAS failed; "" for any other package."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return ""
    return f"the package {package} is missing: pip install 'wamkit[{EXTRAS[package]}]'"


def shortened(message: str) -> str:
    """A message on one line, whatever it quotes, without its middle if it has more than 1,000 characters."""
    line = " ".join(message.splitlines())
    return f"{line[:600]} [...] {line[-300:]}" if len(line) > 1000 else line


def nearest(name: object, options: Iterable[str]) -> str:
    """The end of an error about an unknown name: " (did you mean 'x'?)" for the option closest to it.

    An option that holds the name, or that the name holds, is close: mt10 is metaworld-mt10. Upper and lower case are
    alike. "" if none is close.
    """
    word, known = str(name).lower(), list(options)
    likeness = {x: difflib.SequenceMatcher(None, word, x.lower()).ratio() for x in known}
    holding = [x for x in known if min(len(x), len(word)) >= 3 and (word in x.lower() or x.lower() in word)]
    close = [x for x in known if likeness[x] >= 0.5]
    best = max([x for x in close if likeness[x] >= 0.8] or holding or close, key=lambda x: likeness[x], default=None)
    return "" if best is None else f" (did you mean {best!r}?)"
