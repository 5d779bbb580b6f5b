"""Error curves of formats whose error has no closed form: short fits at a few ranks."""

from collections.abc import Callable

import numpy as np

PROBES = 4
"""Ranks that are fitted; the rest of a curve is interpolated between them."""

POINTS = 24
"""Ranks of a curve; neighbours differ by the same ratio."""


def rank_curve(most: int, loss: Callable[[int], float]) -> tuple[np.ndarray, np.ndarray]:
    """Ranks up to `most`, and their losses, between fits on a line in the logarithms of both.

    Losses of fits are upper bounds of the optimal ones, and made to fall with the rank.

    Args:
      most: largest rank.
      loss: fits at a rank and returns what is lost.
    """
    if most < 1:
        return np.zeros(0, int), np.zeros(0)
    ladder = lambda count: np.unique(np.round(np.geomspace(1, most, count)).astype(int))
    probed = ladder(PROBES)
    values = np.minimum.accumulate([loss(int(rank)) for rank in probed])
    floor = max(values[0], 1e-300) * 1e-12
    ranks = ladder(POINTS)
    line = np.interp(np.log(ranks), np.log(probed), np.log(np.maximum(values, floor)))
    return ranks, np.exp(line)
