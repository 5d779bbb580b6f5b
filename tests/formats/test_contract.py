"""The contraction order comes from the shapes at hand."""

import itertools
import math

import jax
import numpy as np
import pytest

from lrjax.formats import rows
from lrjax.formats.contract import Order, contract, plan
from tests.cases import generator, normal
from tests.laws import close


def steps(shapes, out, order=Order.STREAM, activations=1):
    """The plan for operands given as {letter: size} strings."""
    letters = sorted({k for ls, _ in shapes for k in ls})
    sizes = {k: n for ls, shape in shapes for k, n in zip(ls, shape, strict=True)}
    ids = {k: i for i, k in enumerate(letters)}
    return plan(
        tuple(tuple(ids[k] for k in ls) for ls, _ in shapes),
        tuple(sizes[k] for k in letters),
        tuple(ids[k] for k in out),
        order,
        activations,
    )


def low_rank(rows, m, r, n):
    return [("tm", (rows, m)), ("mr", (m, r)), ("rn", (r, n))]


def test_streaming_meets_one_factor_after_the_other():
    path = steps(low_rank(16, 512, 8, 512), "tn")
    assert path.steps == ((0, 1), (3, 2))
    assert path.flops == 2 * 16 * 8 * (512 + 512)


def test_a_large_batch_may_form_the_weight_where_that_is_cheaper():
    few, many = (steps(low_rank(rows, 512, 300, 512), "tn", Order.FLOPS) for rows in (4, 4096))
    assert few.steps[0] == (0, 1)
    assert many.steps[0] == (1, 2)
    assert many.flops < steps(low_rank(4096, 512, 300, 512), "tn").flops
    assert steps(low_rank(4096, 512, 300, 512), "tn").steps[0] == (0, 1)


def test_two_activations_meet_the_weight_from_both_sides():
    # x [t, m], y [s, n] around W = m r, r n: neither order forms m x n
    shapes = [("tm", (3, 64)), ("sn", (3, 64)), ("mr", (64, 4)), ("rn", (4, 64))]
    path = steps(shapes, "ts", activations=2)
    assert path.flops == 2 * (3 * 64 * 4 + 3 * 64 * 4 + 3 * 3 * 4)


@pytest.mark.parametrize("n", [3, 5, 12, 16, 20])
def test_long_chains_are_planned_at_once_and_contracted_right(n):
    rng = generator()
    cores = [np.asarray(normal(rng, 2, 2)) for _ in range(n)]
    x = np.asarray(normal(rng, 3, 2))
    operands = [(x, ("t", 0)), *((core, (k, k + 1)) for k, core in enumerate(cores))]
    want = x
    for core in cores:
        want = want @ core
    for order in Order:
        close(contract(operands, ("t", n), order=order), want, 1e-4)


def test_the_plan_is_the_best_of_all_allowed_ones():
    shapes = [("ta", (7, 5)), ("ab", (5, 3)), ("bc", (3, 6)), ("cd", (6, 4))]
    sizes = {k: n for ls, shape in shapes for k, n in zip(ls, shape, strict=True)}

    def brute(first, rest):
        if not rest:
            return 0
        best = math.inf
        for i, other in enumerate(rest):
            left = rest[:i] + rest[i + 1 :]
            keep = set("td").union(*left)
            work = math.prod(sizes[k] for k in {*first, *other})
            summed = (set(first) & set(other)) - keep
            joined = "".join(k for k in {*first, *other} if k in keep)
            best = min(best, (2 if summed else 1) * work + brute(joined, left))
        return best

    names = [ls for ls, _ in shapes]
    assert steps(shapes, "td").flops == brute(names[0], names[1:])


def test_repeated_labels_are_diagonals():
    x = np.asarray(normal(generator(), 4, 4, 3))
    close(contract([(x, "iij")], "ij"), np.einsum("iij->ij", x))
    spread = contract([(x[0], "ij")], "iij")
    want = np.zeros((4, 4, 3))
    want[np.arange(4), np.arange(4)] = x[0]
    close(spread, want)


def test_the_order_of_the_result_is_free():
    x, w = np.asarray(normal(generator(), 2, 3)), np.asarray(normal(generator(1), 3, 4, 5))
    for out in itertools.permutations("ikl"):
        close(contract([(x, "ij"), (w, "jkl")], out), np.einsum(f"ij,jkl->{''.join(out)}", x, w))


def test_wide_intermediates_are_met_row_by_row(monkeypatch):
    """Terms of a sum: the same values and gradients as at once, and the batch keeps its place."""
    shapes = {"x": (9, 3, 4), "a": (5, 3, 2), "b": (5, 4, 6), "one": (1, 9, 12)}
    rng = generator()
    x, a, b, wide = (normal(rng, *shapes[name]) for name in shapes)
    at_once = lambda x, a, b: np.einsum("bik,sij,skl->bjl", x, a, b)
    run = lambda x, a, b: contract([(x, "bik"), (a, "sij"), (b, "skl")], "bjl")
    assert "scan" not in str(jax.make_jaxpr(run)(x, a, b))
    whole = jax.grad(lambda *args: (run(*args) ** 2).sum(), (0, 1, 2))(x, a, b)
    monkeypatch.setattr(rows, "LEAST_WORK", 16)
    again = lambda *args: run(*args)  # traced anew
    assert "scan" in str(jax.make_jaxpr(again)(x, a, b))
    close(run(x, a, b), at_once(x, a, b))
    turned = contract([(x, "bik"), (a, "sij"), (b, "skl")], "jbl")
    close(turned, at_once(x, a, b).swapaxes(0, 1))
    parts = jax.grad(lambda *args: (again(*args) ** 2).sum(), (0, 1, 2))(x, a, b)
    for p, q in zip(parts, whole, strict=True):
        close(p, q)
    led = [(wide.reshape(1, 9, 3, 4), "tbik"), (a, "sij"), (b, "skl")]
    close(contract(led, "tbjl"), at_once(wide.reshape(9, 3, 4), a, b)[None])
