"""The client library of the Hub, imported at first use, and its errors as one line each."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wamkit.files import advice_for
from wamkit.hub.names import HubError, HubName, Kind

INSTALL = "pip install 'wamkit[hub]'"
SIGN_IN = "`hf auth login`, or HF_TOKEN"
KINDS = {"model": "model", "dataset": "data set"}
_CUT = ("ChunkedEncodingError", "RemoteProtocolError")
"""Errors of the packages `requests` and `httpx`, of which the client library uses one, where a connection is cut."""
_TRIES = 5


class Unreachable(HubError):
    """The Hub cannot be asked: there is no network, it does not answer, or it must not be used."""


def library() -> Any:
    """The package `huggingface_hub`. Raises HubError if it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise HubError(f"the Hub needs the package huggingface_hub ({error}): {INSTALL}") from error
    return huggingface_hub


def cache() -> Path:
    """The folder that downloads are kept in."""
    return Path(library().constants.HF_HUB_CACHE)


def endpoint() -> str:
    """The address of the Hub: `HF_ENDPOINT`, or the public one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(library().constants.ENDPOINT)


def api() -> Any:
    """A client of the Hub at `HF_ENDPOINT`, with the user's token."""
    return library().HfApi(endpoint=endpoint(), library_name="wamkit")


def require_online() -> None:
    """Raises Unreachable if the user has forbidden the network."""
    if library().constants.HF_HUB_OFFLINE:
        raise Unreachable("HF_HUB_OFFLINE is set, so the Hub is not asked: unset it")


@contextlib.contextmanager
def quiet(files: int) -> Iterator[None]:
    """Shows a bar for a single file on a terminal alone: of many files one line names all."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not (files == 1 and sys.stderr.isatty()) and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def uncut(download: Callable[[], str]) -> str:
    """The result of `download`, called again where its connection is cut: it goes on after what has arrived.

    Only newer versions of the client library do so themselves.
    """
    for _ in range(_TRIES - 1):
        try:
            return download()
        except (library().errors.HTTPError, OSError) as error:
            if type(error).__name__ not in _CUT:
                raise
    return download()


@contextlib.contextmanager
def asking(name: HubName, kind: Kind) -> Iterator[None]:
    """Turns errors of the client library into HubErrors of one line about the repository `name`."""
    errors, what = library().errors, f"{KINDS[kind]} {name.repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        page = f"{endpoint()}/{'datasets/' * (kind == 'dataset')}{name.repo}"
        raise HubError(f"the {what} is gated: ask for access at {page}, then sign in ({SIGN_IN})") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"the Hub ({endpoint()}) shows you no {what}: check the name, or sign in if it is private ({SIGN_IN})"
        ) from error
    except errors.RevisionNotFoundError as error:
        lost = "its history was rewritten, so name another revision" if name.is_pinned else "name one that it has"
        raise HubError(f"the {what} has no revision '{name.revision}' on the Hub: {lost}") from error
    except errors.LocalEntryNotFoundError as error:
        raise Unreachable(_unreachable(error.__cause__ or error)) from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{name} lacks a file: {_short(error)}; name another revision") from error
    except errors.OfflineModeIsEnabled as error:
        raise Unreachable("HF_HUB_OFFLINE is set, so the Hub is not asked: unset it") from error
    except errors.HFValidationError as error:
        raise HubError(f"{name} is no name that the Hub allows: {_short(error)}; write hf://USER/NAME") from error
    except errors.HfHubHTTPError as error:
        raise _refused(error, what) from error
    except (errors.HTTPError, OSError) as error:
        raise _broken(error, name) from error
    except (ValueError, RuntimeError) as error:  # of uploads that the library gives up
        raise HubError(f"the {what} was not written ({_short(error.__cause__ or error)}): try again") from error


def _refused(error: Any, what: str) -> HubError:
    """The error for an answer that is none of those with a class of their own."""
    status = error.response.status_code if error.response is not None else 0
    reason = error.server_message or _short(error)
    if status == 401:
        return HubError(f"the Hub does not accept your token for the {what} ({_short(reason)}): sign in ({SIGN_IN})")
    if status == 403:
        return HubError(
            f"your token may not do this with the {what} ({_short(reason)}): use one with the right to, or another name"
        )
    if status in (409, 412):
        return HubError(f"the {what} has changed meanwhile ({_short(reason)}): run the same command again")
    if status == 429 or status >= 500:
        return Unreachable(f"the Hub ({endpoint()}) answers {status} ({_short(reason)}): try again later")
    return HubError(f"the Hub refuses this for the {what}: {status} ({_short(reason)})")


def _broken(error: Exception, name: HubName) -> HubError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return HubError(f"{name} cannot be kept in {cache()} ({error.strerror}): {advice_for(error)}, with HF_HOME")
    if "Consistency check failed" in str(error):
        return HubError(f"{name} was cut off on its way ({_short(error)}): run the same command again")
    return Unreachable(_unreachable(error))


def _unreachable(error: object) -> str:
    return f"the Hub ({endpoint()}) cannot be reached ({_short(error)}): check the network and HF_ENDPOINT"


def _short(reason: object) -> str:
    """The first line of a message, at most 160 characters."""
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    return lines[0][:160].rstrip(" .")
