"""A connection to a served model: observations go out, action chunks come back."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time
from contextlib import ExitStack, suppress
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as _open

from wamkit_client.protocol import MAX_BYTES, ProtocolError, pack, unpack

_PAUSE = 0.1  # seconds between two attempts to connect


class ServerError(RuntimeError):
    """The server refused a request, in its own words. The connection stays."""


class Client:
    """One robot's connection. `connect` makes one.

    url: "ws://HOST:PORT", or "wss://" with TLS.
    token: of a server that asks for one.
    wait: seconds to wait for a server that does not answer yet.
    timeout: seconds to wait for an answer, and for a server that takes nothing.
    proxy: address of an HTTP proxy; none is asked otherwise, whatever the environment names: robots' servers are near.
    tls: of a server with a certificate of its own, a context that trusts it.
    max_bytes: largest answer that is taken.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        wait: float = 0.0,
        timeout: float = 60.0,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
        max_bytes: int = MAX_BYTES,
    ):
        self.url, self.timeout, self._max_bytes = url, timeout, max_bytes
        self._options: dict[str, Any] = {"compression": None, "max_size": max_bytes, "ssl": tls, "proxy": proxy}
        if token:
            self._options["additional_headers"] = {"Authorization": f"Api-Key {token}"}
        self._open = ExitStack()
        self.closed = False
        """True after `close`, until `connect` is called."""
        self._socket: ClientConnection | None = None
        self._sending = False
        self.metadata: dict[str, Any] = {}
        self.connect(wait)

    def connect(self, wait: float = 0.0) -> None:
        """Connects, again if need be, and reads the server's metadata.

        Raises ConnectionError if the server does not answer within `wait` seconds, or refuses the connection.
        """
        self.closed = False
        self.reconnect(wait)

    def reconnect(self, wait: float = 0.0) -> None:
        """The same for a connection that was lost, unless it was closed on purpose. Raises as `connect`."""
        self._drop()
        if self.closed:
            raise ConnectionError(f"the connection to {self.url} was closed")
        until = time.monotonic() + wait
        while True:
            try:
                limit = max(5.0, until - time.monotonic())
                made = self._open.enter_context(_open(self.url, open_timeout=limit, close_timeout=1, **self._options))
                _limit_sending(made.socket, self.timeout)
                self.metadata, self._socket = self._read(made.recv(self.timeout)), made
                return
            except (OSError, EOFError, InvalidMessage, ConnectionClosed) as error:  # not there yet
                if time.monotonic() >= until:
                    raise ConnectionError(
                        f"no server answers at {self.url} ({type(error).__name__}: {error})"
                    ) from None
                time.sleep(_PAUSE)
            except InvalidHandshake as error:
                raise ConnectionError(f"{self.url} refuses the connection: {error}") from None

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The answer to one observation: its entry "actions" is float32 (chunk, action dimensions).

        Raises ServerError where the server refuses it, TimeoutError if no answer comes in time, and ConnectionError if
        the connection is lost: `connect` makes it anew. After the last two the connection is closed, so that a late
        answer is never taken for that to another observation.
        """
        if self._socket is None:
            raise ConnectionError(f"there is no connection to {self.url}: call connect()")
        message = pack(observation)
        largest = self.metadata.get("wamkit", {}).get("max_bytes")
        if isinstance(largest, int) and len(message) > largest:
            raise ServerError(
                f"{self.url} takes {largest} bytes, the observation has {len(message)}: send smaller images"
            )
        try:
            self._sending = True
            self._socket.send(message)
            self._sending = False
            answer = self._socket.recv(self.timeout)
        except TimeoutError:
            self._drop()
            raise TimeoutError(f"{self.url} did not answer within {self.timeout:g} s") from None
        except (ConnectionClosed, OSError) as error:
            self._drop()
            raise ConnectionError(f"the connection to {self.url} was lost ({error})") from None
        except BaseException:  # Ctrl-C: the answer still comes, and would be taken for that to another observation
            self._drop()
            raise
        return self._read(answer)

    def close(self) -> None:
        """Closes the connection, if there is one. A `Runner` does not make it anew."""
        self.closed = True
        self._drop()

    def _drop(self) -> None:
        if self._socket is not None and self._sending:  # to a server that does not read: no farewell would come through
            with suppress(OSError):
                self._socket.socket.shutdown(socket.SHUT_RDWR)
        self._socket, self._sending = None, False
        self._open.close()

    def _read(self, answer: str | bytes) -> dict[str, Any]:
        if isinstance(answer, str):
            raise ServerError(answer)
        message = unpack(answer, self._max_bytes)
        if not isinstance(message, dict):
            self._drop()
            raise ProtocolError(f"{self.url} answered with a {type(message).__name__}, not with a mapping")
        return message

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _limit_sending(raw: socket.socket, seconds: float) -> None:
    """Makes sending fail once the other side has taken nothing for so long; receiving has limits of its own."""
    if os.name == "posix":
        whole = int(seconds)
        limit = struct.pack("ll", whole, int(1e6 * (seconds - whole)))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def connect(url: str, **options: Any) -> Client:
    """A `Client` of the server at `url`, connected. The options are those of `Client`."""
    return Client(url, **options)
