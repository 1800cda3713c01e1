"""`wamkit serve`: a run as a server that robots ask."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import AtMost, Between, Count, Seed
from wamkit.types import WamkitError

if TYPE_CHECKING:
    import ssl

Port = Annotated[int, Between(0, 65535)]


@dataclass(frozen=True)
class Serve(Options):
    """Serve a run to robots, over WebSocket in openpi's protocol.

    Prints the address and what a client sends, and serves until Ctrl-C or SIGTERM. GET /healthz and /metrics are on
    the same port. Clients: the package wamkit-client, or openpi-client.
    """

    run: Path
    """Run folder, or file of `wamkit export`."""
    _: KW_ONLY
    host: str = "127.0.0.1"
    """Address to listen on. One that other machines reach needs --token-file."""
    port: Port = 8000
    """Port; 0 takes a free one."""
    queries: tuple[str, ...] = ("policy",)
    """Queries that clients may ask; the first answers those that name none."""
    embodiment: str = ""
    """Data set of a mixture whose robot is served."""
    keys: tuple[str, ...] = ()
    """Entries of a request, CAMERA=KEY, state=KEY,KEY, prompt=KEY; or libero, droid, aloha or roboarena for those of
    openpi's examples and of RoboArena."""
    dialect: Literal["openpi", "roboarena"] = "openpi"
    """`roboarena` sends its metadata in place of wamkit's."""
    device: str = "cpu"
    """Device of the model."""
    threads: Annotated[int, Between(1, 1024)] | None = None
    """CPU threads of the model; torch's own number if not given."""
    max_batch: Annotated[int, Between(1, 1024)] = 8
    """Sessions that are answered together; 1 answers each alone, equal to the bit."""
    max_steps: Annotated[int, Between(1, 10_000)] = 100
    """Most denoising steps that a request may ask for."""
    prompt: str = ""
    """Instruction of requests that have none; these are refused if not given."""
    max_sessions: Annotated[Count, AtMost(10**5)] = 64
    """Robots that are served at a time."""
    seed: Seed = 0
    """Seed of every session's noise."""
    token_file: Path | None = None
    """File that holds the token that clients must send."""
    tls: tuple[Path, Path] | None = None
    """Files of a certificate and its key, for wss://."""
    origins: tuple[str, ...] = ()
    """Pages of which browsers may connect, as https://example.org."""


@COMMANDS.register("serve")
def run(args: Serve) -> None:
    """Serves until it is told to stop.

    Raises WamkitError, before the model is loaded, for an address without a token, and for files that cannot be read.
    """
    import asyncio
    import logging

    from wamkit.runs.config import require_run
    from wamkit.types import Query

    queries = tuple(Query(q) for q in args.queries)
    if not queries:
        raise WamkitError("name at least one query: --queries policy")
    token, tls, path = _token(args), _tls(args), require_run(args.run)
    import torch

    from wamkit.eval.held_out import acting_model
    from wamkit.inference.model import load
    from wamkit.runs.run import Run
    from wamkit.serving.engine import Engine
    from wamkit.serving.inputs import Inputs
    from wamkit.serving.server import PolicyServer, ServerOptions, example

    if args.threads:
        torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("wamkit.serving.websockets").setLevel(logging.CRITICAL)
    opened = Run.open(path)
    embodiment = args.embodiment or opened.provenance.env.embodiment
    model = acting_model(opened, embodiment) if args.device == "cpu" else load(opened, args.device, embodiment)
    keys = args.keys or (("roboarena",) if args.dialect == "roboarena" else ())
    inputs = Inputs.of(opened, embodiment, keys, args.prompt)
    options = ServerOptions(
        host=args.host,
        port=args.port,
        queries=queries,
        dialect=args.dialect,
        max_batch=args.max_batch,
        max_sessions=args.max_sessions,
        max_steps=args.max_steps,
        seed=args.seed,
        token=token,
        tls=tls,
        origins=args.origins,
    )
    facts = {"run": opened.label, "family": model.name, "weights": opened.digest, "step": opened.step}
    engine = Engine(model, max_batch=args.max_batch)

    async def serving() -> None:
        server = PolicyServer(engine, inputs, options, facts)
        spec = model.spec
        took = engine.warm_up(example(inputs, model), queries[0])
        async with server:
            scheme = "ws" if tls is None else "wss"
            print(f"{opened.label}: {model.name}, step {opened.step}, warmed up in {took:.1f} s")
            for key, fits in inputs.described(spec, ())["inputs"].items():
                shape = (
                    ""
                    if not fits["shape"]
                    else f" ({', '.join('any' if n is None else str(n) for n in fits['shape'])})"
                )
                print(f"  {key}: {fits['dtype']}{shape}")
            print(f"  -> actions: float32 ({spec.chunk}, {inputs.action}) at {spec.fps:g} Hz")
            host = f"[{args.host}]" if ":" in args.host else args.host
            print(f"serving at {scheme}://{host}:{server.port}", flush=True)
            await server.until_stopped()
        print("stopped")

    try:
        asyncio.run(serving())
    except OSError as error:
        raise WamkitError(f"cannot listen on {args.host}:{args.port} ({error.strerror or error})") from error
    finally:
        engine.stop(0)


def _token(args: Serve) -> str:
    """The token that clients must send. Raises WamkitError where one is needed, or its file cannot be read."""
    from wamkit.serving.address import check_address

    token = ""
    if args.token_file is not None:
        try:
            token = args.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise WamkitError(f"{args.token_file} cannot be read ({error})") from error
        if len(token) < 16 or not token.isascii() or any(c.isspace() for c in token):
            raise WamkitError(f"{args.token_file}: a token has 16 ASCII characters or more, and no spaces")
    check_address(args.host, token)
    return token


def _tls(args: Serve) -> ssl.SSLContext | None:
    if args.tls is None:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(*args.tls)
    except (OSError, ssl.SSLError) as error:
        raise WamkitError(f"--tls {args.tls[0]} {args.tls[1]}: not a certificate and its key ({error})") from error
    return context
