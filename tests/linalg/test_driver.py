"""The driver ends when it should and hands back the best state."""

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.linalg.driver import iterate


def halve(x, _):
    return x / 2, jnp.sum(x / 2)


def test_it_stops_at_the_goal():
    x, progress = iterate(halve, jnp.ones(3), jnp.float32(3), steps=100, goal=0.5)
    assert (progress.steps, bool(progress.converged)) == (3, True)
    np.testing.assert_allclose(x, 1 / 8)


def test_it_stops_at_the_step_limit():
    _, progress = iterate(halve, jnp.ones(3), jnp.float32(3), steps=4, tol=0.1)
    assert (progress.steps, bool(progress.converged)) == (4, False)


def test_it_stops_when_the_objective_is_still():
    step = lambda x, i: (x + 1, jnp.where(i < 5, 10.0 - i, 5.0))
    _, progress = iterate(step, jnp.zeros(()), jnp.float32(11), steps=100, tol=1e-3, patience=2)
    assert (progress.steps, bool(progress.converged)) == (8, True)


def test_it_hands_back_the_best_state_and_never_a_nan():
    values = jnp.array([3.0, 1.0, 4.0, jnp.nan, 0.0])
    step = lambda x, i: (jnp.where(i == 3, jnp.nan, i + 1.0), values[i])
    x, progress = iterate(step, jnp.zeros(()), jnp.float32(5), steps=5)
    assert (float(x), float(progress.objective), bool(progress.finite)) == (2.0, 1.0, False)


def test_tolerance_and_limit_do_not_compile_again():
    traces = []

    @jax.jit
    def run(tol, steps):
        traces.append(1)
        return iterate(halve, jnp.ones(3), jnp.float32(3), steps=steps, tol=tol)

    run(0.1, 3), run(0.2, 5)
    assert len(traces) == 1


def test_problems_under_vmap_end_on_their_own():
    run = lambda x: iterate(halve, x, jnp.sum(x), steps=50, goal=1.0)[1].steps
    assert jax.vmap(run)(jnp.array([[1.0], [8.0], [64.0]])).tolist() == [0, 3, 6]
