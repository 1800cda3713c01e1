"""The description of a mixture: its sources, their weights, and what is made of their images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from wamkit import config as cfg
from wamkit.data.embodiment import Normaliser
from wamkit.hub.names import HubName, remote_name


@dataclass(frozen=True)
class SourceConfig(cfg.Checked):
    """One data set of a mixture."""

    data: str
    """Its folder, relative to the mixture's file, its name on the Hub, hf://USER/NAME@REVISION, or a URL, s3://BUCKET/FOLDER."""
    weight: Annotated[float, cfg.Between(1e-9, inf), cfg.AtMost(1e9)] = 1.0
    name: str = ""
    """Its name in logs; the folder's name if empty."""
    demonstrations: tuple[int, int] | None = None
    """Use only these demonstrations: from the first number up to, but excluding, the second. None uses all episodes.
    With a range, off-expert episodes are left out."""
    actions: bool = True
    """Learn from its actions. If false, it serves as video without actions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.demonstrations is not None and not 0 <= self.demonstrations[0] < self.demonstrations[1]:
            raise cfg.ConfigError(
                f"{self.data}: demonstrations {self.demonstrations}: the first must be below the second"
            )

    @property
    def label(self) -> str:
        """Its name, or the folder's."""
        remote = remote_name(self.data)
        place = remote.repo if isinstance(remote, HubName) else remote.path if remote else self.data
        return self.name or Path(place).name + ("" if self.actions else "-video")


@dataclass(frozen=True)
class MixtureConfig(cfg.Checked):
    """A mixture of data sets as its JSON file describes it."""

    sources: tuple[SourceConfig, ...]
    by: Literal["sample", "episode", "hour"] = "sample"
    """Unit of the weights: the share of all samples, or the weight of each episode, or of each hour of a data set."""
    size: tuple[cfg.Side, cfg.Side] = (64, 64)
    """Height and width to which all images are resized."""
    views: tuple[str, ...] = ("scene",)
    """The model's views by camera role: scene, wrist, ego. "scene+ego" is one view, of whichever a data set has."""
    relative: bool = True
    """Convert absolute end-effector poses to poses relative to the robot's pose at the start of the chunk."""
    normalisers: Mapping[str, Normaliser] = field(default_factory=dict)
    """Normalisers by field name or kind, where the defaults do not fit; see `wamkit.data.embodiment`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.views:
            raise cfg.ConfigError("views are empty: name one at least, by the roles of cameras, as in scene wrist")
        names = self.names
        if not names or len(set(names)) < len(names):
            raise cfg.ConfigError(
                f"sources {names}: there must be at least one, and their names must differ; "
                "name each in the file of the mixture"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sources."""
        return tuple(s.label for s in self.sources)


def parse_sources(words: Sequence[str], out: Path) -> tuple[SourceConfig, ...]:
    """The sources described on the command line, as FOLDER:WEIGHT:FIRST-LAST:video. All but the folder is optional.

    A folder's name may contain ":": the longest beginning of a word that exists is the folder. It may be a name on the
    Hub, hf://USER/NAME, or a URL, s3://BUCKET/FOLDER, which stays as it is.

    out: the mixture's file. Folders become relative to it.

    Raises ConfigError for malformed words.
    """
    sources = []
    for word in words:
        pieces = word.split(":")
        ends_at = [n for n in range(len(pieces), 0, -1) if Path(":".join(pieces[:n])).exists()]
        end = (ends_at or [2 if "://" in word else 1])[0]
        folder, parts = ":".join(pieces[:end]), pieces[end:]
        options: dict[str, Any] = {}
        for part in parts:
            ends = part.split("-")
            if part == "video":
                options["actions"] = False
            elif len(ends) == 2 and all(n.isdecimal() for n in ends):
                options["demonstrations"] = (int(ends[0]), int(ends[1]))
            else:
                try:
                    options["weight"] = float(part)
                except ValueError as error:
                    how = "as in data/umi:0.3, data/demos:0.5:0-10 or data/demos:0.5:10-60:video"
                    raise cfg.ConfigError(f"'{word}' is not FOLDER:WEIGHT:FIRST-LAST:video, {how}") from error
        place = folder if remote_name(folder) else os.path.relpath(folder, out.parent)
        sources.append(SourceConfig(place, **options))
    return tuple(_named_apart(s, sources) for s in sources)


def _named_apart(source: SourceConfig, sources: Sequence[SourceConfig]) -> SourceConfig:
    """The source, with its parent folder in its name where another folder has the same one."""
    alike = {s.data for s in sources if s.label == source.label}
    folder = Path(source.data)
    name = "-".join(part for part in (folder.parent.name, source.label) if part not in ("", ".."))
    return replace(source, name=name) if len(alike) > 1 else source


def is_mixture(path: Path) -> bool:
    """True if the file at `path` describes a mixture."""
    try:
        cfg.load_json(MixtureConfig, path)
    except cfg.ConfigError:
        return False
    return True
