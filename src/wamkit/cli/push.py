"""`wamkit push`: a run or a data set on the Hub."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wamkit.cli.parse import COMMANDS, Options
from wamkit.errors import WamkitError

if TYPE_CHECKING:
    from wamkit.hub.names import HubName
    from wamkit.hub.upload import Upload


@dataclass(frozen=True)
class Push(Options):
    """Put a run or a data set on the Hugging Face Hub, with a card.

    Of a run go the weights for inference, its configuration and the evaluations of these weights: safetensors and JSON.
    Of a data set goes all that LeRobot and wamkit read. Everything is one commit. Needs wamkit[hub], and a token that
    may write: `hf auth login`, or HF_TOKEN.
    """

    source: Path
    """Run folder, file of `wamkit export`, or data set folder."""
    to: str
    """USER/NAME, or USER/NAME@BRANCH. The repository and the branch are made if they do not exist."""
    _: KW_ONLY
    license: str = ""
    """Licence as the Hub names it: apache-2.0, mit, cc-by-4.0. Of a data set, by default the one that its metadata
    state."""
    private: bool = False
    """Make a new repository visible to its owner alone."""
    message: str = ""
    """Message of the commit; names the weights or the episodes if not given."""
    dry_run: bool = False
    """Print what would be sent, with sizes, and ask the Hub nothing."""


@COMMANDS.register("push")
def run(args: Push) -> None:
    """Sends the files, and prints how they are loaded. With --dry-run prints them alone."""
    from wamkit.hub.cards import licence_of
    from wamkit.hub.names import HubError, hub_name

    name = hub_name(args.to if args.to.startswith("hf:/") else f"hf://{args.to}")
    if name is None or name.episodes is not None:
        raise HubError(f"'{args.to}' names no repository: write USER/NAME or USER/NAME@BRANCH")
    licence = licence_of(args.license) if args.license else ""
    is_data = (args.source / "meta/info.json").exists()
    upload, what = (_data if is_data else _run)(args.source, name, licence)
    sizes = upload.sizes()
    wide = max(map(len, sizes))
    shown = list(sizes.items()) if len(sizes) <= 40 else [*list(sizes.items())[:20], *list(sizes.items())[-20:]]
    print("\n".join(f"  {k:<{wide}}  {v:>12,}" for k, v in shown))
    print(f"{what}: {len(sizes)} files, {sum(sizes.values()):,} bytes")
    if b"\nlicense:" not in upload.files["README.md"][:5000]:
        print("note: no licence is stated, so others may not use it: --license NAME states one")
    if args.dry_run:
        return
    from wamkit.hub.upload import push

    commit = push(name, upload, private=args.private, message=args.message or what)
    print(f"pushed: {name} at {commit}")
    taken = f"--data {name}" if is_data else f'wamkit.load("{str(name).removeprefix("hf://")}")'
    print(f"others load it with {taken}, and this very state with {name.at(commit)}")


def _run(source: Path, name: HubName, licence: str) -> tuple[Upload, str]:
    """The files of a run, and one line about it."""
    import json

    from wamkit.runs.config import require_run

    path = require_run(source)
    import hashlib

    from wamkit.eval.report.model_card import evaluations, model_card
    from wamkit.files import scratch_folder
    from wamkit.hub.upload import Upload
    from wamkit.runs import hub
    from wamkit.runs.exported import export
    from wamkit.runs.run import Run

    opened = Run.open(path)
    parameters = sum(p.numel() for p in opened.family().parameters())  # which verifies the weights
    with scratch_folder() as folder:
        export(opened, folder / hub.MODEL)
        weights = (folder / hub.MODEL).read_bytes()
    evaluated = evaluations(opened, name.repo)
    described = {"family": opened.config.family, "step": opened.step, "digest": opened.digest, "parameters": parameters}
    about = hub.about(described | {"config": opened.described}, len(weights), hashlib.sha256(weights).hexdigest())
    text = lambda content: (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()  # noqa: E731
    files = {"README.md": model_card(opened, name.repo, parameters, evaluated, licence), hub.ABOUT: text(about)}
    files |= {hub.FIGURES: text(evaluated)} if evaluated else {}
    owned = (hub.MODEL, hub.ABOUT, hub.FIGURES)
    what = f"{opened.config.family}, step {opened.step}, weights {opened.digest[:12]}"
    return Upload("model", files | {hub.MODEL: weights}, hub.ABOUT, owned), what


def _data(source: Path, name: HubName, licence: str) -> tuple[Upload, str]:
    """The files of a data set, and one line about it."""
    from wamkit.data.dataset_card import dataset_card
    from wamkit.data.format.hub import INFO, ROOT_FILES
    from wamkit.data.format.metadata_io import load_metadata
    from wamkit.data.format.schema import VERSION
    from wamkit.data.format.store import Store
    from wamkit.data.importers.run import require_whole
    from wamkit.files import visible
    from wamkit.hub.cards import licence_of
    from wamkit.hub.upload import Upload

    store = Store.open(source, mend=False)
    require_whole(store.root)
    if not len(store) or not (store.root / "meta/stats.json").exists():
        raise WamkitError(f"{source} is not complete: finish its collection or import first, with the same command")
    paths = {path for episode in range(len(store)) for path in store.files(episode)}
    for episode in range(len(store)):
        store.verify(episode)
    paths |= {p for kind in ("json", "parquet") for p in visible(store.root, f"meta/**/*.{kind}")}
    paths |= {p for n in ROOT_FILES if (p := store.root / n).exists()}
    metadata = load_metadata(store.root)
    licence = licence or (licence_of(metadata.licence) if metadata and metadata.licence else "")
    files = {"README.md": dataset_card(store, name.repo, licence)}
    files |= {p.relative_to(store.root).as_posix(): p for p in sorted(paths)}
    owned = ("meta", "data", "videos", "snapshots", *ROOT_FILES)
    return Upload("dataset", files, INFO, owned, tag=VERSION), f"{len(store)} episodes, {store.frames} frames"
