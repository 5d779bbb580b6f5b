"""Elementwise primitives that a sum of networks survives, and sums over it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lrjax import ops
from lrjax.formats.network import Network, Unsupported
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


@RULES.on("name", "pvary", "pcast", "optimization_barrier")
def _each_factor(ctx: Context, eqn: Any, *ws: Any):
    """Says something about a value without changing it: holds for every factor."""
    del ctx
    leaves, tree = jax.tree.flatten(ws)
    if eqn.primitive.multiple_results:
        return jax.tree.unflatten(tree, jaxprs.bind(eqn, leaves))
    return jax.tree.unflatten(tree, [jaxprs.bind(eqn, [a])[0] for a in leaves])


@RULES.on("device_put")
def _device_put(ctx: Context, eqn: Any, *ws: Any):
    del ctx
    pairs = zip(ws, eqn.params["devices"], strict=True)
    return tuple(_placed(w, device, jax.device_put) for w, device in pairs)


@RULES.on("sharding_constraint", "reshard")
def _sharding(ctx: Context, eqn: Any, w: Any):
    del ctx
    if eqn.primitive.name == "reshard":
        return (_placed(w, eqn.params["dst_sharding"], jax.sharding.reshard),)
    return (_placed(w, eqn.params["sharding"], lax.with_sharding_constraint),)


def _placed(w: Any, target: Any, put: Callable[[Any, Any], Any]) -> Any:
    """A dense sharding, carried over: a mesh axis goes to the first label of its dim."""
    if target is None or not is_lazy(w):
        return w if target is None else put(w, target)
    if not isinstance(target, jax.sharding.NamedSharding):
        return jax.tree.map(lambda a: put(a, target), w)

    def one(net: Network) -> Network:
        net = net.expanded()
        sizes, where = net.sizes, {}
        for group, axis in zip(net.dims, target.spec, strict=False):
            names = axis if isinstance(axis, tuple) else (axis,)
            label = next((k for k in group if sizes[k] != 1), None)
            if axis is not None and label is not None:
                if sizes[label] % math.prod(target.mesh.shape[n] for n in names) == 0:
                    where[label] = axis
        specs = [jax.sharding.PartitionSpec(*map(where.get, ls)) for ls in net.labels]
        operands = [
            put(x, jax.sharding.NamedSharding(target.mesh, spec))
            for x, spec in zip(net.operands, specs, strict=True)
        ]
        return Network(tuple(operands), net.labels, net.dims)

    return w.map(one)


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
    for x, other in ((a, 1), (b, 0)):  # plus zero, as in the square of a real number's absolute
        if is_lazy(x) and ctx.constant(eqn, other) == 0 and x.shape == eqn.outvars[0].aval.shape:
            return (ops.scale(x, -1) if eqn.primitive.name == "sub" and other == 0 else x,)
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
