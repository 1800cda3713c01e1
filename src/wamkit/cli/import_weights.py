"""`wamkit import-weights`: a released checkpoint of another program as a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from math import inf
from pathlib import Path
from typing import Annotated

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import Between, Rate


@dataclass(frozen=True)
class ImportWeights(Options):
    """Write released weights of another program as a run: eval, serve, diagnose and train --from work on it."""

    name: str
    """Name of the model: fastwam, easywam, lingbot_va, dreamzero."""
    source: str
    """Folder with its safetensors and config.json, as LeRobot writes them, or its name on the Hub, USER/NAME."""
    _: KW_ONLY
    out: Path
    """Run folder to write."""
    base: str = ""
    """Folder or hub id of the video model that it stands on, in the layout of diffusers: its autoencoder and text
    encoder are read there. That of its authors if not given."""
    image_encoder: str = ""
    """Folder or hub id of a model with image_encoder/, the CLIP that DreamZero reads images with."""
    robot: Annotated[int, Between(0, inf)] = 0
    """Number of the robot whose weights are taken, where each has its own."""
    cameras: tuple[str, ...] = ()
    """Names of the robot's cameras, from left to right; those of its config.json if not given."""
    fps: Rate = 20.0
    """Steps a second of the robot."""

    @classmethod
    def resolve(cls, argv: Sequence[str]) -> type[Options]:
        """Keeps the command for the run's config.json."""
        cls.argv = tuple(argv)  # type: ignore[attr-defined]
        return cls


@COMMANDS.register("import-weights")
def run(args: ImportWeights) -> None:
    """Writes the run, says what differs from the program that it is from, and names the next commands."""
    from wamkit.errors import WamkitError
    from wamkit.files import WriteError
    from wamkit.runs.checkpoint import has_checkpoint
    from wamkit.runs.foreign.base import FOREIGN, Source
    from wamkit.training.imported import import_weights
    from wamkit.training.run_folder import check_run_folder

    importer = FOREIGN.get(args.name)
    check_run_folder(args.out)
    if has_checkpoint(args.out):
        raise WriteError(f"{args.out} holds a run: choose another --out")
    options = {"base": args.base, "image_encoder": args.image_encoder, "robot": args.robot}
    source = Source.of(args.source, cameras=args.cameras, fps=args.fps, **options)
    try:
        foreign = importer(source)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, WamkitError):
            raise
        raise WamkitError(f"{source.folder / 'config.json'} is not as that of {args.name} is ({error})") from error
    family = import_weights(foreign, args.out, shlex.join(["wamkit", "import-weights", *getattr(args, "argv", ())]))
    sizes = sum(p.numel() for p in family.parameters())
    print(f"{args.out}: the family {family.name}, {len(foreign.weights)} tensors, {sizes:,} parameters")
    for line in foreign.differs:
        print(f"note: {line}")
    print(f"next: wamkit serve {args.out}; wamkit train --from {args.out} --data DATA --out RUN")
