"""Experts in one stack: factored one by one in one solve, or on a basis that they share."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from tests.zoo.test_goldens import golden, quick

KERNELS = ("**/experts/gate/kernel", "**/experts/up/kernel")


@functools.cache
def mixtral():
    """A tiny Mixtral whose experts' kernels lie near one basis of inputs and of outputs."""
    model, params, inputs, *_ = golden("mixtral")
    rng = np.random.default_rng(0)

    def planted(path, w):
        if not any(lr.trees.match(glob, path) for glob in KERNELS):
            return w
        e, m, n = w.shape
        r = max(2, min(m, n) // 4)
        core = rng.standard_normal((e, r, r))
        x = np.linalg.qr(rng.standard_normal((m, r)))[0] @ core
        x = x @ np.linalg.qr(rng.standard_normal((n, r)))[0].T
        x = x + 0.02 * rng.standard_normal(w.shape)
        return jnp.asarray(x * np.linalg.norm(w) / np.linalg.norm(x), jnp.float32)

    params = lr.map_weights(planted, params, with_path=True)
    apply = lambda params, inputs: model.apply({"params": params}, **inputs)
    uses = lr.usage(apply, params, inputs)
    run = quick(apply)
    return params, uses, lambda params: run(params, inputs)


def compressed(spec, keep=None):
    params, uses, _ = mixtral()
    budget = None if keep is None else lr.Budget(keep=keep)
    plan = lr.plan(params, dict.fromkeys(KERNELS, spec), usage=uses, budget=budget)
    return lr.compress(params, plan), plan


def test_experts_are_a_stack_by_their_use():
    params, uses, _ = mixtral()
    found = [p for p in lr.trees.paths(params) if any(lr.trees.match(g, p) for g in KERNELS)]
    assert found
    for path in found:
        e, m, n = lr.trees.get(params, path).shape
        assert uses[path].layout.matrix_shape((e, m, n)) == (e, m, n)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["each", "shared"])
def test_full_rank_leaves_the_logits(spec):
    params, _, run = mixtral()
    _, m, n = lr.trees.get(params, "layer_0/experts/gate/kernel").shape
    each = lr.SVD(min(m, n), allow_above_break_even=True)
    full, _ = compressed(each if spec == "each" else lr.SharedBasis((m, n)))
    kernel = lr.trees.get(full, "layer_0/experts/gate/kernel")
    assert isinstance(kernel, lr.LowRank if spec == "each" else lr.formats.SharedBasis)
    np.testing.assert_allclose(run(full), run(params), atol=1e-4)


def test_a_shared_basis_beats_experts_one_by_one_at_equal_bytes():
    params, _, run = mixtral()
    want = run(params)
    error, size = {}, {}
    for name, spec in (("each", lr.SVD()), ("shared", lr.SharedBasis())):
        small, plan = compressed(spec, keep=0.2)
        error[name] = float(jnp.linalg.norm(run(small) - want) / jnp.linalg.norm(want))
        size[name] = sum(entry.params for entry in plan.factored)
    assert size["shared"] <= 1.02 * size["each"]
    assert error["shared"] < 0.7 * error["each"]
