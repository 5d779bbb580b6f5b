"""Multiple-choice knapsack: one option for each weight, least total error within a total cost.

minimise sum_i error[i][j_i]  subject to  sum_i cost[i][j_i] <= budget.

Water-filling along the lower convex hulls solves the linear relaxation, and its multiplier prices
cost in units of error. Options whose price-corrected error alone exceeds the gap between
relaxation and incumbent cannot be in a better solution; few remain, and dynamic programming over
Pareto states closes the gap (Pisinger, 1995).
"""

import heapq
from collections.abc import Sequence

import numpy as np

MAX_STATES = 1 << 16
"""Pareto states kept for one weight; beyond it, those of least price-corrected error are kept."""


def least_cost(costs: Sequence[np.ndarray]) -> int:
    """The cost of the cheapest choice."""
    return int(sum(c.min() for c in costs))


def knapsack(costs: Sequence[np.ndarray], errors: Sequence[np.ndarray], budget: int) -> list[int]:
    """Index of the option chosen for each weight; deterministic.

    Args:
        costs: non-negative integers [k_i] for each weight.
        errors: finite, non-negative numbers [k_i] for each weight.
        budget: at least `least_cost(costs)`.
    """
    if not costs:
        return []
    fronts = [_pareto(c, e) for c, e in zip(costs, errors, strict=True)]
    cs = [np.asarray(c, np.int64)[f] for c, f in zip(costs, fronts, strict=True)]
    es = [np.asarray(e, np.float64)[f] for e, f in zip(errors, fronts, strict=True)]
    picks, price = _water_fill(cs, es, budget)
    picks = _spend_rest(cs, es, budget, picks)
    if price > 0:
        picks = _close_gap(cs, es, budget, picks, price)
    return [int(f[j]) for f, j in zip(fronts, picks, strict=True)]


def _pareto(cost: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Indices of the undominated options: cost rises, error falls strictly."""
    order = np.lexsort((error, cost))
    best = np.minimum.accumulate(np.concatenate([[np.inf], error[order][:-1]]))
    return order[error[order] < best]


def _hull(cost: np.ndarray, error: np.ndarray) -> list[int]:
    """Indices of the lower convex hull of Pareto options, from the cheapest on."""
    hull: list[int] = []
    for j in range(len(cost)):
        while len(hull) > 1:
            a, b = hull[-2:]
            left = (error[a] - error[b]) * (cost[j] - cost[b])
            right = (error[b] - error[j]) * (cost[b] - cost[a])
            if left > right:
                break
            hull.pop()
        hull.append(j)
    return hull


def _water_fill(cs, es, budget: int) -> tuple[list[int], float]:
    """Best gains per cost first, along the hulls; the picks and the price where money ran out."""
    hulls = [_hull(c, e) for c, e in zip(cs, es, strict=True)]
    at = [0] * len(cs)
    rest = budget - sum(int(c[0]) for c in cs)
    price = 0.0

    def step(i: int):
        a, b = hulls[i][at[i]], hulls[i][at[i] + 1]
        return (-(es[i][a] - es[i][b]) / (cs[i][b] - cs[i][a]), i)

    queue = [step(i) for i in range(len(cs)) if len(hulls[i]) > 1]
    heapq.heapify(queue)
    while queue:
        slope, i = heapq.heappop(queue)
        a, b = hulls[i][at[i]], hulls[i][at[i] + 1]
        need = int(cs[i][b] - cs[i][a])
        if need > rest:
            # The first segment that does not fit is where the relaxation stops.
            price = price or -slope
            continue
        rest -= need
        at[i] += 1
        if at[i] + 1 < len(hulls[i]):
            heapq.heappush(queue, step(i))
    return [h[k] for h, k in zip(hulls, at, strict=True)], float(price)


def _spend_rest(cs, es, budget: int, picks: list[int]) -> list[int]:
    """Single upgrades, the largest gain first, until nothing fits."""
    picks = list(picks)
    rest = budget - sum(int(c[j]) for c, j in zip(cs, picks, strict=True))
    while True:
        gains = []
        for i, (c, e) in enumerate(zip(cs, es, strict=True)):
            j = int(np.searchsorted(c, c[picks[i]] + rest, side="right")) - 1
            gains.append(e[picks[i]] - e[j])
        i = int(np.argmax(gains))
        if gains[i] <= 0:
            return picks
        j = int(np.searchsorted(cs[i], cs[i][picks[i]] + rest, side="right")) - 1
        rest -= int(cs[i][j] - cs[i][picks[i]])
        picks[i] = j


def _close_gap(cs, es, budget: int, picks: list[int], price: float) -> list[int]:
    """The optimum, by dynamic programming over the options that could still improve on `picks`."""
    priced = [e + price * c for c, e in zip(cs, es, strict=True)]
    floor = sum(float(p.min()) for p in priced)
    reduced = [p - p.min() for p in priced]
    incumbent = sum(float(e[j]) for e, j in zip(es, picks, strict=True))
    gap = incumbent + price * budget - floor
    gap += 1e-9 * max(abs(incumbent), gap)
    keep = [np.flatnonzero(r <= gap) for r in reduced]
    later = np.cumsum([0] + [int(c[k].min()) for c, k in zip(cs[::-1], keep[::-1], strict=True)])

    cost, slack = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for i, k in enumerate(keep):
        new_cost = (cost[:, None] + cs[i][k]).ravel()
        new_slack = (slack[:, None] + reduced[i][k]).ravel()
        fits = (new_cost + later[len(cs) - 1 - i] <= budget) & (new_slack <= gap)
        index = np.flatnonzero(fits)
        # slack - price * cost is the error, up to a constant
        front = _pareto(new_cost[index], new_slack[index] - price * new_cost[index])
        index = index[front]
        if len(index) > MAX_STATES:
            index = index[np.sort(np.argsort(new_slack[index], kind="stable")[:MAX_STATES])]
        if not len(index):
            return picks
        cost, slack = new_cost[index], new_slack[index]
        trail.append((index // len(k), k[index % len(k)]))

    state = int(np.argmin(slack - price * cost))
    better: list[int] = []
    for parent, option in reversed(trail):
        better.append(int(option[state]))
        state = int(parent[state])
    better.reverse()
    total = sum(float(e[j]) for e, j in zip(es, better, strict=True))
    return better if total < incumbent else picks
