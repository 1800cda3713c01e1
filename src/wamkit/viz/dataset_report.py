"""The page of a data set: contents, findings, ranges of values, and a sheet of frames."""

from __future__ import annotations

from html import escape

import numpy as np

from wamkit.data.format.store import Store
from wamkit.data.validate import Finding, grouped, summary
from wamkit.files import StoreError
from wamkit.metadata import DatasetMetadata
from wamkit.viz.html import header, page, section, table
from wamkit.viz.images import data_uri, png


def dataset_page(store: Store, metadata: DatasetMetadata | None, findings: list[Finding]) -> str:
    """The HTML page of `store`, with the findings of `wamkit.data.validate.validate`."""
    contents = [f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in summary(store, metadata)]
    sections = [
        section("Contents", "", [table([], contents)]),
        section("Findings", "", [_findings(findings)]),
        section("Values", "", [_ranges(store)]),
        section(
            "Frames",
            "First, middle and last frame of all cameras, of episodes spread over the data set.",
            [_sheet(store)],
        ),
    ]
    return page(store.root.name, header(store.root.name) + "".join(sections))


def _findings(findings: list[Finding]) -> str:
    rows = []
    for f in grouped(findings):
        style = ' class="missed"' if f.level == "error" else ""
        episode = "all" if f.episode is None else f.episode
        rows.append(f"<tr><td{style}>{f.level}</td><td>{episode}</td><td>{escape(f.message + f.more)}</td></tr>")
    return table(["", "Episode", "Finding"], rows) if rows else "<p>No findings.</p>"


def _ranges(store: Store) -> str:
    rows = []
    for key, names in (("observation.state", store.layout.proprio_names), ("action", store.layout.action_names)):
        x = store.numeric()[key]
        for i, name in enumerate(names):
            values = np.quantile(x[:, i], (0.0, 0.01, 0.5, 0.99, 1.0))
            cells = "".join(f'<td class="num">{v:.4g}</td>' for v in values)
            rows.append(f"<tr><td>{escape(key)}, {escape(name)}</td>{cells}</tr>")
    head = ["", "minimum", "1 %", "median", "99 %", "maximum"]
    return table(head, rows) if rows else "<p>No states or actions.</p>"


def _sheet(store: Store) -> str:
    out = ""
    chosen = np.unique(np.linspace(0, len(store) - 1, 8).astype(int)).tolist()
    for index in chosen if store.cameras else []:
        episode = store.episodes[index]
        steps, images = sorted({0, episode.length // 2, episode.length - 1}), ""
        for camera in store.cameras:
            try:
                frames = store.decode_steps(index, camera, steps)
            except StoreError:
                continue  # a finding says so
            source = data_uri(png(np.concatenate(list(frames), 2)), "image/png")
            images += f'<img src="{source}" style="height:96px;width:auto" alt="{escape(camera)}" '
            images += f'title="{escape(camera)}">'
        caption = escape(f"{index}: {episode.text or '(no text)'}; {', '.join(store.cameras)}")
        out += f"<figure>{images}<figcaption>{caption}</figcaption></figure>" * bool(images)
    return out or "<p>No images.</p>"
