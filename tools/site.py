"""Hooks of the documentation's site: README.md is the front page, and each room of the library gets an API page."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/wamkit"


def modules(room: Path) -> list[str]:
    """Dotted names of a room's modules, the package itself first; `room` is a folder or a file without its suffix."""
    files = (
        sorted(room.rglob("*.py"), key=lambda p: (p.name != "__init__.py", p))
        if room.is_dir()
        else [room.with_suffix(".py")]
    )
    names = (p.relative_to(PACKAGE.parent).with_suffix("").parts for p in files)
    names = (n[:-1] if n[-1] == "__init__" else n for n in names)
    return sorted(".".join(n) for n in names if not any(part.startswith("_") for part in n))


def api_pages() -> dict[str, str]:
    """Markdown of the API pages by path: one a folder, `types`, and `ground` for the other single modules."""
    rooms = {p.name: [p] for p in sorted(PACKAGE.iterdir()) if (p / "__init__.py").is_file()}
    single = [p.with_suffix("") for p in sorted(PACKAGE.glob("[!_]*.py"))]
    rooms["types"] = [p for p in single if p.name == "types"]
    rooms["ground"] = [p for p in single if p.name != "types"]
    pages = {}
    for name, places in rooms.items():
        found = [m for place in places for m in modules(place)]
        blocks = "\n\n".join(f"::: {m}" for m in found)
        pages[f"api/{name}.md"] = f"# {name}\n\n{blocks}\n"
    return pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made rather than kept: the API's, and the repository's own as the first and the last."""
    made = api_pages() | {"index.md": (ROOT / "README.md").read_text()}
    made["CONTRIBUTING.md"] = (ROOT / "CONTRIBUTING.md").read_text()
    for path, text in made.items():
        files.append(File.generated(config, path, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to what is not on the site (examples, the licence, folders) become text, with the path where it differs."""

    def shown(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))
        if "://" in target or not target or files.get_file_from_path(path):
            return match.group(0)
        return text if text.strip("`") in path else f"{text} (`{path.removeprefix('../')}`)"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)#\s]*)(?:#[^)]*)?\)", shown, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuses a page that loads anything from elsewhere: scripts, styles, fonts, images, frames."""
    elsewhere = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>", output)
    if elsewhere:
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {elsewhere[0]}")
    return output
