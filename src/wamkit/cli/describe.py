"""`wamkit describe`: what the numbers and cameras of a data set mean, as far as it is stated or inferred."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wamkit.cli.parse import COMMANDS, Options

if TYPE_CHECKING:
    from wamkit.data.format.store import Store
    from wamkit.metadata import DatasetMetadata


@dataclass(frozen=True)
class Describe(Options):
    """Print what is known of a data set's vectors and cameras, and complete it.

    Entries are stated in meta/wamkit.json, inferred from names and values, or unknown. Nothing is written unless
    --write or --out is given. With --write, unknown entries are asked for where the command runs on a terminal: Enter
    leaves one open, Ctrl-D the others too, and Ctrl-C writes nothing.
    """

    data: Path
    """Data set folder."""
    _: KW_ONLY
    set: Mapping[str, Any] = field(default_factory=dict)
    """Entries to set, as in embodiment=so101 action.gripper.larger=opens cameras.phone.role=scene state.gripper=6:7."""
    write: bool = False
    """Write the metadata into the data set, to meta/wamkit.json."""
    out: Path | None = None
    """File to write the metadata to, instead."""


@COMMANDS.register("describe")
def run(args: Describe) -> None:
    """Prints the table and the open entries, and writes the metadata where that is asked for."""
    from wamkit.config import to_bytes
    from wamkit.data.description import answered, described, unknown
    from wamkit.data.format.hub import data_folder, require_own
    from wamkit.data.format.metadata_io import complete_metadata
    from wamkit.data.format.store import Store
    from wamkit.files import atomic_write, check_output

    data = data_folder(args.data)
    if args.write:
        require_own(data)
    if args.out:
        check_output(args.out)
    store = Store.open(data, mend=False)
    columns = {k: v for k, v in args.set.items() if k.startswith("columns.")}
    store = store.with_columns(answered(described(store), columns).columns) if columns else store
    metadata = answered(described(store, str(args.set.get("embodiment", ""))), args.set)
    if args.write and sys.stdin.isatty() and sys.stdout.isatty():
        metadata = asked(metadata, store)
    metadata.check(len(store.layout.proprio_names), len(store.layout.action_names))
    print(table(metadata))
    left = unknown(metadata, store)
    for entry, options in left.items():
        print(f"unknown: {entry}: {options}")
    if left:
        print(f"to set one: wamkit describe {args.data} --set {next(iter(left))}=... --write")
    if args.out:
        atomic_write(args.out, to_bytes(metadata))
        print(args.out)
    if args.write:
        complete_metadata(data, metadata)
        print(data / "meta/wamkit.json")


def asked(metadata: DatasetMetadata, store: Store) -> DatasetMetadata:
    """The metadata with what the user answers for unknown entries, one after the other.

    A wrong answer is asked for again, Enter leaves an entry open, and the end of the input (Ctrl-D) all that follow.
    """
    from wamkit.config import ConfigError
    from wamkit.data.description import answered, unknown

    done: set[str] = set()
    names = {"state": store.layout.proprio_names, "action": store.layout.action_names}
    if unknown(metadata, store):
        print(table(metadata), "\nEnter leaves an entry open, Ctrl-D all that follow, Ctrl-C writes nothing.", sep="\n")
    while entry := next((e for e in unknown(metadata, store) if e not in done), ""):
        part, _, rest = entry.partition(".")
        of = next((f for f in getattr(metadata, part, ()) if f.name == rest.rpartition(".")[0]), None)
        place = f", of {', '.join(names[part][of.start : of.stop])}" if part in names and of else ""
        try:
            answer = input(f"{entry}{place} ({unknown(metadata, store)[entry]}): ").strip()
            metadata = answered(metadata, {entry: answer}) if answer else metadata
            done.add(entry)
        except ConfigError as error:
            print(error)
        except EOFError:
            print()
            break
    return metadata


def table(metadata: Any) -> str:
    """The entries of the metadata as lines of text: name, value, and where it is from."""
    rows = [
        (name, str(getattr(metadata, name))) for name in ("source", "embodiment", "control_mode", "rate", "licence")
    ]
    rows += [(f"columns.{k}", ", ".join(v) or "none") for k, v in metadata.columns.items()]
    for part in ("state", "action"):
        for f in getattr(metadata, part):
            more = (
                f.kind,
                f.representation,
                f.rotation,
                f.frame,
                f.unit,
                f.larger,
                f.reference and f"to {f.reference}",
            )
            rows.append((f"{part}.{f.name}", " ".join([f"{f.start}:{f.stop}", *(w for w in more if w)])))
    rows += [(f"cameras.{name}", camera.role) for name, camera in metadata.cameras.items()]
    origin = lambda name, value: (  # noqa: E731
        "unknown" if not value else "inferred" if any(e.startswith(name) for e in metadata.inferred) else "stated"
    )
    width, wide = max(len(name) for name, _ in rows), max(len(value) for _, value in rows)
    return "\n".join(f"  {name:<{width}}  {value:<{wide}}  {origin(name, value)}".rstrip() for name, value in rows)
