"""Action chunks that overlap: which action to take at a step, when several answers have one for it.

Steps are those that the robot took: while it stands still for want of an action, none passes. An answer to an
observation before step q holds actions for the steps q, q + 1, ...; by the time it comes, some of them have passed, and
those are never taken. So an answer to a robot that stood meanwhile is taken from its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Joining = Literal["switch", "ensemble", "rtc"]
"""Ways to join chunks: `switch` takes the newest, `ensemble` a mean of all, the older ones weighing more, and `rtc`
(real-time chunking) the newest, which was asked for with what was `ahead`, so that it goes on from there."""


@dataclass
class Chunks:
    """The answers that have come.

    joining: see `Joining`.
    decay: m of the ensemble's weights exp(-m i), i = 0 for the oldest chunk (ACT, arXiv:2304.13705, algorithm 2).

    Examples:
        >>> chunks = Chunks("switch")
        >>> chunks.add(0, np.array([[0.0], [0.1], [0.2]]))
        >>> chunks.add(1, np.array([[1.1], [1.2]]))
        >>> float(chunks.at(0)[0]), float(chunks.at(2)[0]), chunks.at(3)
        (0.0, 1.2, None)
    """

    joining: Joining = "switch"
    decay: float = 0.01
    _held: list[tuple[int, np.ndarray]] = field(default_factory=list)

    def add(self, asked: int, actions: np.ndarray) -> None:
        """An answer (H, a) to the observation before step `asked`. One that comes after a newer one is left out."""
        if not self._held or asked >= self._held[-1][0]:
            self._held.append((asked, actions))

    def at(self, step: int) -> np.ndarray | None:
        """The action (a,) of a step; None where no chunk reaches it. Chunks that ended before it are forgotten."""
        self._held = [(asked, x) for asked, x in self._held if asked + len(x) > step]
        reach = [x[step - asked] for asked, x in self._held if asked <= step]
        if not reach:
            return None
        if self.joining != "ensemble":
            return reach[-1]
        weights = np.exp(-self.decay * np.arange(len(reach)))
        return np.average(reach, axis=0, weights=weights).astype(reach[-1].dtype)

    def ahead(self, step: int) -> np.ndarray | None:
        """The actions (P, a) that the newest chunk has for `step` and later ones; None where it has none."""
        reach = [x[step - asked :] for asked, x in self._held if asked <= step < asked + len(x)]
        return reach[-1] if reach else None

    def left(self, step: int) -> int:
        """Steps from `step` on for which the newest chunk has actions."""
        return max(0, self._held[-1][0] + len(self._held[-1][1]) - step) if self._held else 0

    def clear(self) -> None:
        """Forgets all: after a stop, or a gap in time."""
        self._held.clear()
