"""The command line: one command a step, each resumable and useful alone. `wamkit COMMAND --help` lists the options."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import shlex
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# All else is imported where it is used, so that Ctrl-C during the seconds that takes is met by `entry`.


@dataclass(frozen=True)
class Train:
    """Trains a family on a data set; the same command continues a run that was cut short."""

    data: Path
    """Data set folder, from `wamkit collect` or `wamkit import`, or a mixture of several, from `wamkit mix`."""
    out: Path
    """Run folder."""
    recipe: str = "metaworld-unified"
    """Where the options below start from; `wamkit list` shows all recipes."""
    cache_gb: float = 16.0
    """Decoded pictures are kept beside the data, at most so many GB; what is beyond is decoded when it is drawn, and is the same."""
    feature_cache_gb: float = 0.0
    """Keep what a frozen encoder makes of all windows beside the data, at most so many GB: the next run with the same encoder reads it."""
    decoder: typing.Literal["pyav", "torchcodec"] = "pyav"
    """What decodes films; torchcodec needs wamkit[torchcodec] and FFmpeg's libraries, and gives the same pictures (docs/data.md: when to)."""


@dataclass(frozen=True)
class Eval:
    """Evaluates a run on held-out reset states and writes eval/report.html, eval/summary.json and eval/episodes.parquet."""

    runs: tuple[Path, ...]
    """Run folders, each evaluated by itself; two of them with --paired."""
    paired: bool = False
    """Of two runs: which is better, with what certainty, and in how many more episodes that would be known. Closed loop alone."""
    protocol: str = ""
    """A named way of evaluating, as others do; `wamkit list` names them. Sets the environment, its tasks, and what isn't given of the next."""
    episodes: int | None = None
    """Held-out reset states a task; 20, or the protocol's."""
    replan_every: int | None = None
    """Actions taken of each chunk before the model is asked again; 8, or the protocol's."""
    steps: int | None = None
    """Denoising steps a query; the model's own if not given."""
    query: str = "policy"
    """What the policy asks the model: policy, or joint."""
    held_out: int | None = None
    """Held-out recordings a task (one more off-expert each) on which imagination is scored; 6, or 0 with a protocol: closed loop alone."""
    processes: int = 2
    """Worker processes."""
    suite: typing.Literal["main", "full"] = "main"
    """full: also whether it imagines what its actions do, on and off the expert's path, and what its own actions do."""
    encoder: tuple[str, ...] = ()
    """Pretrained weights whose figures are wanted too, by file or hub id: lpips-alex=TRUNK,HEADS lpips-vgg=TRUNK,HEADS dinov2=MODEL
    videomae=MODEL i3d=FILE."""
    env: str = ""
    """Environment to evaluate in, if not the one that the data came from: for imported data, or one of a mixture's robots."""
    tasks: tuple[str, ...] = ()
    """With `env` or `protocol`: its tasks; all if not given."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """With `env` or `protocol`: fields of the environment's configuration, KEY=VALUE, as `wamkit collect` is given them."""
    robot: str = ""
    """With `env` or `protocol`: of a model that a mixture trained, the data set whose robot acts."""


@dataclass(frozen=True)
class Sample:
    """Asks a run one of the five queries about a held-out recording; writes a video and an npz."""

    run: Path
    """Run folder."""
    query: str = "joint"
    """What is asked: policy, video, forward, inverse or joint."""
    episode: int = 0
    """Which held-out recording."""
    stride: int = 4
    """Ask at every so many steps of it."""
    seed: int = 0
    """Of the noise."""
    out: Path | None = None
    """Where to; run/samples if not given."""


def _parse(options: Any, command: str, argv: Sequence[str]) -> Any:
    """The dataclass `options` from the command line: fields without a default by their place, all others by name."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_key_values)
    return tyro.cli(
        options,
        args=argv,
        prog=f"wamkit {command}",
        registry=registry,
        config=(tyro.conf.PositionalRequiredArgs, tyro.conf.EnumChoicesFromValues),
    )


def _train(argv: Sequence[str]) -> None:
    import tyro

    from wamkit.runs.config import PARTS
    from wamkit.runs.recipes import RECIPES
    from wamkit.training.launch import LoadingOptions, train_run

    # The recipe decides which options exist, so it is read first.
    name = next((argv[i + 1] for i, a in enumerate(argv[:-1]) if a == "--recipe"), None)
    name = name or next((a.split("=", 1)[1] for a in argv if a.startswith("--recipe=")), Train.recipe)
    run = RECIPES.get(name)()
    fields = [(k, type(getattr(run, k)), field(default=getattr(run, k))) for k in PARTS]
    options = dataclasses.make_dataclass("Train", fields, bases=(_kw(Train),), frozen=True, kw_only=True)
    args = tyro.cli(
        options, args=argv, prog="wamkit train", description=Train.__doc__, config=(tyro.conf.EnumChoicesFromValues,)
    )
    run = dataclasses.replace(run, **{k: getattr(args, k) for k in PARTS})
    train_run(
        run,
        args.data,
        args.out,
        command=shlex.join(["wamkit", "train", *argv]),
        loading=LoadingOptions(args.cache_gb, args.feature_cache_gb, args.decoder),
    )
    print(f"trained: {args.out}\nnext: wamkit eval {args.out}")


def _kw(cls: type) -> type:
    """`cls` with keyword-only fields, so that fields without a default may follow others."""
    types = typing.get_type_hints(cls)
    fields = [(f.name, types[f.name], field(default=f.default)) for f in dataclasses.fields(cls)]
    return dataclasses.make_dataclass(cls.__name__, fields, frozen=True, kw_only=True)


def _collect(argv: Sequence[str]) -> None:
    import tyro

    from wamkit.rollout.collect import CollectConfig, collect

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_key_values)
    store = collect(tyro.cli(CollectConfig, args=argv, prog="wamkit collect", registry=registry))
    print(f"collected: {len(store)} episodes, {store.frames} frames in {store.root}")


def _import(argv: Sequence[str]) -> None:
    """wamkit import FORMAT SOURCE --out FOLDER [options]: the format decides which options there are."""
    import tyro

    from wamkit.data.importers import IMPORTERS
    from wamkit.data.importers.run import Destination, Import, describe, import_data, left_out
    from wamkit.registry import load_package
    from wamkit.types import WamkitError

    load_package("wamkit.data.importers")
    if not argv or argv[0].startswith("-"):
        print(f"usage: wamkit import FORMAT SOURCE --out FOLDER [options]\n\n{Import.__doc__}\n\nformats:")
        for name in IMPORTERS.names():
            print(f"  {name:<12} {_first_line(IMPORTERS.get(name))}")
        print("\n`wamkit import FORMAT --help` lists the options of one.")
        return
    of = IMPORTERS.get(argv[0]).Options
    source = [] if len(argv) < 2 or argv[1].startswith("-") else [argv[1]]
    more = dataclasses.make_dataclass(
        "Import", [("options", of, field(default=of()))], bases=(Destination,), frozen=True, kw_only=True
    )
    prog = f"wamkit import {argv[0]} {source[0] if source else 'SOURCE'}"
    args = tyro.cli(more, args=argv[1 + len(source) :], prog=prog, description=IMPORTERS.get(argv[0]).__doc__)
    if not source:
        raise WamkitError(f"name the file or folder to import: wamkit import {argv[0]} SOURCE --out {args.out}")
    common = {f.name: getattr(args, f.name) for f in dataclasses.fields(Destination)}
    store = import_data(Import(format=argv[0], source=Path(source[0]), **common), args.options)
    print(f"imported: {len(store)} episodes, {store.frames} frames in {store.root}")
    if note := describe(left_out(store.root)):
        print(note, file=sys.stderr)


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _mix(argv: Sequence[str]) -> None:
    """wamkit mix FOLDER:WEIGHT ... --out FILE [options]"""
    import tyro

    from wamkit.config import save_json
    from wamkit.data.loading.mixture import Mix, MixtureConfig, open_mixture, parse_sources

    folders = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    args = tyro.cli(Mix, args=argv[len(folders) :], prog="wamkit mix FOLDER[:WEIGHT] ...")
    fields = {f.name: getattr(args, f.name) for f in dataclasses.fields(Mix) if f.name != "out"}
    save_json(args.out, MixtureConfig(parse_sources(folders, args.out), **fields))
    mixture, _ = open_mixture(args.out, chunk=16)
    for name, share, frames in zip(mixture.names, mixture.shares, mixture.frames, strict=True):
        kind = "with actions" if frames.has_action.any() else "video alone"
        print(f"  {name:<16} {share:6.1%}  {len(frames.text)} episodes, {len(frames)} frames, {kind}")
    print(args.out)


@dataclass(frozen=True)
class _Validate:
    """Says what is in a data set and what is wrong with it; writes a page. Exits with 1 where there are errors."""

    data: Path
    """Data set folder."""
    out: Path | None = None
    """The page; validate.html in the folder if not given."""
    every_picture: bool = False
    """Decode every picture of every film, instead of a few of each."""


def _validate(argv: Sequence[str]) -> None:
    args = _parse(_Validate, "validate", argv)
    from wamkit.data.format.metadata_io import load_metadata
    from wamkit.data.format.store import Store
    from wamkit.data.validate import summary, validate
    from wamkit.files import atomic_write
    from wamkit.types import WamkitError
    from wamkit.viz.dataset_report import dataset_page

    page = args.out or args.data / "validate.html"
    found = validate(args.data, every_picture=args.every_picture)
    store, meaning = Store.open(args.data), load_metadata(args.data)
    atomic_write(page, dataset_page(store, meaning, found).encode())
    for what, how_much in summary(store, meaning):
        print(f"  {what:<10} {how_much}")
    for finding in found:
        print(finding)
    print(f"page: {page}")
    if errors := sum(f.level == "error" for f in found):
        raise WamkitError(f"{errors} errors in {args.data}")


@dataclass(frozen=True)
class _Browse:
    """Shows a data set in the browser: its episodes, their videos in step with their numbers, and what was said when. Ctrl-C ends it."""

    data: Path
    """Data set folder."""
    port: int = 8000
    """Of the page's address; 0 takes any that is free."""
    host: str = "127.0.0.1"
    """Of the page's address; whoever reaches another than this one sees the data."""
    open_browser: bool = True
    """Open the page, where there is a screen."""


def _browse(argv: Sequence[str]) -> None:
    args = _parse(_Browse, "browse", argv)
    from wamkit.viz.dataset_browser import browse

    browse(args.data, host=args.host, port=args.port, open_browser=args.open_browser)


def _key_values(info: Any) -> Any:
    """How tyro reads a mapping: KEY=VALUE, with JSON for a value or, where it is none, plain text."""
    from tyro.constructors import PrimitiveConstructorSpec

    def read(words: list[str]) -> dict[str, Any]:
        pairs = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not key or not equals:
                raise ValueError(f"{word!r} is not KEY=VALUE")
            try:
                pairs[key] = json.loads(value)
            except ValueError:
                pairs[key] = value
        return pairs

    if typing.get_origin(info.type) is not Mapping:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[KEY=VALUE ...]",
        instance_from_str=read,
        is_instance=lambda x: isinstance(x, Mapping),
        str_from_instance=lambda x: [f"{k}={json.dumps(v)}" for k, v in x.items()],
    )


def _eval(argv: Sequence[str]) -> None:
    args = _parse(Eval, "eval", argv)
    from wamkit.eval.evaluate import evaluate
    from wamkit.eval.held_out import World
    from wamkit.eval.protocols import PROTOCOLS
    from wamkit.types import WamkitError

    if not args.runs:
        raise WamkitError("name the run folder to evaluate: wamkit eval RUN")
    if args.env and args.protocol:
        raise WamkitError("--protocol names an environment: leave out --env")
    if not args.env and not args.protocol and (args.tasks or args.options or args.robot):
        raise WamkitError("--tasks, --options and --robot say more of an environment: name it, --env NAME")

    named = PROTOCOLS.get(args.protocol)() if args.protocol else None
    usual = {"episodes": 20, "replan_every": 8, "held_out": 6} | (named.usual if named else {})
    given = {k: getattr(args, k) for k in (*usual, "steps", "query", "processes")}
    playing = {k: usual.get(k) if v is None else v for k, v in given.items()}
    held_out = playing.pop("held_out")
    if args.paired and (args.env or args.protocol or args.suite != "main" or args.encoder):
        raise WamkitError(
            "--paired plays both runs in the world that they were trained for; leave out --env and --suite, --protocol and --encoder"
        )
    if args.paired:
        from wamkit.eval.suites.paired import paired

        paired(args.runs, **playing)
        return
    world = World(args.env, args.tasks, args.options, args.robot) if args.env else None
    if named:
        world = named.world(args.protocol, args.tasks, args.options, args.robot)
    for run in args.runs:
        evaluate(run, held_out=held_out, suite=args.suite, encoders=args.encoder, world=world, **playing)


def _diagnose(argv: Sequence[str]) -> None:
    from wamkit.cli.diagnose import Diagnose, diagnose

    diagnose(_parse(Diagnose, "diagnose", argv))


def _robustness(argv: Sequence[str]) -> None:
    from wamkit.eval.report.robustness import Robustness, sweep

    sweep(_parse(Robustness, "robustness", argv))


def _sample(argv: Sequence[str]) -> None:
    args = _parse(Sample, "sample", argv)
    from wamkit.cli.sample import sample_episode
    from wamkit.types import Query

    for path in sample_episode(
        args.run, Query(args.query), args.episode, stride=args.stride, seed=args.seed, out=args.out
    ):
        print(path)


def _report(argv: Sequence[str]) -> None:
    from wamkit.eval.report.overview import Overview, overview

    print(f"page: {overview(_parse(Overview, 'report', argv))}")


def _rank(argv: Sequence[str]) -> None:
    from wamkit.eval.suites.policy_ranking import Rank, rank

    rank(_parse(Rank, "rank", argv))


def _compare(argv: Sequence[str]) -> None:
    from wamkit.experiments.run import Compare, compare

    print(f"page: {compare(_parse(Compare, 'compare', argv))}")


@dataclass(frozen=True)
class _List:
    """Lists families, queries, environments and recipes."""

    by: str | None = None
    """Groups the families by an axis of the taxonomy: leaf, modality, conditioning, decoder or gradient."""


def _list(argv: Sequence[str]) -> None:
    args = _parse(_List, "list", argv)
    from wamkit.cli.show import by_axis, listing

    if args.by is not None:
        for value, names in by_axis(args.by).items():
            print(f"{value}\n  {', '.join(names)}")
        return
    print(listing())


@dataclass(frozen=True)
class _Show:
    """Shows what a family is: its leaf, its questions, its parts, and who sees whom."""

    name: str
    """A family, a recipe or a run folder."""
    out: Path | None = None
    """Also draws who sees whom into this SVG file."""


def _show(argv: Sequence[str]) -> None:
    args = _parse(_Show, "show", argv)
    from wamkit.cli.show import model_of, text, write_svg

    model = model_of(args.name)
    print(text(model))
    if args.out is not None:
        write_svg(model, args.out)
        print(args.out)


def _check_env(argv: Sequence[str]) -> None:
    from wamkit.envs import ENVIRONMENTS, make_env
    from wamkit.envs.check import check_env

    args = _parse(_CheckEnv, "check-env", argv)
    task = args.task or ENVIRONMENTS.get(args.name).tasks()[0]
    check_env(functools.partial(make_env, args.name, task=task))
    print(f"{args.name}, {task}: all checks passed")


@dataclass(frozen=True)
class _CheckEnv:
    """Runs the environment checker: determinism, spaces, pictures, snapshots."""

    name: str
    """Environment name."""
    task: str | None = None
    """One of its tasks; the first if not given."""


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "collect": (_collect, "record demonstrations by scripted experts, and off-expert episodes"),
    "import": (_import, "bring a foreign data set into a store"),
    "validate": (_validate, "what is in a data set and what is wrong with it, on one page"),
    "browse": (_browse, "a data set in the browser: videos in step with numbers and texts"),
    "mix": (_mix, "say which data sets are trained on together, and how much of each"),
    "train": (_train, "train a family on recordings"),
    "eval": (_eval, "closed loop, imagination and report on held-out states"),
    "robustness": (_robustness, "success while light, camera, colours, clutter or start differ more and more"),
    "sample": (_sample, "ask one of the five queries; writes a video"),
    "diagnose": (_diagnose, "says whether the forecast, the policy or neither is right, with three videos"),
    "rank": (_rank, "play policies inside a world model, and say how far that can be believed"),
    "report": (_report, "many evaluated runs side by side on one page"),
    "compare": (_compare, "train and evaluate many recipes under one budget; writes a page"),
    "list": (_list, "families, queries, environments, recipes"),
    "show": (_show, "what a family is, and who sees whom in it"),
    "check-env": (_check_env, "check that an environment keeps the contract"),
}


def entry() -> None:
    """The console script."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nwamkit: interrupted", file=sys.stderr)
        sys.exit(130)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; errors that wamkit raises on purpose are printed as one line, and the exit code is 1."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: wamkit COMMAND [options]\n")
        for name, (_, note) in COMMANDS.items():
            print(f"  {name:<12} {note}")
        print("\n`wamkit COMMAND --help` lists a command's options.")
        return 0
    if argv[0] == "--version":
        from wamkit import __version__

        print(__version__)
        return 0
    from wamkit.config import nearest
    from wamkit.types import WamkitError

    if argv[0] not in COMMANDS:
        print(
            f"wamkit: unknown command '{argv[0]}'{nearest(argv[0], COMMANDS)}; known: {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    try:
        COMMANDS[argv[0]][0](argv[1:])
    except WamkitError as e:
        print(f"wamkit {argv[0]}: {e}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os._exit(0)
    except KeyboardInterrupt:
        print(f"\nwamkit {argv[0]}: interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0
