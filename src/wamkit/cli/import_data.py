"""`wamkit import`: a foreign data set becomes a store."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from wamkit.cli.parse import COMMANDS, Options, extend, first_line
from wamkit.config import AtMost, Between
from wamkit.errors import WamkitError


@dataclass(frozen=True)
class Import(Options):
    """Import a foreign data set into a store, episode by episode.

    The same command continues an import that was cut off. `wamkit import FORMAT --help` lists the options of a format.
    """

    format: str
    """Name of the importer."""
    source: Path
    """File or folder to read."""
    _: KW_ONLY
    out: Path
    """Folder of the store."""
    on_error: Literal["fail", "skip"] = "fail"
    """Action on an episode that cannot be read: stop there, or leave it out and report it."""
    limit: Annotated[int, Between(1, inf), AtMost(10**9)] | None = None
    """Number of episodes to import; all if not given."""
    missing_views: Literal["refuse", "mask"] = "refuse"
    """Action on an episode without the images of a camera: refuse it, or take it without this view. A model then learns
    to do without the view, too."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Metadata that the source does not state, or states wrongly, as in action.gripper.larger=opens
    action.joints.unit=deg embodiment=so101; `wamkit describe` names the entries of imported data."""

    @classmethod
    def resolve(cls, argv: Sequence[str]) -> type[Options]:
        """Adds the options of the format, which is the first argument."""
        from wamkit.data.importers import IMPORTERS

        if argv and not argv[0].startswith("-"):
            importer = IMPORTERS.get(argv[0])
            if argv[0] == "table" and "--suggest" in argv:
                return Suggest
            return extend(cls, {"options": importer.Options()}, doc=importer.__doc__, flat=importer.flat)
        if argv and argv[0] not in ("-h", "--help"):
            raise WamkitError("name the format first: wamkit import FORMAT SOURCE --out FOLDER")
        formats = "\n".join(f"  {name:<12} {first_line(IMPORTERS.get(name))}" for name in IMPORTERS.names())
        return extend(cls, {}, doc=f"{cls.__doc__}\nFormats:\n{formats}")


@dataclass(frozen=True)
class Suggest(Import):
    """Write a first mapping file for recordings in any layout, to be looked through before they are imported."""

    _: KW_ONLY
    out: Path = Path()
    """Unused."""
    suggest: bool = False
    """Write the mapping instead of importing."""
    map: Path = Path("map.toml")
    """File to write."""


def _suggest(args: Suggest) -> None:
    from wamkit.data.importers.base import reading
    from wamkit.data.importers.table_suggest import suggest_map
    from wamkit.files import atomic_write, check_place

    if not args.source.exists():
        raise WamkitError(f"{args.source}: there is no such file or folder; name the one to look at")
    if args.map.exists():
        raise WamkitError(f"{args.map} is there already: name another file, --map FILE, or remove it")
    check_place(args.map)
    with reading(args.source):
        text = suggest_map(args.source)
    atomic_write(args.map, text.encode())
    print(f"{text}\nwritten: {args.map}; look through it, then\n"
          f"  wamkit import table {args.source} --map {args.map} --out DATA")  # fmt: skip


@COMMANDS.register("import")
def run(args: Import) -> None:
    """Imports, and prints the size of the data set and the episodes that were left out."""
    if isinstance(args, Suggest):  # by `Import.resolve`
        _suggest(args)
        return
    from wamkit.data.description import described, unknown
    from wamkit.data.importers import run as importers

    options: Any = args.options  # type: ignore[attr-defined]  # added by `resolve`
    given = importers.Import(
        format=args.format,
        source=args.source,
        out=args.out,
        on_error=args.on_error,
        limit=args.limit,
        missing_views=args.missing_views,
        set=args.set,
    )
    videos: Counter[str] = Counter()
    store = importers.import_data(given, options, videos)
    print(f"imported: {len(store)} episodes, {store.frames} frames in {store.root}")
    if videos:
        print(importers.describe_videos(videos))
    if unused := store.unused():
        print(f"note: stored, but not used in training: {', '.join(unused)}")
    if dropped := importers.importer_of(args.format, args.source, options).dropped():
        print(f"note: not stored: {', '.join(dropped)}")
    if notes := importers.noted(store.root):
        name, note = next(iter(notes.items()))
        print(f"note: episode {name}: {note[0]} ({len(notes)} episodes with notes; {importers.FILE} lists them)")
    if left := list(unknown(described(store), store)):
        listed = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if left[3:] else "")
        print(f"note: not known: {listed}; `wamkit describe {store.root}` lists and sets them")
    if skipped := importers.describe(importers.left_out(store.root)):
        print(skipped, file=sys.stderr)
