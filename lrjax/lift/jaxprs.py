"""Reading jaxprs: the one place that depends on what a version of jax calls things.

Known differences between jax 0.10 and 0.12:
- `scan` counted its operands in `num_consts` and `num_carry`; since 0.11 a flat tree `ft_in`
  groups them.
- A closed jaxpr was a class of its own; since 0.12 a jaxpr carries its constants itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import source_info_util
from jax.extend.core import Literal

INLINED = frozenset({"jit", "pjit", "closed_call", "core_call", "core_closed_call", "composite"})
REMAT = frozenset({"remat2", "remat", "checkpoint"})
CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call"})


def opened(closed: Any) -> tuple[Any, Sequence[Any]]:
    """The open jaxpr and the values of its constants."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", None) or ()


def body(eqn: Any) -> Any:
    """The one jaxpr that a call-like equation (INLINED, REMAT, CUSTOM) evaluates."""
    return eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]


def scan_groups(eqn: Any) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many are carried."""
    if "ft_in" in eqn.params:
        consts, carry = (len(group.vals) for group in eqn.params["ft_in"].unpack()[:2])
        return consts, carry
    return eqn.params["num_consts"], eqn.params["num_carry"]


def bind(eqn: Any, vals: Sequence[Any]) -> Sequence[Any]:
    """Evaluate one equation as it stands."""
    out = eqn.primitive.bind(*vals, **eqn.primitive.get_bind_params(eqn.params))
    return out if eqn.primitive.multiple_results else (out,)


def live(jaxpr: Any) -> Sequence[tuple[int, Any]]:
    """The equations that some output needs, with their positions."""
    needed = {id(v) for v in jaxpr.outvars}
    kept = []
    for k in reversed(range(len(jaxpr.eqns))):
        eqn = jaxpr.eqns[k]
        if eqn.effects or any(id(v) in needed for v in eqn.outvars):
            kept.append((k, eqn))
            needed.update(id(v) for v in eqn.invars)
    return kept[::-1]


def maker(jaxpr: Any, atom: Any) -> Any:
    """The equation that computes an atom of a jaxpr, if there is one."""
    if isinstance(atom, Literal):
        return None
    return next((eqn for eqn in jaxpr.eqns if atom in eqn.outvars), None)


def forwards(closed: Any) -> list[int | None]:
    """For each output the position of the input that it is, unchanged; else None.

    Looks through calls: scans over modules hand their parameters through their bodies.
    """
    jaxpr, _ = opened(closed)
    source: dict[Any, int] = {v: i for i, v in enumerate(jaxpr.invars)}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in INLINED | REMAT and any(_known(v, source) for v in eqn.invars):
            for v, k in zip(eqn.outvars, forwards(body(eqn)), strict=True):
                if k is not None and _known(eqn.invars[k], source):
                    source[v] = source[eqn.invars[k]]
    return [source[v] if _known(v, source) else None for v in jaxpr.outvars]


def _known(v: Any, source: dict[Any, int]) -> bool:
    return not isinstance(v, Literal) and v in source


def source(eqns: Sequence[Any]) -> str:
    """`file:line (function)` of the innermost equation that has a user's line; never fails."""
    for eqn in reversed(eqns):
        try:
            text = source_info_util.summarize(eqn.source_info)
        except Exception:  # a message must never hide the error that it explains
            continue
        if text:
            place, _, function = text.partition(" (")
            parts = place.split(":")
            return ":".join(parts[:2]) + (f" ({function}" if function else "")
    return "an unknown line"


def is_integer(dtype: Any) -> bool:
    """Whether an index may have this dtype."""
    return jax.numpy.issubdtype(dtype, jax.numpy.integer)


def frozen(params: dict[str, Any]) -> Any:
    """Parameters of an equation as a hashable value, or None."""
    key = tuple(sorted(params.items()))
    try:
        hash(key)
    except TypeError:
        return None
    return key


class Lookup(NamedTuple):
    """A gather of whole rows: `w[..., indices[..., column], ...]` along dim `dim`.

    kept  whether the looked-up dim stays, with size one, among the offset dims
    """

    dim: int
    column: int
    kept: bool


def lookup(eqn: Any) -> Lookup | None:
    """A gather as a lookup of whole rows along one dim; None if it is another gather.

    Under vmap, `w[i]` becomes a gather that gives a start for every dim; where the slice is the
    whole dim the only start in range is 0, which "clip" and "promise_in_bounds" make of any.
    """
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, starts = eqn.invars[0].aval.shape, numbers.start_index_map
    free = [d for d in range(len(shape)) if d not in numbers.operand_batching_dims]
    partial = [d for d in free if sizes[d] != shape[d]]
    if len(starts) == 1:
        partial = partial or list(starts)
    elif eqn.params["mode"].name == "FILL_OR_DROP":
        return None
    if len(partial) != 1 or partial[0] not in starts or sizes[partial[0]] != 1:
        return None
    if any(d != partial[0] for d in numbers.collapsed_slice_dims):
        return None
    (dim,) = partial
    return Lookup(dim, starts.index(dim), dim not in numbers.collapsed_slice_dims)
