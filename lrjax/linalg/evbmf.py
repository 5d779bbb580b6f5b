"""Empirical variational Bayes of a noisy low-rank matrix, in closed form from its singular values.

The global solution of Nakajima, Sugiyama, Babacan and Tomioka (JMLR 14, 2013): W = signal + noise
of unknown variance, priors on both factors fitted too. Nothing iterates but a search for one
number, the noise. On the host, in float64: what it returns decides shapes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lrjax.errors import ShapeError, message

GRID = 400
"""Noise variances compared before the search narrows: the free energy may have several minima."""

NARROW = 60
"""Golden-section steps; each cuts the interval by 0.618."""

FLOOR = 1e-13
"""Least noise variance, as a share of the mean square: below it the matrix counts as exact."""


class Evidence(NamedTuple):
    """What the data say of a matrix [L, M]; every field has its stack axes *S.

    Attributes:
        rank: number of singular values above the noise, [*S].
        noise: standard deviation of the noise in each entry, [*S].
        threshold: the least singular value that is signal, [*S].
        shrunk: posterior mean of the singular values, [*S, min(L, M)]; zero from `rank` on.
    """

    rank: np.ndarray
    noise: np.ndarray
    threshold: np.ndarray
    shrunk: np.ndarray


def evbmf(s: np.ndarray, shape: Sequence[int]) -> Evidence:
    """Rank, noise and shrunken singular values of matrices with singular values s.

    With L <= M, a = L / M and x = s^2 / (M noise^2), a value is signal if x > (1 + t) (1 + a / t),
    t = 2.5129 sqrt(a), and noise^2 minimises the free energy. A matrix and its transpose, and a
    matrix in any unit, give the same rank.

    Args:
      s: all min(L, M) singular values [*S, min(L, M)], falling.
      shape: (L, M), in either order.

    Raises:
      ShapeError: as many singular values as the shape has are needed.
    """
    rows, cols = sorted(int(n) for n in shape)
    s = np.asarray(s, np.float64)
    if s.shape[-1] != rows or rows < 1:
        got, expected = f"{s.shape[-1]} singular values", f"{rows}, those of a {shape} matrix"
        raise ShapeError(message(got=got, expected=expected, todo="Pass all of them."))
    flat = s.reshape(-1, rows)
    mean = np.sum(flat**2, axis=1) / (rows * cols)
    unit = np.sqrt(np.where(mean > 0, mean, 1.0))
    found = _solve(flat / unit[:, None], rows, cols)
    zero = mean <= 0
    rank = np.where(zero, 0, found.rank)
    noise, threshold = (np.where(zero, 0.0, x) * unit for x in (found.noise, found.threshold))
    shrunk = np.where(zero[:, None], 0.0, found.shrunk * unit[:, None])
    stack = s.shape[:-1]
    return Evidence(
        rank.reshape(stack), noise.reshape(stack), threshold.reshape(stack), shrunk.reshape(s.shape)
    )


def _solve(s: np.ndarray, rows: int, cols: int) -> Evidence:
    """For matrices [k, L] of mean square one."""
    a = rows / cols
    t = 2.5129 * np.sqrt(a)
    edge = (1 + t) * (1 + a / t)
    energy = np.maximum(s**2, 1e-300)
    # No more than L / (1 + a) values can be signal, which bounds the noise from below.
    most = min(int(np.ceil(rows / (1 + a))) - 1, rows - 1)
    tail = energy[:, most:]
    low = np.maximum(tail[:, 0] / (cols * edge), np.mean(tail, axis=1) / cols)
    low = np.clip(low, FLOOR, 1.0)
    free = lambda log: _free_energy(energy, np.exp(log), a, edge, cols)

    grid = np.linspace(np.log(low), 0.0, GRID)  # [g, k]
    best = np.argmin(np.stack([free(g) for g in grid]), axis=0)
    pick = lambda i: np.take_along_axis(grid, np.clip(i, 0, GRID - 1)[None], axis=0)[0]
    left, right = pick(best - 1), pick(best + 1)
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(NARROW):
        p, q = right - golden * (right - left), left + golden * (right - left)
        lower = free(p) < free(q)
        left, right = np.where(lower, left, p), np.where(lower, q, right)
    variance = np.exp((left + right) / 2)

    threshold = np.sqrt(cols * variance * edge)
    signal = s > threshold[:, None]
    ratio = variance[:, None] / np.where(signal, energy, 1.0)
    share = 1 - (rows + cols) * ratio
    inside = np.maximum(share**2 - 4 * rows * cols * ratio**2, 0)
    shrunk = np.where(signal, s / 2 * (share + np.sqrt(inside)), 0.0)
    return Evidence(signal.sum(axis=1), np.sqrt(variance), threshold, shrunk)


def _free_energy(energy: np.ndarray, variance: np.ndarray, a: float, edge: float, cols: int):
    """The free energy as a function of the noise alone, up to a constant, [k]."""
    x = energy / (cols * variance[:, None])
    signal = x > edge
    safe = np.where(signal, x, edge)
    centre = safe - (1 + a)
    tau = 0.5 * (centre + np.sqrt(np.maximum(centre**2 - 4 * a, 0)))
    above = safe - tau + np.log((tau + 1) / safe) + a * np.log(tau / a + 1)
    below = x - np.log(x)
    return np.sum(np.where(signal, above, below), axis=1)
