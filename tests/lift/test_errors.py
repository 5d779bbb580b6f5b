"""What has no form on factors: refused by name and line, or rebuilt when that is allowed."""

import warnings

import jax
import jax.numpy as jnp
import pytest

from lrjax.errors import DensifyError
from lrjax.lift import DensifyWarning, lift
from lrjax.ops import densify
from tests.lift.oracle import close, factored, normal

PARAMS = {"mlp": {"w": factored((12, 18))}}
X = normal(1, 5, 12)


def exponential(p, x):
    return x @ jnp.exp(p["mlp"]["w"])


def test_the_error_names_path_primitive_shape_and_line():
    with pytest.raises(DensifyError) as caught:
        jax.jit(lift(exponential))(PARAMS, X)
    line = exponential.__code__.co_firstlineno + 1
    for part in ("mlp/w", "exp", "float32[12, 18]", f"test_errors.py:{line}", "exponential"):
        assert part in str(caught.value)
    assert isinstance(caught.value, NotImplementedError)


def test_warn_and_allow():
    want = exponential(densify(PARAMS), X)
    with pytest.warns(DensifyWarning, match=r"mlp/w.*exp"):
        close(lift(exponential, on_dense="warn")(PARAMS, X), want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(lift(exponential, on_dense="allow")(PARAMS, X), want)
    with pytest.raises((ValueError, TypeError), match="on_dense"):
        lift(exponential, on_dense="maybe")


REFUSED = {
    "sort": lambda w, x: x @ jnp.sort(w, axis=0),
    "clip": lambda w, x: x @ jnp.clip(w, -1, 1),
    "elementwise": lambda w, x: x @ (w * jnp.ones_like(w).at[0, 0].set(2)),
    "activation": lambda w, x: x @ jax.nn.relu(w),
    "quantised": lambda w, x: x @ jnp.round(w).astype(jnp.int8),
    "update": lambda w, x: x @ w.at[0].set(0.0),
    "output": lambda w, x: w.T,
    "addition": lambda w, x: jnp.zeros((3, 12, 18)) + w,
    "divisor": lambda w, x: x @ (1 / w),
    "inverse": lambda w, x: jnp.linalg.svd(w)[1],
    "carry": lambda w, x: jax.lax.scan(lambda c, _: (c * 2, None), w, None, length=2)[0].sum(),
    "branch": lambda w, x: (
        x @ jax.lax.cond(x[0, 0] > 0, lambda: w, lambda: 0 * w + jnp.ones((12, 18)))
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    f = lambda p, x: REFUSED[name](p["mlp"]["w"], x)
    with pytest.raises(DensifyError, match="mlp/w"):
        jax.eval_shape(lift(f), PARAMS, X)
    shape = jax.eval_shape(lift(f, on_dense="allow"), PARAMS, X)
    assert jax.tree.map(jnp.shape, shape) == jax.tree.map(
        jnp.shape, jax.eval_shape(f, densify(PARAMS), X)
    )


def test_unused_results_are_no_use():
    def f(p, x):
        jnp.exp(p["mlp"]["w"])
        return x @ p["mlp"]["w"]

    close(lift(f)(PARAMS, X), f(densify(PARAMS), X))


def test_a_gradient_inside_lift_is_dense():
    f = lambda p, x: jax.grad(lambda p: jnp.sum(x @ p["mlp"]["w"]))(p)
    close(lift(f)(PARAMS, X), f(densify(PARAMS), X))
