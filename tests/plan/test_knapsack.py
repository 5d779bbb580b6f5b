"""The knapsack equals brute force, uses the budget, and is deterministic."""

import itertools
import time

import numpy as np
import pytest

from lrjax.plan.knapsack import knapsack, least_cost


def brute_force(costs, errors, budget):
    best = np.inf
    for picks in itertools.product(*(range(len(c)) for c in costs)):
        if sum(c[j] for c, j in zip(costs, picks, strict=True)) <= budget:
            best = min(best, sum(e[j] for e, j in zip(errors, picks, strict=True)))
    return best


def total(values, picks):
    return sum(v[j] for v, j in zip(values, picks, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_equals_brute_force_on_five_weights_of_six_options(seed):
    """Options neither convex nor sorted, dominated ones among them."""
    rng = np.random.default_rng(seed)
    costs = [rng.integers(1, 40, 6) for _ in range(5)]
    errors = [rng.random(6) if seed % 2 else np.sort(rng.random(6) ** 3)[::-1] for _ in range(5)]
    low = least_cost(costs)
    budget = int(rng.integers(low, low + 80))
    picks = knapsack(costs, errors, budget)
    assert total(costs, picks) <= budget
    assert np.isclose(total(errors, picks), brute_force(costs, errors, budget), rtol=1e-12)


def layers(rng, ranks=None):
    """36 weights of a small encoder: ranks 1.. break-even, and the dense weight."""
    costs, errors = [], []
    for i in range(36):
        m, n = [(384, 384), (384, 1536), (1536, 384)][max(0, i % 6 - 3)]
        spectrum = np.sort(rng.gamma(2, 1, min(m, n)) * np.arange(1, min(m, n) + 1) ** -0.6)[::-1]
        tail = np.append(np.cumsum((spectrum**2)[::-1])[::-1], 0)
        rank = np.arange(1, m * n // (m + n))
        costs.append(np.append(rank * (m + n), m * n))
        errors.append(np.append(tail[rank], 0) * rng.lognormal())
    return costs, errors


@pytest.mark.parametrize("keep", [0.2, 0.4, 0.6, 0.8])
def test_a_real_size_uses_the_budget_and_meets_the_relaxation(keep):
    costs, errors = layers(np.random.default_rng(1))
    budget = int(keep * sum(c[-1] for c in costs))
    start = time.perf_counter()
    picks = knapsack(costs, errors, budget)
    assert time.perf_counter() - start < 5
    spent = total(costs, picks)
    assert 0.999 * budget < spent <= budget
    # no exchange between two weights helps: the choice is optimal pair by pair
    for i, j in itertools.combinations(range(0, 36, 5), 2):
        pair = costs[i][picks[i]] + costs[j][picks[j]] + budget - spent
        sums = costs[i][:, None] + costs[j]
        loss = np.where(sums <= pair, errors[i][:, None] + errors[j], np.inf)
        assert loss.min() >= errors[i][picks[i]] + errors[j][picks[j]] - 1e-9


def test_staying_dense_is_chosen_where_nothing_can_be_saved():
    flat, steep = np.array([60.0, 40, 0]), np.array([0.1, 0.05, 0])
    costs = [np.array([10, 20, 30])] * 2
    assert knapsack(costs, [flat, steep], 40) == [2, 0]


def test_whole_budget_takes_every_dense_weight_and_zero_errors_cost_nothing():
    costs = [np.array([1, 5]), np.array([2, 9])]
    assert knapsack(costs, [np.array([1.0, 0]), np.array([1.0, 0])], 14) == [1, 1]
    assert knapsack(costs, [np.zeros(2), np.zeros(2)], 14) == [0, 0]


def test_same_input_same_choice():
    costs, errors = layers(np.random.default_rng(2))
    budget = int(0.5 * sum(c[-1] for c in costs))
    assert knapsack(costs, errors, budget) == knapsack(costs, errors, budget)


def test_equal_weights_break_ties_the_same_way_and_spend_all():
    costs = [np.arange(1, 101) * 7] * 20
    errors = [1.0 / np.arange(1, 101)] * 20
    picks = knapsack(costs, errors, 20 * 7 * 50 + 7 * 3)
    assert total(costs, picks) == 20 * 7 * 50 + 7 * 3
