"""`wamkit drive`: a run on a robot, or in its simulator as on one, where time goes on while the model computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import AtMost, Between, Count, Positive, Processes, Rate
from wamkit.errors import WamkitError

if TYPE_CHECKING:
    from contextlib import ExitStack

    from wamkit.types import Query

Milliseconds = Annotated[float, Between(0, 60_000)]


@dataclass(frozen=True)
class Drive(Options):
    """Drive a robot by a run, or measure what a delay costs in a simulator whose time does not wait.

    With `--robot`, any object with LeRobot's `get_observation` and `send_action`, the model leads it, and every episode
    is recorded into `--out`: keys as in `wamkit record`.

    Without, compares loops under delays, from the same held-out reset states: "wait" stands still during a query,
    "switch" asks while the arm moves and takes the newest chunk, "ensemble" the mean of all that reach a step, and
    "rtc" the newest, asked to go on from what the arm does meanwhile. Writes drive/summary.json into the run folder.
    """

    run: str
    """Run folder, or file of `wamkit export`; for a robot also the address of a server, ws://HOST:8000."""
    _: KW_ONLY
    robot: str = ""
    """The robot to drive, as MODULE:CLASS."""
    out: Path | None = None
    """Folder of the data set that a robot's episodes are recorded into."""
    text: tuple[str, ...] = ()
    """Instruction of a robot's episodes; several are taken in turn."""
    fps: Rate | None = None
    """Steps a second of a robot; those of the data that the model learned from if not given."""
    seconds: Positive = 60.0
    """Longest episode of a robot."""
    hands_free: bool = False
    """Begin and keep a robot's episodes without a key."""
    chunking: Literal["switch", "ensemble", "rtc"] = "switch"
    """Way in which a robot's chunks are joined, as the loops of these names."""
    rate: Positive | None = None
    """Most that any value of a robot's action changes from one step to the next, in its units."""
    jerk: Positive | None = None
    """Most that this change changes from one step to the next."""
    stop_after: Positive = 2.0
    """Seconds without an action after which a robot's episode ends with an error."""
    robot_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the robot's class, KEY=VALUE."""
    token_file: Path | None = None
    """File that holds the token of the server."""
    latency: tuple[Milliseconds, ...] = (0.0, 50.0, 100.0, 200.0)
    """Milliseconds that a query takes."""
    jitter: Milliseconds = 0.0
    """Standard deviation of these, in milliseconds."""
    loops: tuple[Literal["wait", "switch", "ensemble", "rtc"], ...] = ()
    """Loops to compare; all that the model can run in, if not given."""
    episodes: Annotated[int, Between(1, inf), AtMost(10**6)] = 20
    """Held-out reset states a task; of a robot, episodes that the data set shall hold."""
    replan_every: Count | None = None
    """Steps between two queries; half of the chunk if not given."""
    steps: Count | None = None
    """Denoising steps a query; the model's own number if not given."""
    query: str = "policy"
    """Query that the policy asks: policy or joint. A robot's recording then also holds what was imagined, as cameras
    of their own."""
    processes: Processes = 2
    """Worker processes."""
    env: str = ""
    """Environment to play in, if not the one of the data; `tasks`, `options` and `embodiment` as in `wamkit eval`."""
    tasks: tuple[str, ...] = ()
    """Tasks to play; all of the run's, or with `env` all of that environment's, if not given."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `env`, KEY=VALUE: fields of the environment's configuration."""
    embodiment: str = ""
    """Data set of a mixture whose embodiment acts in `env`."""


OF_A_ROBOT = (
    *("out", "text", "fps", "seconds", "hands_free", "chunking", "rate", "jerk", "stop_after", "robot_options"),
    "token_file",
)
OF_A_SIMULATOR = ("latency", "jitter", "loops", "env", "tasks", "options", "processes")
"""Options of either kind alone."""


def _given(args: Drive, names: tuple[str, ...]) -> str:
    """The first of these options that has not its default, as on the command line; "" for none."""
    defaults = Drive(args.run)
    changed = (n for n in names if getattr(args, n) != getattr(defaults, n))
    return next((f"--{n.replace('_', '-')}" for n in changed), "")


@COMMANDS.register("drive")
def run(args: Drive) -> None:
    """Drives the robot and records it; or plays the loops under the delays, prints the table and writes it.

    Raises WamkitError for options of the other of these two, and in a simulator
    for a model with history, whose earlier observations come at other steps under a delay.
    """
    from dataclasses import replace

    from wamkit.envs.spec import EnvSpec
    from wamkit.eval.protocols import Protocol
    from wamkit.files import check_place
    from wamkit.runs.config import home, require_run
    from wamkit.types import Query

    if args.robot:
        _on_robot(args)
        return
    if given := _given(args, OF_A_ROBOT):
        raise WamkitError(f"{given} is of a robot: name it, --robot MODULE:CLASS")
    if not args.env and (args.options or args.embodiment):
        raise WamkitError("--options and --embodiment describe an environment: name it, --env NAME")
    if not args.latency:
        raise WamkitError("name at least one delay: --latency MILLISECONDS")
    env = EnvSpec(args.env, args.tasks, args.options, args.embodiment)
    if env.env:
        env.check()
    path = require_run(Path(args.run))
    place = home(path) / "drive/summary.json"
    check_place(place)
    from wamkit.envs.base import held_out_seeds
    from wamkit.eval.held_out import check_playable, check_unseen, evaluation_env
    from wamkit.eval.outputs import write_result
    from wamkit.inference.model import load
    from wamkit.runs.run import Run
    from wamkit.serving.drive import Delay, drives, table

    opened = Run.open(path)
    if opened.spec.past_offsets:
        raise WamkitError(f"{opened.label} looks back at earlier steps, which a delayed loop does not have")
    loops = args.loops or ("wait", "switch", "ensemble", "rtc")
    if "rtc" in loops and load(opened).family.denoised is None:
        unable = f"the family {opened.config.family!r} does not denoise its actions, so 'rtc' cannot join its chunks"
        if args.loops:
            raise WamkitError(f"{unable}: leave it out of --loops")
        loops = tuple(loop for loop in loops if loop != "rtc")
        print(unable)
    where = evaluation_env(opened, env)
    if args.tasks and not args.env:
        where = replace(where, tasks=args.tasks)
        where.check()
    check_unseen(path, opened.learned_from, held_out_seeds(args.episodes), "the evaluation seeds")
    check_playable(opened, where)
    protocol = Protocol(where, args.episodes, args.replan_every, str(Query(args.query)), args.steps)
    delays = [Delay(ms / 1e3, args.jitter / 1e3) for ms in args.latency]
    rows = table(drives(opened, protocol, loops, delays, processes=args.processes))
    names = ("success", "interval", "stood still", "largest jump", "at seams", "inside")
    widths = (8, 16, 12, 13, 9, 7)
    print(f"{'loop':<10} {'delay':>8}", *(f"{name:>{width}}" for name, width in zip(names, widths, strict=True)))
    for row in rows:
        interval = f"[{row['low']:.1%}, {row['high']:.1%}]"
        print(
            f"{row['loop']:<10} {row['latency_ms']:>5.0f} ms {row['success']:>8.1%} {interval:>16} "
            f"{row['stood']:>12.0%} {row['jump']:>13.2f} {row['seam'] or 0:>9.2f} {row['inside'] or 0:>7.2f}"
        )
    told = {"run": opened.label, "weights": opened.digest, "protocol": protocol.replanning(opened).to_dict()}
    write_result(place, {**told, "rows": rows})
    print(place)


def _on_robot(args: Drive) -> None:
    """Connects to the robot, lets the model lead it, records, and prints the size of the data set."""
    from contextlib import ExitStack

    import wamkit_client

    from wamkit.files import check_place
    from wamkit.robots.base import connected, make
    from wamkit.robots.keys import NoKeys, terminal_keys
    from wamkit.robots.record import RecordConfig, record
    from wamkit.serving.on_robot import Imagining, ModelLeader
    from wamkit.types import Query

    if args.out is None or not args.text:
        raise WamkitError('say where to record to and what the robot is told: --out DATA --text "put the cube away"')
    if given := _given(args, OF_A_SIMULATOR):
        raise WamkitError(f"{given} is of a simulator: leave it out, or --robot")
    remote = args.run.startswith(("ws://", "wss://"))
    if given := _given(args, ("embodiment",) if remote else ("token_file",)):
        raise WamkitError(f"{given} is of a {'run' if remote else 'server'}, and {args.run} is none")
    check_place(args.out / "meta/info.json")
    query = Query(args.query)
    if query not in (Query.POLICY, Query.JOINT):
        raise WamkitError(f"--query {query}: a robot acts on policy or joint")
    with ExitStack() as stack:
        keys = stack.enter_context(terminal_keys())
        if not args.hands_free and isinstance(keys, NoKeys):
            raise WamkitError("standard input is no terminal, so no key can keep an episode: take --hands-free")
        robot = make(args.robot, "robot", args.robot_options)
        url, token = _server(args, query, stack)
        try:
            client = stack.enter_context(wamkit_client.connect(url, token=token, wait=10))
        except OSError as error:
            raise WamkitError(f"{url}: {error}") from error
        fps = args.fps or client.metadata.get("wamkit", {}).get("fps")
        if fps is None:
            raise WamkitError("the server does not tell the rate of its data: give --fps")
        leader = ModelLeader(
            client,
            robot,
            args.text[0],
            hz=fps,
            chunking=args.chunking,
            replan_every=args.replan_every,
            query=query,
            steps=args.steps,
            rate=args.rate,
            jerk=args.jerk,
            stop_after=args.stop_after,
        )
        config = RecordConfig(args.text, args.episodes, fps, args.seconds, args.hands_free, demonstration=False)
        connected(robot, "connect")
        stack.callback(connected, robot, "disconnect")
        stack.callback(leader.close)
        seen = Imagining(robot, leader) if query is Query.JOINT else robot
        store = record(seen, leader, args.out, config, keys=keys)
    print(f"recorded: {len(store)} episodes, {store.frames} frames in {store.root}")


def _server(args: Drive, query: Query, stack: ExitStack) -> tuple[str, str]:
    """Address and token of the server that is asked: the one that is named, or one in this process that serves the
    run."""
    if args.run.startswith(("ws://", "wss://")):
        return args.run, "" if args.token_file is None else args.token_file.read_text().strip()
    from wamkit.eval.held_out import acting_model
    from wamkit.runs.config import require_run
    from wamkit.runs.run import Run
    from wamkit.serving.background import in_background
    from wamkit.serving.engine import Engine
    from wamkit.serving.inputs import Inputs
    from wamkit.serving.server import PolicyServer, ServerOptions, example

    opened = Run.open(require_run(Path(args.run)))
    embodiment = args.embodiment or opened.provenance.env.embodiment
    model = acting_model(opened, embodiment)
    inputs, engine = Inputs.of(opened, embodiment), Engine(model, max_batch=1)
    steps = max(ServerOptions.max_steps, args.steps or 0)
    options = ServerOptions(host="127.0.0.1", port=0, queries=(query,), max_steps=steps)
    took = engine.warm_up(example(inputs, model), query)
    print(f"{opened.label}: {model.name}, step {opened.step}, warmed up in {took:.1f} s")
    server = stack.enter_context(in_background(lambda: PolicyServer(engine, inputs, options, {"run": opened.label})))
    return f"ws://127.0.0.1:{server.port}", ""
