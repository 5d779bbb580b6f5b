"""Error curves of formats whose error has no closed form: short fits at a few ranks."""

from collections.abc import Callable

import numpy as np

PROBES = 4
"""Ranks that are fitted; the rest of a curve is interpolated between them."""

POINTS = 24
"""Ranks of a curve; neighbours differ by the same ratio."""


def rank_curve(most: int, loss: Callable[[int], float]) -> tuple[np.ndarray, np.ndarray]:
    """Ranks up to `most`, and their losses, between fits on a line in the square roots of both.

    Losses of fits are upper bounds of the optimal ones, and made to fall with the rank. Where the
    parameters near those of the weight they go to zero faster than any power of the rank.

    Args:
      most: largest rank.
      loss: fits at a rank and returns what is lost.
    """
    if most < 1:
        return np.zeros(0, int), np.zeros(0)
    ladder = lambda count: np.unique(np.round(np.geomspace(1, most, count)).astype(int))
    probed = ladder(PROBES)
    values = np.minimum.accumulate([loss(int(rank)) for rank in probed])
    ranks = ladder(POINTS)
    return ranks, np.interp(np.sqrt(ranks), np.sqrt(probed), np.sqrt(values)) ** 2
