"""A WebSocket server of openpi's protocol: metadata first, then an action chunk for each observation.

It uses `websockets`, as openpi's server and client do, so that frames, pings and limits behave as its clients expect.
A text frame is an error in one line, and the connection stays. Inference runs in the engine's thread: health, metrics
and other clients never wait for it.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import json
import logging
import signal
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from wamkit_client.protocol import MAX_BYTES, ProtocolError, pack, unpack
from websockets.asyncio.server import Server as _Listening
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from wamkit.inference.checks import unsupported
from wamkit.inference.model import Model
from wamkit.inference.realtime import Ahead, checked
from wamkit.serving.engine import Answer as Answered
from wamkit.serving.engine import Engine, Refused, Request
from wamkit.serving.inputs import Inputs
from wamkit.serving.sessions import Session, Sessions
from wamkit.types import (
    NotFinite,
    Observation,
    ObservationError,
    Query,
    UnsupportedQuery,
    WamkitError,
    half_chunk,
)

OPTIONS = (
    "query",
    "seed",
    "steps",
    "executed",
    "deadline_ms",
    "imagined",
    "actions",
    "future",
    "ahead",
    "decided",
    "reset",
    "session_id",
)
"""Options of a request, in its entry `wamkit`."""
IN_FLIGHT = 2
"""Requests of a connection that are read before an earlier one is answered."""
AT_ONCE = 1 << 20
"""Bytes of a message that is read where it arrives, in less time than another thread takes to begin with it."""
_LOG = logging.getLogger("wamkit.serving")


@dataclass(frozen=True)
class ServerOptions:
    """Options of `PolicyServer`.

    host, port: address; port 0 takes a free one.
    queries: those that clients may ask, the first if they name none.
    dialect: "openpi", or "roboarena" for its metadata and its bare answers.
    max_batch, max_pending: see `Engine`.   max_sessions, session_age: see `Sessions`.
    max_steps: most denoising steps that a request may ask for.
    max_connections: beyond which a connection is refused with status 503.
    max_bytes: largest message that is taken.
    seed: of sessions.
    token: that clients must send; "" for none.
    tls: certificate and key; None for an open connection.
    origins: pages of which browsers may connect; none by default.
    drain: seconds to answer what waits when the server stops.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    queries: tuple[Query, ...] = (Query.POLICY,)
    dialect: str = "openpi"
    max_batch: int = 8
    max_pending: int = 64
    max_sessions: int = 64
    session_age: float = 3600.0
    max_steps: int = 100
    max_connections: int = 128
    max_bytes: int = MAX_BYTES
    seed: int = 0
    token: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None
    origins: tuple[str, ...] = ()
    drain: float = 10.0


@dataclass(frozen=True)
class _Asked:
    """A request as it was read. See `Request` and docs/serving.md; bare: answered with the array alone."""

    obs: Observation
    query: Query
    session: str
    reset: bool
    executed: int
    seed: int | None
    steps: int | None
    until: float | None
    actions: np.ndarray | None
    future: np.ndarray | None
    ahead: Ahead | None
    imagined: bool
    bare: bool


@dataclass(frozen=True)
class _Reset:
    """A request that only ends an episode; "" ends all of its connection."""

    session: str


class Metrics:
    """Counters in Prometheus' text format."""

    def __init__(self, server: PolicyServer):
        self.registry = CollectorRegistry()
        self.requests = Counter("wamkit_requests", "Requests by outcome", ["outcome"], registry=self.registry)
        for name, words, read in (
            ("wamkit_connections", "Open connections", lambda: server.connections),
            ("wamkit_sessions", "Sessions", lambda: len(server.sessions)),
            ("wamkit_waiting", "Requests in the queue", lambda: server.engine.waiting),
        ):
            Gauge(name, words, registry=self.registry).set_function(read)
        buckets = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
        self.waited = Histogram("wamkit_queue_seconds", "In the queue", buckets=buckets, registry=self.registry)
        self.computed = Histogram("wamkit_model_seconds", "In the model", buckets=buckets, registry=self.registry)
        self.rows = Histogram(
            "wamkit_batch_rows", "Rows of a request's batch", buckets=range(1, 17), registry=self.registry
        )

    def text(self) -> bytes:
        """The page /metrics."""
        return generate_latest(self.registry)


class PolicyServer:
    """Serves the model of `engine` to robots, which send what `inputs` reads.

    facts: entries of the metadata's "wamkit" beside those of `inputs`: fps, chunk, run and the like.

        async with PolicyServer(engine, inputs, options) as server:
            await server.until_stopped()
    """

    def __init__(
        self,
        engine: Engine,
        inputs: Inputs,
        options: ServerOptions = ServerOptions(),  # noqa: B008 (frozen)
        facts: Mapping[str, Any] | None = None,
    ):
        model = engine.model
        for query in options.queries:
            if query not in model.queries:
                raise UnsupportedQuery(unsupported(model.name, query))
        if model.spec.point_grid:
            raise WamkitError(f"this '{model.name}' looks at scene points, for which the protocol has no entry")
        self.engine, self.inputs, self.options = engine, inputs, options
        past = model.spec.past_offsets
        self.sessions = Sessions(past, most=options.max_sessions, age=options.session_age, seed=options.seed)
        self.connections, self.metrics = 0, Metrics(self)
        self.metadata = self._metadata(facts or {})
        self._listening: _Listening | None = None
        self._stop = asyncio.Event()
        self._owed: dict[str, int] = {}
        self._opened = 0

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._listening is not None
        return next(iter(self._listening.sockets)).getsockname()[1]

    async def __aenter__(self) -> PolicyServer:
        options = self.options
        self._listening = await serve(
            self._handle,
            options.host,
            options.port,
            process_request=self._http,
            origins=[None, *options.origins],  # type: ignore[list-item]
            compression=None,
            max_size=options.max_bytes,
            max_queue=1,
            ssl=options.tls,
            server_header=None,
            ping_interval=20,
            ping_timeout=60,
            close_timeout=2,
            logger=logging.getLogger("wamkit.serving.websockets"),
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stops listening, answers what waits, and closes."""
        assert self._listening is not None
        self._listening.close(close_connections=False)
        until = time.monotonic() + self.options.drain
        while any(self._owed.values()) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await asyncio.gather(*(c.close(1001, "the server is stopping") for c in self._listening.connections))
        await asyncio.to_thread(self.engine.stop, max(0.0, until - time.monotonic()))
        await self._listening.wait_closed()

    async def until_stopped(self) -> None:
        """Returns on SIGTERM or SIGINT, or after `stop`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            await self.until_told()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def until_told(self) -> None:
        """Returns after `stop`."""
        await self._stop.wait()

    def stop(self) -> None:
        """Asks `until_stopped` and `until_told` to return. From here on nothing new is computed."""
        self._stop.set()

    def _metadata(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        spec, cameras = self.engine.model.spec, self.inputs.cameras
        if self.options.dialect == "roboarena":
            wrist = [c for c in cameras if "wrist" in self.inputs.keys.image(c)]
            return {
                "image_resolution": [spec.height, spec.width],
                "needs_wrist_camera": bool(wrist),
                "n_external_cameras": len(cameras) - len(wrist),
                "needs_stereo_camera": False,
                "needs_session_id": True,
                "action_space": self.inputs.action_space(),
            }
        told = self.inputs.described(spec, self.engine.model.action_bounds)
        model = self.engine.model
        more = {"fps": spec.fps, "chunk": spec.chunk, "queries": [str(q) for q in self.options.queries]}
        more |= {"frame_offsets": list(spec.frame_offsets), "past_offsets": list(spec.past_offsets)}
        more |= {"image_size": [spec.height, spec.width], "max_bytes": self.options.max_bytes}
        more["max_steps"] = self.options.max_steps
        more["ahead"] = None if model.family.denoised is None else {"learned": model.prefix}
        return {"wamkit": {**told, **more, **facts}}

    def _http(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Health, metrics, and connections that are refused before they are made."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not self._allowed(request):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Api-Key TOKEN\n")
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, "")
            response.body = self.metrics.text()
            del response.headers["Content-Length"]
            response.headers["Content-Length"] = str(len(response.body))
            return response
        if self._stop.is_set():
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping\n")
        if self.connections >= self.options.max_connections:
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE, f"{self.options.max_connections} connections are open already\n"
            )
        return None

    def _allowed(self, request: HttpRequest) -> bool:
        if not self.options.token:
            return True
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(token.strip().encode(), self.options.token.encode())
        return scheme.lower() in ("api-key", "bearer") and right

    async def _handle(self, connection: ServerConnection) -> None:
        self.connections += 1
        self._opened += 1
        own = f"connection {self._opened}"
        self._owed[own] = 0
        _event("connected", client=own, address=str(connection.remote_address))
        try:
            await connection.send(pack(self.metadata))
            replies: asyncio.Queue[asyncio.Task[str | bytes]] = asyncio.Queue(IN_FLIGHT)
            async with asyncio.TaskGroup() as group:
                tasks: list[asyncio.Task[Any]] = [group.create_task(self._send(connection, replies, own))]
                async for message in connection:
                    self._owed[own] += 1
                    read: Callable[[], _Asked | _Reset] = partial(self._read, message)
                    if len(message) > AT_ONCE:  # it takes its time, and others wait for this thread
                        elsewhere = asyncio.ensure_future(asyncio.to_thread(read))
                        await asyncio.wait([elsewhere])
                        read = elsewhere.result
                    tasks = [task for task in tasks if not task.done()]
                    tasks.append(group.create_task(self._reply(read, own)))
                    await replies.put(tasks[-1])
                for task in tasks:  # nobody waits for what is not sent yet
                    task.cancel()
        except* ConnectionClosed:
            pass
        finally:
            self.connections -= 1
            del self._owed[own]
            self.sessions.end(own)
            _event("disconnected", client=own)

    async def _send(
        self, connection: ServerConnection, replies: asyncio.Queue[asyncio.Task[str | bytes]], own: str
    ) -> None:
        """Sends replies in the order of their requests, which may be asked before an earlier one is answered."""
        while True:
            reply = await replies.get()
            await connection.send(await reply)
            self._owed[own] -= 1

    async def _reply(self, read: Callable[[], _Asked | _Reset], own: str) -> str | bytes:
        """The frame that answers what `read` gives: bytes for an answer, a line of text for an error."""
        try:
            asked = read()
            if isinstance(asked, _Reset):
                self.sessions.end(own, asked.session or None)
                return "reset successful"
            if self._stop.is_set():
                raise Refused("the server is stopping")
            reply = await self._answer(asked, own)
            self.metrics.requests.labels("answered").inc()
            return reply
        except (ProtocolError, ObservationError, UnsupportedQuery) as error:
            outcome, said = "malformed", str(error)
        except Refused as error:
            outcome, said = "refused", str(error)
        except NotFinite as error:
            outcome, said = "not finite", str(error)
        except Exception as error:
            # The client is told that something is wrong here; the trace is for the log.
            _LOG.error("request failed", exc_info=error)
            outcome, said = "failed", f"the server failed ({type(error).__name__}); its log says more"
        self.metrics.requests.labels(outcome).inc()
        line = " ".join(said.split())[:500]
        _event("request " + outcome, client=own, error=line)
        return line

    def _read(self, message: str | bytes) -> _Asked | _Reset:
        """The request of a message. Raises ProtocolError and ObservationError."""
        if isinstance(message, str):
            raise ProtocolError("a request is a binary frame in MessagePack, got a text frame")
        request = unpack(message, self.options.max_bytes)
        if not isinstance(request, dict):
            raise ProtocolError(f"a request is a mapping, got a {type(request).__name__}")
        endpoint = request.get("endpoint", "infer")
        if not isinstance(endpoint, str) or endpoint not in ("infer", "reset"):
            raise ObservationError("endpoint: expected 'infer' or 'reset'")
        told, session = self._told(request), _session(request)
        if endpoint == "reset":
            return _Reset(session)
        query = self._query(told)
        if "endpoint" in request and not query.wants_action:
            raise ObservationError(f"endpoint: it is answered with actions, which the query '{query}' has none of")
        actions, future = self._given(told, query)
        return _Asked(
            obs=self.inputs.observation(request),
            query=query,
            session=session,
            reset=bool(told.get("reset")),
            executed=_number(told, "executed", half_chunk(self.engine.model.spec.chunk), 0, 10**6),
            seed=None if "seed" not in told else _number(told, "seed", 0, 0, 2**63 - 1),
            steps=None if "steps" not in told else _number(told, "steps", 1, 1, self.options.max_steps),
            until=self._until(told),
            actions=actions,
            future=future,
            ahead=self._ahead(told, query),
            imagined=bool(told.get("imagined")),
            bare="endpoint" in request,
        )

    async def _answer(self, asked: _Asked, own: str) -> bytes:
        """The frame of the answer."""
        if asked.reset:
            self.sessions.end(own, asked.session)
        session = self.sessions.of(own, asked.session, asked.obs.text)
        if not self.sessions.past_offsets:
            return await self._computed(asked, session, own)
        async with session.turn:  # what is asked now looks back at what was answered before
            return await self._computed(asked, session, own)

    async def _computed(self, asked: _Asked, session: Session, own: str) -> bytes:
        step, looking = self.sessions.observed(session, asked.obs, asked.executed)
        request = Request(
            session=f"{own} {asked.session}",
            obs=looking,
            query=asked.query,
            seed=session.noise() if asked.seed is None else asked.seed,
            steps=asked.steps,
            actions=asked.actions,
            future=asked.future,
            ahead=asked.ahead,
            until=asked.until,
        )
        session.under_way += 1
        try:
            answer = await asyncio.wrap_future(self.engine.ask(request))
            self.sessions.answered(session, step, asked.obs, answer.sample)
        finally:
            session.under_way -= 1
        self._count(answer)
        reply = _shown(answer, asked.imagined)
        return pack(reply["actions"] if asked.bare else reply)

    def _told(self, request: Mapping[Any, Any]) -> Mapping[str, Any]:
        told = request.get("wamkit", {})
        if not isinstance(told, dict):
            raise ObservationError(f"wamkit: expected a mapping, got a {type(told).__name__}")
        for key in told:
            if key not in OPTIONS:
                named = f"{key!r:.40}" if isinstance(key, str) else f"a {type(key).__name__}"
                raise ObservationError(f"wamkit: there is no option {named}; there is {', '.join(OPTIONS)}")
        for key in ("imagined", "reset"):
            if not isinstance(told.get(key, False), bool):
                raise ObservationError(f"wamkit.{key}: expected true or false, got a {type(told[key]).__name__}")
        return told

    def _query(self, told: Mapping[str, Any]) -> Query:
        allowed = self.options.queries
        given = told.get("query", str(allowed[0]))
        if not isinstance(given, str) or given not in [str(q) for q in allowed]:
            named = f"{given!r:.40}" if isinstance(given, str) else f"a {type(given).__name__}"
            raise ObservationError(f"wamkit.query: {named} is not served; served are {', '.join(map(str, allowed))}")
        return Query(given)

    def _until(self, told: Mapping[str, Any]) -> float | None:
        limit = told.get("deadline_ms")
        if limit is None:
            return None
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit < 1e9:
            raise ObservationError("wamkit.deadline_ms: expected milliseconds above 0")
        return time.monotonic() + limit / 1e3

    def _given(self, told: Mapping[str, Any], query: Query) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Actions (A, a) and future (F, V, 3, H, W) of a query that is given them."""
        spec = self.engine.model.spec
        wanted = {Query.FORWARD: "actions", Query.INVERSE: "future"}.get(query)
        for name in ("actions", "future"):
            value = told.get(name)
            if (value is None) == (name == wanted):
                raise ObservationError(
                    f"wamkit.{name}: the query '{query}' {'needs' if name == wanted else 'takes no'} {name}"
                )
            if value is not None and not isinstance(value, np.ndarray):
                raise ObservationError(f"wamkit.{name}: expected an array, got a {type(value).__name__}")
        if wanted == "actions":
            actions, fits = told["actions"], (spec.chunk, self.inputs.action)
            if actions.shape != fits or actions.dtype.kind != "f" or not np.isfinite(actions).all():
                raise ObservationError(
                    f"wamkit.actions: expected finite float32 {fits}, got {actions.dtype} {actions.shape}"
                )
            return actions.astype(np.float32), None
        if wanted == "future":
            future, first = told["future"], (len(spec.frame_offsets), len(self.inputs.cameras))
            good = future.dtype == np.uint8 and future.ndim == 5 and future.shape[:2] == first
            if not good or future.shape[-1] != 3 or not all(1 <= n <= 4096 for n in future.shape):
                raise ObservationError(
                    f"wamkit.future: expected uint8 {(*first, 'H', 'W', 3)}, got {future.dtype} {future.shape}"
                )
            return None, np.ascontiguousarray(future.transpose(0, 1, 4, 2, 3))
        return None, None

    def _ahead(self, told: Mapping[str, Any], query: Query) -> Ahead | None:
        """Actions that are left of the client's chunk, for a query that acts.

        Raises ObservationError and UnsupportedQuery.
        """
        model, actions = self.engine.model, told.get("ahead")
        if actions is None:
            if "decided" in told:
                raise ObservationError("wamkit.decided: it says how many of `ahead` are decided, which is missing")
            return None
        if query not in (Query.POLICY, Query.JOINT):
            raise ObservationError(f"wamkit.ahead: the query '{query}' takes no actions ahead")
        if model.family.denoised is None:
            raise UnsupportedQuery(f"wamkit.ahead: this '{model.name}' cannot go on from given actions")
        if not isinstance(actions, np.ndarray):
            raise ObservationError(f"wamkit.ahead: expected an array, got a {type(actions).__name__}")
        if actions.ndim != 2:
            raise ObservationError(f"wamkit.ahead: expected float32 (steps, {self.inputs.action}), got {actions.shape}")
        decided = _number(told, "decided", len(actions), 0, len(actions))
        return checked(Ahead(actions, decided), model.spec.chunk, self.inputs.action)

    def _count(self, answer: Answered) -> None:
        self.metrics.waited.observe(answer.waited)
        self.metrics.computed.observe(answer.computed)
        self.metrics.rows.observe(answer.rows)


def _shown(answer: Answered, imagined: bool) -> dict[str, Any]:
    """The reply: actions, and imagined frames (F, V, H, W, 3) on request alone, since openpi's chunk broker slices
    every array of a reply along its first axis."""
    sample, timing = answer.sample, {"infer_ms": 1e3 * answer.computed, "queue_ms": 1e3 * answer.waited}
    reply: dict[str, Any] = {"server_timing": timing}
    if sample.actions is not None:
        reply["actions"] = np.ascontiguousarray(sample.actions, np.float32)
    if sample.future is not None and (imagined or sample.actions is None):
        reply["future"] = np.ascontiguousarray(sample.future.transpose(0, 1, 3, 4, 2))
    return reply


def example(inputs: Inputs, model: Model) -> Observation:
    """An observation to warm up with: black images and a usual state, at the beginning of an episode."""
    spec = model.spec
    images = np.zeros((len(inputs.cameras), 3, spec.height, spec.width), np.uint8)
    return Observation(images, model.usual()[0], "warm up", (None,) * len(spec.past_offsets))


def _session(request: Mapping[Any, Any]) -> str:
    """The name of a request's session; "" where the client does not name it."""
    told = request.get("wamkit")
    name = request.get("session_id", told.get("session_id") if isinstance(told, dict) else None)
    if name is None:
        return ""
    if isinstance(name, np.ndarray) and name.size == 1 and name.dtype.kind in "iu":
        name = name.item()
    if isinstance(name, (int, np.integer)) and not isinstance(name, bool):
        name = str(int(name))
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise ObservationError("session_id: expected a text of 1 to 200 characters, or a whole number")
    return name


def _number(told: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = told.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise ObservationError(f"wamkit.{key}: expected a whole number from {low} to {high}")
    return int(value)


def _event(event: str, **facts: Any) -> None:
    """One line of the log, in JSON."""
    if _LOG.isEnabledFor(logging.INFO):
        _LOG.info(json.dumps({"time": round(time.time(), 3), "event": event, **facts}))
