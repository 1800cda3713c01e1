"""`wamkit show`: a family on one screen."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wamkit.cli.parse import COMMANDS, Options
from wamkit.errors import WamkitError, nearest

if TYPE_CHECKING:
    from wamkit.families.base import Family


@dataclass(frozen=True)
class Show(Options):
    """Show a family: its place in the taxonomy, queries, parameters and attention layout."""

    name: str
    """Name of a family or a recipe, or a run: its folder, a file of `wamkit export`, or USER/NAME on the Hub."""
    _: KW_ONLY
    out: Path | None = None
    """File for a drawing of the attention layout, *.svg."""


@COMMANDS.register("show")
def run(args: Show) -> None:
    """Prints the page, and writes the drawing if it is wanted."""
    from wamkit.files import atomic_write, check_output

    check_name(args.name)
    if args.out is not None:
        check_output(args.out)
    from wamkit.nn.video_tokens import VideoContext
    from wamkit.viz.family_page import layout_file, text

    model = model_of(args.name)
    print(text(model))
    if isinstance(model.context, VideoContext) and next(model.parameters()).is_meta:
        from wamkit.runs.sizing import lines, sizes_of

        print("\non a pretrained video model, two cameras (counted without its weights, which takes some seconds)")
        for line in lines(sizes_of(model)):
            print(line, flush=True)
    if args.out is not None:
        atomic_write(args.out, layout_file(model).encode())
        print(args.out)


def check_name(name: str) -> None:
    """Raises WamkitError unless `name` is that of a recipe, a family or a run."""
    from wamkit.runs.config import family_names
    from wamkit.runs.recipes import RECIPES

    families, recipes = family_names(), RECIPES.names()
    if not _is_run(name) and name not in (*families, *recipes):
        near = nearest(name, (*families, *recipes))
        known = f"families: {', '.join(families)}; recipes: {', '.join(recipes)}"
        raise WamkitError(f"'{name}' is no family, recipe or run folder{near}; {known}")


def model_of(name: str) -> Family:
    """The model of a run, or that of a recipe or of a family's defaults, without memory behind its weights."""
    check_name(name)
    from wamkit.inference.model import load
    from wamkit.runs.config import RunConfig, config_class
    from wamkit.runs.meta_model import meta_model
    from wamkit.runs.recipes import RECIPES

    if _is_run(name):
        return load(name).family
    if name in RECIPES:
        return meta_model(RECIPES.get(name)())
    return meta_model(RunConfig(name, config_class(name)()))


def _is_run(name: str) -> bool:
    from wamkit.runs.config import require_run

    path = Path(name)
    if "/" in name and not path.exists():
        path = require_run(path)
    return path.is_dir() or path.suffix == ".safetensors" and path.is_file()
