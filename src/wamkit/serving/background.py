"""A server in a thread of this process, for those who ask a model of their own machine as robots ask a server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from wamkit.serving.server import PolicyServer


@contextmanager
def in_background(make: Callable[[], PolicyServer]) -> Iterator[PolicyServer]:
    """The server that `make` gives, listening; its engine has stopped too when the block ends.

    Raises OSError where it cannot listen.
    """
    started = threading.Event()
    loops, servers, failed = list[asyncio.AbstractEventLoop](), list[PolicyServer](), list[BaseException]()

    async def main() -> None:
        server = make()
        async with server:
            loops.append(asyncio.get_running_loop())
            servers.append(server)
            started.set()
            await server.until_told()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            if started.is_set():
                raise
            failed.append(error)  # it is raised where the block would begin
        finally:
            started.set()

    thread = threading.Thread(target=run, name="wamkit-server")
    thread.start()
    started.wait()
    if failed:
        thread.join()
        raise failed[0]
    try:
        yield servers[0]
    finally:
        with suppress(RuntimeError):  # its loop has ended already
            loops[0].call_soon_threadsafe(servers[0].stop)
        thread.join()
        servers[0].engine.stop(0)
