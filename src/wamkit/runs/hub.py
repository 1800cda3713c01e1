"""Runs on the Hub: a repository with the file of `wamkit export`, its description, its evaluations and a card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wamkit.files import StoreError, read_json
from wamkit.hub.download import RemoteFile, snapshot
from wamkit.hub.names import HubError, HubName

MODEL, ABOUT, FIGURES = "model.safetensors", "wamkit.json", "evaluations.json"
"""Files of a repository: the exported run, what it is, and its evaluations."""
FORMAT = 1
_SHA256 = re.compile("[0-9a-f]{64}")


def about(run: Mapping[str, Any], size: int, sha256: str) -> dict[str, Any]:
    """The content of wamkit.json. run: entries about the run.   size, sha256: of the exported file."""
    return {"format": FORMAT, **run, "files": {MODEL: {"size": size, "sha256": sha256}}}


def downloaded(name: HubName) -> Path:
    """The exported file of a run on the Hub, in the Hub's cache; downloaded unless it is there.

    Nothing but a description of a few kilobytes is downloaded of a repository without a run of wamkit.
    Raises HubError for such a one, and where it cannot be downloaded or arrives damaged.
    """
    if name.episodes is not None:
        raise HubError(f"{name}: a run has no episodes; name it hf://{name.repo}")
    found = snapshot(name, "model")
    path, described = found.folder / MODEL, found.folder / ABOUT
    if not path.exists() or not described.exists():
        if not {ABOUT, MODEL} <= found.describe([ABOUT, MODEL]).keys():
            raise HubError(
                f"{found.name} is no model of wamkit: it lacks {ABOUT} or {MODEL}, which `wamkit push` writes; load "
                "those of transformers or lerobot with these"
            )
        found.fetch([ABOUT])
        found.fetch([MODEL], {MODEL: _declared(described, found.name)})
    found.remember()
    return path


def _declared(path: Path, name: HubName) -> RemoteFile:
    """The exported file as wamkit.json describes it."""
    try:
        content = read_json(path, max_bytes=1 << 20)
        file, version = content["files"][MODEL], content["format"]
        if type(version) is int and version > FORMAT:
            raise HubError(f"{name} has format {version}, and this wamkit reads {FORMAT}: upgrade wamkit")
        if type(file["size"]) is not int or not _SHA256.fullmatch(file["sha256"]):
            raise ValueError("it does not describe the model")
        return RemoteFile(file["size"], file["sha256"])
    except (StoreError, LookupError, TypeError, ValueError) as error:
        raise HubError(f"{name} is no model of wamkit: {ABOUT} is damaged or another program's ({error})") from error
