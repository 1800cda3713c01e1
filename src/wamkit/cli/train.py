"""`wamkit train`: a family learns from a data set."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from wamkit.cli.parse import COMMANDS, Options, extend, parse_resolved, peek
from wamkit.config import Gigabytes, Side
from wamkit.errors import WamkitError

if TYPE_CHECKING:
    from wamkit.runs.config import RunConfig
    from wamkit.training.launch import LoadingOptions


@dataclass(frozen=True)
class Train(Options):
    """Train a family on a data set.

    The same command continues a run that was cut short, and with more --train.steps trains a finished one further. The
    options of the model and of training start from a recipe:
    `wamkit train --recipe NAME --help` lists those of another one. A recipe that is called as a family is fitted to the
    data: training begins by printing what follows from them, which stands where no option says otherwise.
    """

    argv: ClassVar[tuple[str, ...]] = ()
    """The words of the command after `wamkit train`, as they were typed."""

    _: KW_ONLY
    data: Path
    """Data set folder, from `wamkit collect` or `wamkit import`; a data set on the Hub, hf://USER/NAME, or some of its
    episodes alone, hf://USER/NAME:0-10; in an object store, s3://BUCKET/FOLDER; or a mixture of several, from
    `wamkit mix`."""
    out: Path
    """Run folder."""
    recipe: str = "unified"
    """Recipe that the options below start from; `wamkit list` names all recipes."""
    from_: Path | None = None
    """Run whose weights to start from: its folder, a file of `wamkit export`, or USER/NAME on the Hub. Family and sizes
    of the model are its own; what does not fit the new data starts anew, and a table says what."""
    size: tuple[Side, Side] | None = None
    """Height and width that images are resized to, by area averaging; the recorded ones if not given. The run keeps
    them: it takes images of any size, and resizes them in the same way."""
    cache_gb: Gigabytes = 16.0
    """Size limit of the cache of decoded frames beside the data, in GB. Frames beyond it are decoded at each use."""
    cache_dir: Path | None = None
    """Folder of all caches; beside the data if not given, or in the user's cache where that cannot be written."""
    feature_cache_gb: Gigabytes = 0.0
    """Size limit of the cache of features beside the data, in GB. Further runs with the same frozen encoder read it."""
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    """Video decoder. torchcodec needs wamkit[torchcodec] and FFmpeg's libraries, and gives the same frames."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers of figures, images and videos, beside metrics.jsonl: tensorboard, csv, trackio, wandb, or none."""

    @classmethod
    def resolve(cls, argv: Sequence[str]) -> type[Options]:
        """Adds the options of the recipe."""
        from wamkit.runs.recipes import RECIPES

        if peek(argv, "--from", ""):
            with contextlib.suppress(WamkitError):  # `run` says what is wrong
                return cls.starting_from(_started(argv), argv)
        return cls.starting_from(RECIPES.get(peek(argv, "--recipe", cls.recipe))(), argv)

    @classmethod
    def starting_from(cls, config: RunConfig, argv: Sequence[str]) -> type[Train]:
        """The options with the parts of `config` as defaults."""
        from wamkit.runs.config import PARTS

        options = extend(cls, {part: getattr(config, part) for part in PARTS})
        options.argv = tuple(argv)
        return options


@COMMANDS.register("train")
def run(args: Train) -> None:
    """Trains, and prints the next command."""
    from wamkit.data.format.hub import data_folder
    from wamkit.files import check_place
    from wamkit.training.trackers.base import check_trackers

    check_trackers(args.trackers)
    data = args.data if args.data.is_file() else data_folder(args.data)
    check_place(args.out / "config.json")
    from wamkit.training.world import first_speaks

    with first_speaks():
        _train(args, data)


def _train(args: Train, data: Path) -> None:
    from wamkit.eval.validation import held_out_losses
    from wamkit.files import caching_in
    from wamkit.training.launch import Start, train_run
    from wamkit.training.trackers.base import openings
    from wamkit.training.world import joined

    config, loading = configured(args, data)
    start = None if args.from_ is None else Start.of(args.from_, args.out)
    command = shlex.join(["wamkit", "train", *args.argv])
    with caching_in(args.cache_dir), joined(config.train.device) as world:
        more = {"loading": loading, "trackers": args.trackers, "validate": held_out_losses, "start": start}
        train_run(config, data, args.out, command=command, world=world, **more)
        if world.first:
            print(f"trained: {args.out}")
            for line in openings(args.trackers, args.out):
                print(line)
            print(f"next: {_next(args, config.episodes.held_out)}")


def configured(args: Train, data: Path) -> tuple[RunConfig, LoadingOptions]:
    """The run that the options describe, and how its data are loaded. Says what it fits to the data in `data`."""
    from wamkit.runs.base_model import video_backbone
    from wamkit.runs.config import PARTS
    from wamkit.runs.fitted import fitted
    from wamkit.runs.recipes import RECIPES, FittedRecipe
    from wamkit.training.launch import LoadingOptions

    recipe, size = RECIPES.get(args.recipe), args.size or args.window.size
    starts = args.from_ is not None
    config = _started(args.argv) if starts else recipe()
    if isinstance(recipe, FittedRecipe) and not (starts and video_backbone(config.model) is not None):
        config = dataclasses.replace(_resized(config, size), episodes=args.episodes)
        config, told = fitted(config, data, args.out, keep_model=starts)
        args = parse_resolved(Train.starting_from(config, args.argv), "train", args.argv)
        print("\n".join(told), flush=True)
    config = dataclasses.replace(config, **{part: getattr(args, part) for part in PARTS})
    config = _resized(config, args.size or config.window.size)
    return config, LoadingOptions(args.cache_gb, args.feature_cache_gb, args.decoder)


def _started(argv: Sequence[str]) -> RunConfig:
    """The configuration to begin with for a run that starts from the weights of another one, as `argv` says.

    Model and windows are those of the other run, all else is that of its family's recipe or of the one that is named.
    Raises WamkitError for a recipe of another family.
    """
    from wamkit import old_names
    from wamkit.files import read_json
    from wamkit.runs.base_model import video_backbone
    from wamkit.runs.checkpoint import has_checkpoint
    from wamkit.runs.config import config_from_dict, require_run
    from wamkit.runs.recipes import RECIPES
    from wamkit.runs.run import Run
    from wamkit.runs.transfer import check_family

    path, out, recipe = (peek(argv, option, "") for option in ("--from", "--out", "--recipe"))
    if out and has_checkpoint(Path(out)):  # it goes on, though the other run may be gone
        source = config_from_dict(old_names.run_config(read_json(Path(out) / "config.json")))
    else:
        source = Run.open(require_run(Path(path))).config
    if video_backbone(source.model) is not None and not recipe:
        return source  # no recipe of two cores: its own training, windows and size
    known = recipe or source.family in RECIPES.names()
    config = RECIPES.get(recipe or source.family)() if known else source
    check_family(path, source.family, config.family)
    return dataclasses.replace(config, model=source.model, window=dataclasses.replace(source.window, size=None))


def _resized(config: RunConfig, size: tuple[int, int] | None) -> RunConfig:
    return dataclasses.replace(config, window=dataclasses.replace(config.window, size=size))


def _next(args: Train, held_out: int) -> str:
    """The command that uses or evaluates the run, or what it still lacks."""
    from wamkit.runs.config import family_class
    from wamkit.runs.run import Run

    run = Run.open(args.out)
    if family_class(run.config.family).images_alone:
        return f"wamkit label VIDEO --with {args.out} --out LABELLED"
    if run.provenance.env.env:
        return f"wamkit eval {args.out}"
    if held_out:
        return f"wamkit eval {args.out} --offline; in an environment, with --env NAME instead"
    acting = f" --embodiment {'|'.join(run.embodiments)}" if run.embodiments else ""
    rest = "of episodes that it was not trained on (--episodes.held-out leaves some out)"
    return f"wamkit eval {args.out} --data DATA{acting}, {rest}; in an environment, with --env NAME instead of --data"
