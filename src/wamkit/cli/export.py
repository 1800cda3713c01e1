"""`wamkit export`: a run as one file."""

from __future__ import annotations

import tempfile
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from wamkit.cli.parse import COMMANDS, Options
from wamkit.errors import WamkitError


@dataclass(frozen=True)
class Export(Options):
    """Write a run as one file for inference.

    It holds weights, configuration, normalisation, image transform and provenance. `wamkit.load` reads it, and so do
    the commands that take a run, and both give the same answers as for the run folder. It cannot be trained on.
    """

    run: Path
    """Run folder."""
    _: KW_ONLY
    out: Path
    """File to write, *.safetensors."""
    merge: bool = False
    """Add the adapters of a run to the pretrained weights that they stand beside, which the file then holds."""


@COMMANDS.register("export")
def run(args: Export) -> None:
    """Writes the file and prints its name."""
    from wamkit.files import check_output, check_place, make_folder
    from wamkit.runs.config import require_run

    if args.out.suffix != ".safetensors":
        raise WamkitError(f"--out {args.out}: the file's name must end in .safetensors")
    path = require_run(args.run)
    check_place(args.out)
    from wamkit.runs.exported import export, is_export
    from wamkit.runs.run import Run

    check_output(args.out, is_export)
    opened = Run.open(path)
    if args.merge:
        from wamkit.runs.merged import merged

        make_folder(args.out.parent)
        with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
            opened = merged(opened, Path(folder))
            export(opened, args.out)
    else:
        opened.family()  # which verifies the weights
        export(opened, args.out)
    print(f"{args.out}: step {opened.step}, digest {opened.digest[:16]}")
