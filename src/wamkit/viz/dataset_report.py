"""The page of a data set: what it holds, what is wrong with it, ranges of its values, and a sheet of frames."""

from __future__ import annotations

from html import escape

import numpy as np

from wamkit.data.format.store import Store
from wamkit.data.validate import Finding, summary
from wamkit.files import StoreError
from wamkit.metadata import DatasetMetadata
from wamkit.viz.images import data_uri, png
from wamkit.viz.style import CSS


def dataset_page(store: Store, meaning: DatasetMetadata | None, found: list[Finding]) -> str:
    """The HTML page of `store`, with the findings of `wamkit.data.validate.validate`."""
    facts = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in summary(store, meaning))
    lines = "".join(
        f'<tr><td class="{"missed" if f.level == "error" else ""}">{f.level}</td>'
        f"<td>{'all' if f.episode is None else f.episode}</td><td>{escape(f.message)}</td></tr>"
        for f in found
    )
    nothing = "<p>Nothing was found.</p>"
    findings = (
        f"<table><thead><tr><th></th><th>Episode</th><th>What</th></tr></thead><tbody>{lines}</tbody></table>"
        if found
        else nothing
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(store.root.name)}</title><style>{CSS}</style><main><h1>{escape(store.root.name)}</h1>"
        f"<section><div><h2>What is in it</h2></div><div class='body'><table>{facts}</table></div></section>"
        f"<section><div><h2>What was found</h2></div><div class='body'>{findings}</div></section>"
        f"<section><div><h2>Its numbers</h2></div><div class='body'>{_columns(store)}</div></section>"
        f"<section><div><h2>What it looks like</h2><p class='how'>First, middle and last picture of episodes from all over it.</p></div>"
        f"<div class='body'>{_sheet(store)}</div></section></main></html>\n"
    )


def _columns(store: Store) -> str:
    rows = ""
    for key, names in (("observation.state", store.layout.proprio_names), ("action", store.layout.action_names)):
        x = store.numeric()[key]
        for i, name in enumerate(names):
            low, middle, high = np.quantile(x[:, i], (0.01, 0.5, 0.99))
            cells = "".join(f'<td class="num">{v:.4g}</td>' for v in (x[:, i].min(), low, middle, high, x[:, i].max()))
            rows += f"<tr><td>{escape(key)}, {escape(name)}</td>{cells}</tr>"
    head = "".join(f"<th>{h}</th>" for h in ("", "least", "1 %", "median", "99 %", "most"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else "<p>It has none.</p>"


def _sheet(store: Store) -> str:
    out = ""
    chosen = np.unique(np.linspace(0, len(store) - 1, 8).astype(int)).tolist()
    for e in chosen if store.cameras else []:
        m = store.episodes[e]
        try:
            film = store.decode_steps(e, store.cameras[0], sorted({0, m.length // 2, m.length - 1}))
        except StoreError:
            continue  # a finding says so
        row = np.concatenate(list(film), 2)
        source = data_uri(png(row), "image/png")
        said = escape(m.text or "(no text)")
        out += f'<figure><img src="{source}" style="height:96px;width:auto" alt=""><figcaption>{e}: {said}</figcaption></figure>'
    return out or "<p>It has no pictures.</p>"
