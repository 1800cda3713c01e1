"""Figures of an evaluation in the trackers of its run, beside those of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wamkit.files import exclusive
from wamkit.runs.run import Run
from wamkit.training.tracking import Tracking


def track(run: Run, summary: Mapping[str, Any], names: Sequence[str]) -> None:
    """Shows the finite figures of `summary` as "eval/KEY", at the run's step, in the trackers called `names`.

    Raises StoreError while another process trains the run.
    """
    if not names:
        return
    figures = {f"eval/{row['key']}": row["value"] for row in summary["rows"] if math.isfinite(row["value"])}
    with exclusive(run.home):
        tracking = Tracking(names, run.home, run.step, run.described)
        tracking.show("scalars", figures, run.step)
        tracking.commit()
        tracking.close()
