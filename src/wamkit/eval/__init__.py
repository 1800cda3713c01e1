"""Evaluation: what a model imagines, what it does in closed loop, how sure the figures are, and the page of it all.

`visual` scores pictures, `stats` puts intervals on figures, `pictures` turns frames into PNG and MP4, `charts` draws
curves, `report` writes the page. `motion` compares masks and paths, `physical` counts violations of physics in states,
`probe` reads states from pictures. No module here changes the model that it scores, or reads a data set.
"""

from wamkit.types import WamkitError


class EvaluationError(WamkitError, ValueError):
    """Figures or pictures that cannot be scored or shown: wrong shape, dtype or range, or nothing to score."""
