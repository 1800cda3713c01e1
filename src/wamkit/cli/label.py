"""`wamkit label`: video becomes demonstrations."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import Count

if TYPE_CHECKING:
    from wamkit.data.format.store import Store


@dataclass(frozen=True)
class Label(Options):
    """Label video with the actions that a run reads off it, as a data set to train on.

    The run answers the query `inverse`; the recipe metaworld-inverse trains one for it alone, which also reads the
    state. The same command continues one that was cut off.
    """

    data: Path
    """Data set of videos, or hf://USER/NAME."""
    _: KW_ONLY
    with_: Path
    """Run that reads the actions: its folder, a file of `wamkit export`, or USER/NAME on the Hub."""
    out: Path
    """Folder of the labelled data set."""
    embodiment: str = ""
    """Data set of a mixture whose robot the videos show."""
    steps: Count | None = None
    """Denoising steps a query; the model's own number if not given."""
    batch: Count = 64
    """Windows that are asked at a time."""
    replace: bool = False
    """Label data that have actions, too, and tell how far the labels are from them."""


@COMMANDS.register("label")
def run(args: Label) -> None:
    """Labels, and prints how far the windows agree and, where the data have actions, how far off the labels are."""
    from wamkit.data.format.hub import data_folder
    from wamkit.data.format.remedy import IMPORTED
    from wamkit.files import check_place
    from wamkit.runs.config import require_run

    path, data = require_run(args.with_), data_folder(args.data)
    check_place(args.out / IMPORTED)
    from wamkit.data.format.store import Store
    from wamkit.data.importers.run import left_out
    from wamkit.inference.labels import LabelOptions, label
    from wamkit.runs.run import Run

    opened = Run.open(path)
    options = LabelOptions(args.embodiment, args.steps, args.batch, args.replace)
    labelled = label(opened, data, args.out, options)
    print(f"labelled: {len(labelled)} episodes, {labelled.frames} frames in {labelled.root}")
    if short := left_out(labelled.root):
        first, reason = next(iter(short.items()))
        print(f"note: {len(short)} episodes are left out, the first is {first}: {reason}")
    _print_errors(Store.open(data), labelled, opened.spec.frame_offsets[-1])
    print(f"next: wamkit mix DEMONSTRATIONS:0.3 {args.out}:0.7 --out mixture.json")


def _print_errors(store: Store, labelled: Store, ahead: int) -> None:
    from wamkit.data.labelled import spreads
    from wamkit.inference.labels import label_errors

    for name, value in spreads(labelled).items():
        print(f"  {name:<16} windows differ by {value:.3g}, the median of steps")
    if errors := label_errors(store, labelled, ahead):
        print("against the recorded actions, root mean square in units of the action, and share of the variance:")
        print(f"  {'':<16} {'error':>9} {'a guess':>9} {'noise':>9} {'share':>7} {'of clean':>9}")
    for e in errors:
        noise, share, clean = (
            "-" if x is None else format(x, f) for x, f in ((e.noise, ".3g"), (e.share, ".3f"), (e.clean, ".3f"))
        )
        print(f"  {e.name:<16} {e.error:>9.3g} {e.guess:>9.3g} {noise:>9} {share:>7} {clean:>9}")
