"""lift: any function of dense parameters, run on factored ones."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal as Constant

from lrjax import trees
from lrjax.errors import DensifyError, message
from lrjax.formats.contract import Order
from lrjax.formats.factored import is_factored
from lrjax.formats.lazy import LazyArray
from lrjax.formats.network import Unsupported
from lrjax.lift import control, jaxprs
from lrjax.lift.interpreter import Interpreter, Place, Step, Sums
from lrjax.lift.rules import ELEMENTWISE, ROWS, RULES, is_lazy
from lrjax.lift.rules.registry import Context

OnDense = Literal["error", "warn", "allow"]
R = TypeVar("R")


class DensifyWarning(UserWarning):
    """A lifted function rebuilds a dense weight."""


def lift(
    fn: Callable[..., R], *, on_dense: OnDense = "error", order: Order = Order.STREAM
) -> Callable[..., R]:
    """`fn`, accepting factored arrays anywhere in its arguments in place of dense ones.

    `fn` is traced with the dense shapes; the program is then evaluated with factors flowing
    through it, so that no dense weight forms.  Without a factored argument, `fn` is called as it
    is.  Arguments that are no arrays stay Python values.  Parameters that `fn` returns unchanged
    come back as they went in.

    Wrap the result in `jax.jit`; put `jax.grad` outside.  A custom derivative rule stays in force
    unless a factored weight passes through it: then the derivative is that of the primal function,
    with a warning for `custom_vjp` when a gradient is taken.

    What only takes a row of a weight (`w[i]` as a scale or bias) gets that row: no matrix forms.

    Args:
      fn: any traceable function: `model.apply`, a function over `nnx.merge`, an Equinox call,
        plain JAX.
      on_dense: what to do where only the dense weight will do: refuse, warn and go on, or just go
        on.
      order: contraction order: STREAM sends the activation through every factor; FLOPS takes the
        cheapest.

    Raises:
      DensifyError: while tracing, if a use has no form on factors; names path, primitive, shape
        and line.
    """
    if on_dense not in ("error", "warn", "allow"):
        got = f"on_dense={on_dense!r}"
        raise ValueError(message(got=got, expected="'error', 'warn' or 'allow'", todo="Name one."))

    @functools.wraps(fn)
    def lifted(*args, **kwargs):
        leaves: list[Any]
        leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=is_factored)
        if not any(map(is_factored, leaves)):
            return fn(*args, **kwargs)
        names = (_name(path) for path in trees.flatten((args, kwargs))[0])
        given = {
            i: _enter(x, name)
            for i, (x, name) in enumerate(zip(leaves, names, strict=True))
            if is_factored(x) or isinstance(x, (jax.Array, np.ndarray, np.generic))
        }

        def flat(*values):
            full = list(leaves)
            for i, value in zip(given, values, strict=True):
                full[i] = value
            args, kwargs = jax.tree.unflatten(tree, full)
            return fn(*args, **kwargs)

        program, shape = jax.make_jaxpr(flat, return_shape=True)(*map(_stand_in, given.values()))
        outs, _ = Lift(on_dense, order).run(program, list(given.values()))
        same = {id(x): leaves[i] for i, x in given.items() if isinstance(x, LazyArray)}
        end = Lift(on_dense, order)
        outs = [
            same[id(y)] if id(y) in same else end.dense(y, "output of the function") for y in outs
        ]
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return lifted


class Lift(Interpreter, Context):
    """Evaluation on lazy arrays."""

    def __init__(self, on_dense: OnDense, order: Order):
        super().__init__()
        self.on_dense, self.order = on_dense, order

    def takes(self, eqn: Any, vals: Sequence[Any], at: Place) -> bool:
        """A factored operand."""
        del eqn, at
        return any(type(v) is LazyArray for v in vals)

    def control(self, eqn: Any) -> Callable[..., Step] | None:
        """Shared by all domains."""
        return control.rule_for(eqn.primitive.name)

    def leaf(self, eqn: Any, vals: Sequence[Any], at: Place, seeds: Sums) -> Step:
        """By the rule; without one the operand is rebuilt, if that is allowed."""
        del at, seeds
        rule, why = RULES.get(eqn.primitive.name), "there is no rule for it"
        if eqn.primitive.name in ELEMENTWISE or all(is_lazy(v) for v in vals):
            vals = [v.dense() if _is_activation(v) else v for v in vals]
            if not any(is_lazy(v) for v in vals):
                return jaxprs.bind(eqn, vals), {}
        if rule is not None:
            try:
                return rule(self, eqn, *vals), {}
            except Unsupported as reason:
                why = str(reason)
        return jaxprs.bind(eqn, [self.dense(v, why) for v in vals]), {}

    def dense(self, x: Any, why: str) -> Any:
        """The dense array, if that is allowed."""
        if not isinstance(x, LazyArray):
            return x
        if self.on_dense != "allow" and not _is_activation(x):
            text = _refusal(x, why, self.eqns)
            if self.on_dense == "error":
                raise DensifyError(text)
            warnings.warn(text, DensifyWarning, stacklevel=2)
        return x.dense()

    def compact(self, eqn: Any, position: int, value: Any) -> Any:
        """The operand before it was broadcast, its repeated dims of size one."""
        if isinstance(value, LazyArray):
            return value
        atom, level = self._outermost(eqn.invars[position])
        made = jaxprs.maker(self.jaxprs[level], atom)
        if made is None or made.primitive.name != "broadcast_in_dim":
            return value
        small, where = made.invars[0], made.params["broadcast_dimensions"]
        x = small.val if isinstance(small, Constant) else self.frames[level][small]
        shape = [1] * np.ndim(value)
        for d, n in zip(where, np.shape(x), strict=True):
            shape[d] = n
        return jnp.reshape(x, shape)

    def constant(self, eqn: Any, position: int) -> Any:
        """The operand's value if it is one number, written in the program; else None."""
        (atom, level), only_zero = self._outermost(eqn.invars[position]), False
        while (made := jaxprs.maker(self.jaxprs[level], atom)) is not None:
            if made.primitive.name not in _SPREADING | _ZERO_AT_ZERO:
                return None
            only_zero = only_zero or made.primitive.name in _ZERO_AT_ZERO
            atom, level = self._outermost(made.invars[0], level)
        if not isinstance(atom, Constant) or np.ndim(atom.val) or (only_zero and atom.val != 0):
            return None
        return atom.val

    def _outermost(self, atom: Any, level: int | None = None) -> tuple[Any, int]:
        """An argument of a call, as the caller has it; with the level of its jaxpr."""
        level = len(self.jaxprs) - 1 if level is None else level
        while level and not isinstance(atom, Constant):
            jaxpr, call = self.jaxprs[level], self.eqns[level - 1]
            if call.primitive.name not in jaxprs.INLINED or atom not in jaxpr.invars:
                break
            atom, level = call.invars[jaxpr.invars.index(atom)], level - 1
        return atom, level


# Primitives that only repeat, cast or reshape a number.
_SPREADING = frozenset({"broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "copy"})
_ZERO_AT_ZERO = frozenset({"square", "integer_pow", "neg", "abs", "sqrt"})


def _is_vector(x: Any) -> bool:
    """Whether x is a row of a weight, or a scale."""
    return is_lazy(x) and sum(n != 1 for n in x.shape) <= 1


def _is_activation(x: Any) -> bool:
    """Whether a lazy array is no more than an activation: a vector, or looked-up rows."""
    return _is_vector(x) or (is_lazy(x) and x.name.endswith(ROWS))


def _enter(x: Any, name: str) -> Any:
    """A factored argument as a lazy array; a factored vector, which saves nothing, as an array."""
    if not is_factored(x):
        return x
    lazy = x.lazy(name)
    return lazy.dense() if _is_vector(lazy) else lazy


def _name(path: str) -> str:
    """A path within the argument that it is in."""
    parts = path.split("/", 2)
    return parts[2] if len(parts) == 3 else f"argument {parts[-1]}"


def _stand_in(x: Any) -> Any:
    if not isinstance(x, LazyArray):
        return x
    if jax.sharding.get_abstract_mesh().empty:
        return jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.eval_shape(x.dense)  # with its sharding, or its varying axes


def _refusal(x: LazyArray, why: str, eqns: Sequence[Any]) -> str:
    use = f"{eqns[-1].primitive.name} at {jaxprs.source(eqns)}" if eqns else "the function"
    return message(
        path=x.name,
        got=f"{use}, which needs the dense {x.dtype}{list(x.shape)} ({why})",
        expected="a use that has a form on factors",
        todo="Leave this weight dense, rewrite the line, or pass on_dense='warn' or 'allow'.",
    )
