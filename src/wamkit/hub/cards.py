"""Cards: the README.md of a repository on the Hub, which begins with metadata as YAML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wamkit.hub.names import HubError

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,40}")


def card(metadata: Mapping[str, Any], title: str, sections: Iterable[str]) -> bytes:
    """A README.md. sections: Markdown; empty ones are left out."""
    import yaml

    head = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, width=1000)
    body = "\n\n".join([f"# {cell(title)}", *filter(None, sections)])
    return f"---\n{head}---\n\n{body}\n".encode()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; "" without rows."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", *lines]) if lines else ""


def code(text: str, language: str = "") -> str:
    """A fenced block; "" without text."""
    return f"```{language}\n{text}\n```" if text else ""


def cell(value: object) -> str:
    """A text of data on one line, without meaning to Markdown or HTML."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def licence_of(name: str) -> str:
    """A licence as the Hub spells it: "Apache 2.0" is "apache-2.0". Raises HubError for what is no such name."""
    spelled = re.sub(r"[\s_]+", "-", name.strip().lower())
    if not _LICENCE.fullmatch(spelled):
        raise HubError(
            f"'{name}' is no licence as the Hub names them: apache-2.0, mit, cc-by-4.0, other (https://hf.co/docs/hub/"
            "repositories-licenses)"
        )
    return spelled
