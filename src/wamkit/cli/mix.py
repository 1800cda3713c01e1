"""`wamkit mix`: several data sets become one mixture to train on."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Literal

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import Side
from wamkit.hub.names import remote_name


@dataclass(frozen=True)
class Mix(Options):
    """Combine data sets into a mixture with weights, and print the share of each."""

    sources: tuple[str, ...]
    """Data sets, each as FOLDER or FOLDER:WEIGHT. A folder may be hf://USER/NAME, which the mixture then has with its
    present commit, or s3://BUCKET/FOLDER."""
    _: KW_ONLY
    out: Path
    """File of the mixture, *.json."""
    by: Literal["sample", "episode", "hour"] = "sample"
    """Unit of the weights: the share of a data set among all samples, or the count of one episode or one hour of it."""
    size: tuple[Side, Side] = (64, 64)
    """Height and width that all images are resized to."""
    views: tuple[str, ...] = ("scene",)
    """Views of the model, by the roles of cameras: scene, wrist, ego. scene+ego is one view, from either camera."""
    relative: bool = True
    """Make absolute end-effector poses relative to the pose at which an action chunk begins."""


@COMMANDS.register("mix")
def run(args: Mix) -> None:
    """Writes the file of the mixture and prints the share of each data set."""
    from wamkit.config import save_json
    from wamkit.data.format.episode_index import require_data
    from wamkit.data.format.hub import pinned
    from wamkit.data.loading.mixture_config import MixtureConfig, is_mixture, parse_sources
    from wamkit.files import check_output

    parsed = parse_sources(args.sources, args.out)
    sources = tuple(replace(s, data=pinned(s.data)) for s in parsed)
    config = MixtureConfig(sources, by=args.by, size=args.size, views=args.views, relative=args.relative)
    check_output(args.out, is_mixture)
    for source in sources:
        if not remote_name(source.data):  # opening downloads those
            require_data(args.out.parent / source.data)
    from wamkit.data.loading.mixture import opened_mixture

    mixture = opened_mixture(config, args.out.parent, chunk=16)
    save_json(args.out, config)
    for name, share, frames in zip(mixture.names, mixture.shares, mixture.frames, strict=True):
        kind = "with actions" if frames.has_action.any() else "video alone"
        print(f"  {name:<16} {share:6.1%}  {len(frames.text)} episodes, {len(frames)} frames, {kind}")
    print(args.out)
