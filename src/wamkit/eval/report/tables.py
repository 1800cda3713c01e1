"""Tables as text for a terminal and as rows of summary.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from wamkit.eval.results import Row, Table

VERDICTS = {"": "", "met": "met", "missed": "MISSED", "not shown": "not shown"}


def text_table(tables: Sequence[Table]) -> str:
    """Text of the tables for a terminal."""
    lines = []
    for table in tables:
        lines += ["", table.title]
        for r in table.rows:
            interval = f"[{bound(r.interval.low, r.fmt)}, {bound(r.interval.high, r.fmt)}]" if r.interval else ""
            value = "undefined" if math.isnan(r.value) else format(r.value, r.fmt)
            target = r.target.words(r.fmt) if r.target else ""
            line = f"  {r.name:<42} {value:>8} {r.unit:<3} {interval:<20} {target:<14} {VERDICTS[r.verdict]}"
            lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


def bound(x: float, fmt: str) -> str:
    """Text of an interval's end; infinite where too few cases leave it open."""
    return ("-∞" if x < 0 else "∞") if math.isinf(x) else f"{x:{fmt}}"


def json_row(table: Table, r: Row) -> dict[str, Any]:
    """One figure for summary.json. key: of the table and the row, "closed_loop.success"; NaN and infinity stay."""
    low, high = (float(r.interval.low), float(r.interval.high)) if r.interval else (None, None)
    return {
        "key": table.figure(r),
        "axis": table.axis,
        "table": table.title,
        "name": r.name,
        "value": float(r.value),
        "low": low,
        "high": high,
        "unit": r.unit,
        "target": r.target.words(r.fmt) if r.target else "",
        "verdict": r.verdict,
        "passed": {"met": True, "missed": False}.get(r.verdict),
        "note": r.note,
    }
