"""Equations that evaluate jaxprs, rebuilt through the public functions that make them.

Lazy arrays are pytrees, so that they cross `jax.checkpoint` and closures as they are.  A stacked
lazy array is scanned by its operands; what a loop hands on unchanged (constants in the carry,
parameters returned from a scan over modules) is taken out of the loop and handed on outside.
"""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lrjax.formats.lazy import LazyArray
from lrjax.formats.network import Unsupported
from lrjax.lift import jaxprs
from lrjax.lift.interpreter import Interpreter, Place, Step, Sums
from lrjax.ops import unstack


def inline(it: Interpreter, eqn: Any, vals: Sequence[Any], at: Place, seeds: Sums) -> Step:
    """A call, or the primal function of a `custom_jvp`."""
    return it.run(jaxprs.body(eqn), vals, (*at, 0), seeds)


def custom_vjp(it: Interpreter, eqn: Any, vals: Sequence[Any], at: Place, seeds: Sums) -> Step:
    """The primal function; whoever differentiates it is told that the rule is not used.

    The rule's backward pass is written for a dense weight and hands back its dense cotangent, so
    that it cannot stand; mostly it says what the derivative is anyway, only faster or more stably.
    """
    outs, found = it.run(jaxprs.body(eqn), vals, (*at, 0), seeds)
    if not any(isinstance(v, LazyArray) for v in vals):
        return outs, found
    text = (
        f"the custom_vjp rule at {it.source()} is not used: a factored weight passes through it. "
        "Gradients are those of its primal function. Leave the weight dense to keep the rule."
    )

    @jax.custom_vjp
    def told(y):
        return y

    def backward(_, g):
        warnings.warn(text, UserWarning, stacklevel=2)
        return (g,)

    told.defvjp(lambda y: (y, None), backward)
    return [told(y) if jnp.issubdtype(jnp.result_type(y), jnp.inexact) else y for y in outs], found


def remat(it: Interpreter, eqn: Any, vals: Sequence[Any], at: Place, seeds: Sums) -> Step:
    """jax.checkpoint, with its policy."""
    closed, p = jaxprs.body(eqn), eqn.params
    same = _unchanged(jaxprs.forwards(closed), vals)

    def body(vals, seeds):
        outs, found = it.run(closed, vals, (*at, 0), seeds)
        return [None if k in same else y for k, y in enumerate(outs)], found

    checkpointed = jax.checkpoint(body, policy=p.get("policy"), prevent_cse=p["prevent_cse"])
    outs, found = checkpointed(list(vals), seeds)
    return [same.get(k, y) for k, y in enumerate(outs)], found


def cond(it: Interpreter, eqn: Any, vals: Sequence[Any], at: Place, seeds: Sums) -> Step:
    """lax.switch: weights may come out lazy if every branch gives the same networks."""
    index, *args = vals
    branches = eqn.params["branches"]
    run = [
        lambda args, seeds, b=b, j=j: it.run(b, args, (*at, j), seeds)
        for j, b in enumerate(branches)
    ]
    shapes = [jax.eval_shape(f, args, seeds) for f in run]
    lazy = [_common([outs[k] for outs, _ in shapes]) for k in range(len(eqn.outvars))]
    zeros = {k: v for _, found in shapes for k, v in found.items()}

    def branch(f):
        def evaluate(args, seeds):
            outs, found = f(args, seeds)
            outs = [
                jax.tree.leaves(y) if like is not None else it.dense(y, "output of a branch")
                for y, like in zip(outs, lazy, strict=True)
            ]
            return outs, {k: found.get(k, _zeros(v)) for k, v in zeros.items()}

        return evaluate

    outs, found = lax.switch(jnp.asarray(index, "int32"), [branch(f) for f in run], args, seeds)
    outs = [
        y if like is None else jax.tree.unflatten(jax.tree.structure(like), y)
        for y, like in zip(outs, lazy, strict=True)
    ]
    return outs, found


def while_loop(it: Interpreter, eqn: Any, vals: Sequence[Any], at: Place, seeds: Sums) -> Step:
    """lax.while_loop; sums add up in the carry."""
    p = eqn.params
    nc, nb = p["cond_nconsts"], p["body_nconsts"]
    tests, consts, init = vals[:nc], vals[nc : nc + nb], list(vals[nc + nb :])
    carry = _Carry(it, init, jaxprs.forwards(p["body_jaxpr"]), nb)

    def test(state):
        return it.run(p["cond_jaxpr"], [*tests, *carry.full(state[0])], (*at, 0))[0][0]

    def step(state):
        outs, found = it.run(p["body_jaxpr"], [*consts, *carry.full(state)], (*at, 1), seeds)
        return carry.live(outs), found

    total = _zeros(jax.eval_shape(step, carry.init)[1]) if it.pending(at, stacked=False) else {}

    def body(state):
        live, found = step(state[0])
        return live, jax.tree.map(jnp.add, state[1], found)

    state, total = lax.while_loop(test, body, (carry.init, total))
    return carry.full(state), total


def scan(it: Interpreter, eqn: Any, vals: Sequence[Any], at: Place, seeds: Sums) -> Step:
    """lax.scan: stacked weights are scanned; sums are stacked with them, or add up in the carry."""
    p, (nc, nk) = eqn.params, jaxprs.scan_groups(eqn)
    consts, init, xs = vals[:nc], list(vals[nc : nc + nk]), list(vals[nc + nk :])
    same = jaxprs.forwards(p["jaxpr"])
    carry = _Carry(it, init, same[:nk], nc)
    handed = _unchanged([i if i is not None and i >= nc + nk else None for i in same[nk:]], vals)
    scanned, rebuild = _scanned(it, xs)
    per_step = {k: v for k, v in seeds.items() if it.stacked(k, at)}
    for_all = {k: v for k, v in seeds.items() if k not in per_step}

    def step(state, x):
        operands, mine = x
        slices = [make(o) for make, o in zip(rebuild, operands, strict=True)]
        args = [*consts, *carry.full(state), *slices]
        outs, found = it.run(p["jaxpr"], args, (*at, 0), {**for_all, **mine})
        ys = [
            None if k in handed else it.dense(y, "stacked output of a scan")
            for k, y in enumerate(outs[nk:])
        ]
        stacked = {k: v for k, v in found.items() if it.stacked(k, at)}
        return carry.live(outs[:nk]), ys, stacked, {k: found[k] for k in found if k not in stacked}

    inputs = (scanned, per_step)
    total: Any = {}
    if it.pending(at, stacked=False):
        first = jax.tree.map(lambda a: a[0], inputs)
        total = _zeros(jax.eval_shape(step, carry.init, first)[3])

    def body(state, x):
        live, ys, stacked, found = step(state[0], x)
        return (live, jax.tree.map(jnp.add, state[1], found)), (ys, stacked)

    (state, total), (ys, stacked) = lax.scan(
        body,
        (carry.init, total),
        inputs,
        length=p["length"],
        reverse=p["reverse"],
        unroll=p["unroll"],
    )
    return [*carry.full(state), *(handed.get(k, y) for k, y in enumerate(ys))], {**stacked, **total}


class _Carry:
    """A loop's carry without the weights that the body hands on unchanged."""

    def __init__(self, it: Interpreter, init: list[Any], same: Sequence[int | None], offset: int):
        self.it = it
        self.fixed = {
            i: x for i, x in enumerate(init) if isinstance(x, LazyArray) and same[i] == offset + i
        }
        self.init = self.live(init)

    def live(self, values: Sequence[Any]) -> list[Any]:
        """What the loop has to carry."""
        return [
            self.it.dense(x, "carry of a loop") for i, x in enumerate(values) if i not in self.fixed
        ]

    def full(self, live: Sequence[Any]) -> list[Any]:
        """All carried values."""
        rest = iter(live)
        count = len(live) + len(self.fixed)
        return [self.fixed[i] if i in self.fixed else next(rest) for i in range(count)]


def _unchanged(same: Sequence[int | None], vals: Sequence[Any]) -> dict[int, Any]:
    """Outputs that are lazy inputs."""
    return {
        k: vals[i] for k, i in enumerate(same) if i is not None and isinstance(vals[i], LazyArray)
    }


def _scanned(it: Interpreter, xs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """What to scan over, and how a step makes its value from its slice."""
    scanned, rebuild = [], []
    for x in xs:
        make = lambda a: a
        if isinstance(x, LazyArray):
            try:
                x, make = unstack(x)
            except Unsupported as why:
                x = it.dense(x, str(why))
        scanned.append(x)
        rebuild.append(make)
    return scanned, rebuild


def _common(values: Sequence[Any]) -> Any:
    """The lazy array that all branches agree on, or None."""
    if not all(isinstance(v, LazyArray) for v in values):
        return None
    key = lambda v: (
        jax.tree.structure(dataclasses.replace(v, name="?")),
        [(a.shape, a.dtype) for a in jax.tree.leaves(v)],
    )
    return values[0] if all(key(v) == key(values[0]) for v in values) else None


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)


RULES = {
    **dict.fromkeys((*jaxprs.INLINED, "custom_jvp_call"), inline),
    "custom_vjp_call": custom_vjp,
    **dict.fromkeys(jaxprs.REMAT, remat),
    "cond": cond,
    "while": while_loop,
    "scan": scan,
}

rule_for = functools.partial(dict.get, RULES)
