"""Griffe extension for docstrings that describe fields or parameters as `name: text`, one a line: makes them a list."""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Function, Object


def listed(text: str, names: set[str]) -> str:
    """`text` with a list item for each `name: ...` (of `names`, also several) at the start of a line or after a gap."""
    one = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    found = re.compile(rf"(?:^|(?<=\n)| {{3,}})((?:{one})(?:, (?:{one}))*): ")
    out, inside = [], False
    for line in text.split("\n"):
        if not line.strip():
            inside = False
        elif found.match(line):
            line = ("" if inside else "\n") + found.sub(lambda m: f"\n- `{m.group(1)}`: ", line).strip()
            inside = True
        elif inside:
            line = "  " + line.strip()
        out.append(line)
    return "\n".join(out)


class FieldLists(Extension):
    """Applies `listed` to docstrings of classes (attributes, parameters of `__init__`) and functions (parameters)."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        names = {p.name for p in obj.parameters} if isinstance(obj, Function | Class) else set()
        if isinstance(obj, Class):
            names |= {n for n, member in obj.members.items() if member.is_attribute}
        if names:
            obj.docstring.value = listed(obj.docstring.value, names)
