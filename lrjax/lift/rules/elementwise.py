"""Elementwise primitives that a sum of networks survives, and sums over it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lrjax import ops
from lrjax.formats.network import Unsupported
from lrjax.lift import jaxprs
from lrjax.lift.rules.registry import Context, Rules, is_lazy

RULES = Rules()


@RULES.on("convert_element_type")
def _convert_element_type(ctx: Context, eqn: Any, w: Any, *_: Any):
    del ctx
    dtype = eqn.params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise Unsupported(f"cast to {dtype}")
    return (ops.cast(w, dtype),)


@RULES.on("copy", "copy_p")
def _copy(ctx: Context, eqn: Any, w: Any):
    del ctx, eqn
    return (w,)


@RULES.on("stop_gradient")
def _stop_gradient(ctx: Context, eqn: Any, w: Any):
    del ctx, eqn
    return (jax.tree.map(lax.stop_gradient, w),)


@RULES.on("name", "pvary", "pcast", "optimization_barrier", "device_put")
def _each_factor(ctx: Context, eqn: Any, *ws: Any):
    """Says something about a value without changing it: holds for every factor."""
    del ctx
    if eqn.primitive.name == "device_put" and not _anywhere(eqn):
        return ws
    leaves, tree = jax.tree.flatten(ws)
    if eqn.primitive.multiple_results:
        if eqn.primitive.name == "device_put":
            return tuple(jax.tree.map(lambda a, k=k: _put(eqn, k, a), w) for k, w in enumerate(ws))
        return jax.tree.unflatten(tree, jaxprs.bind(eqn, leaves))
    return jax.tree.unflatten(tree, [jaxprs.bind(eqn, [a])[0] for a in leaves])


def _anywhere(eqn: Any) -> bool:
    """Whether the target does not name the dims of the dense array."""
    return not any(isinstance(d, jax.sharding.NamedSharding) for d in eqn.params["devices"])


def _put(eqn: Any, k: int, x: Any) -> Any:
    return jax.device_put(x, eqn.params["devices"][k])


@RULES.on("sharding_constraint", "reshard")
def _sharding(ctx: Context, eqn: Any, w: Any):
    """The dense sharding, derived for every factor."""
    del ctx
    target = eqn.params.get("sharding") or eqn.params.get("dst_sharding")
    if not isinstance(target, jax.sharding.NamedSharding):
        raise Unsupported(f"a constraint by {type(target).__name__}")
    factors = ops.sharding(w, target.mesh, target.spec)
    put = lax.with_sharding_constraint
    if eqn.primitive.name == "reshard":
        put = jax.sharding.reshard
    return (jax.tree.map(put, w, factors),)


@RULES.on("neg")
def _neg(ctx: Context, eqn: Any, w: Any):
    del ctx, eqn
    return (ops.scale(w, -1),)


@RULES.on("mul")
def _mul(ctx: Context, eqn: Any, a: Any, b: Any):
    return (ops.multiply(ctx.compact(eqn, 0, a), ctx.compact(eqn, 1, b)),)


@RULES.on("div")
def _div(ctx: Context, eqn: Any, a: Any, b: Any):
    if is_lazy(b):
        raise Unsupported("division by a factored array")
    return (ops.multiply(a, 1 / ctx.compact(eqn, 1, b)),)


@RULES.on("square", "integer_pow")
def _square(ctx: Context, eqn: Any, w: Any):
    del ctx
    y = eqn.params.get("y", 2)
    if y == 1:
        return (w,)
    if y != 2:
        raise Unsupported(f"power {y}")
    return (ops.multiply(w, w),)


@RULES.on("add", "add_any", "sub")
def _add(ctx: Context, eqn: Any, a: Any, b: Any):
    a, b = ctx.compact(eqn, 0, a), ctx.compact(eqn, 1, b)
    if eqn.primitive.name == "sub":
        b = ops.scale(b, -1) if is_lazy(b) else -b
    shape = eqn.outvars[0].aval.shape
    if any(is_lazy(x) and x.shape != shape for x in (a, b)):
        raise Unsupported("a sum that broadcasts the factored array")
    return (ops.add(a, b),)


@RULES.on("reduce_sum")
def _reduce_sum(ctx: Context, eqn: Any, w: Any):
    del ctx
    return (ops.reduce_sum(w, eqn.params["axes"]),)
