"""Taps: run a function on its weights and reduce what each weight sees, on the way.

    tapped = with_taps(fn, params, *example_args, inputs=..., outputs=..., select=...)
    outputs, sums = tapped(params, *args, mask=mask)                 # forward only
    grads = jax.grad(lambda seeds: loss(tapped(params, *args, seeds=seeds)[0]))(tapped.seeds)

`inputs(tap, x, mask)` reduces one activation to sums; `outputs(tap, g, mask)` reduces one output
gradient.  Both are pure and return a pytree of arrays that *add up* over calls; every array starts
with the stack axes that x (or g) starts with: all its axes before [tokens, width].  They are
called once for each distinct activation (or output) and traced there, in place: inside scan (which
hides its own stack axis from them and puts it back in front), remat, cond, vmap and jit.  Nothing
but their sums is kept.

    tap.kind   DOT, CONV: x is [*stack, tokens, tap.width], in x's own dtype
               LOOKUP:    x is [*stack, tap.width], float32: how often each row was looked up
               (for outputs g is [*stack, tokens, tap.width] for every kind)
    mask       [tokens] boolean, False where a token is padding, or None where the mask that was
               passed does not fit the tokens of this place; never given for LOOKUP inputs, whose
               counts leave masked tokens out

Rows and columns run in the order of the dense weight's own dims (`Use.rows`, `Use.cols`,
ascending), so that x and g match `matricize(w, layout)`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.errors import StatsError, message
from lrjax.lift.report import Usage, UseKind
from lrjax.lift.tapping import Work, gather, spread, tap_run
from lrjax.lift.usage import Survey, survey, trace


@dataclass(frozen=True)
class Tap:
    """One distinct activation (side rows), or one weight's output (side cols).

    id       Use.tap for an activation, Use.out for an output: the key of the sums
    stack    sizes of the weight's stack dims
    width    product of the sizes of rows (activation) or of cols (output)
    weights  paths of the weights that see it
    """

    id: str
    kind: UseKind
    stack: tuple[int, ...]
    width: int
    weights: tuple[str, ...]


Reduce = Callable[[Tap, Any, Any], Any]


@dataclass(frozen=True, eq=False)
class Tapped:
    """A function that also returns the sums of its taps.

    usage    how each weight is used, for the example arguments
    inputs   tap id -> Tap, activations
    outputs  tap id -> Tap, outputs; empty unless `outputs` was given
    seeds    tap id -> zeros of outputs' sums: differentiate with respect to them
    """

    fn: Callable[..., Any]
    reducers: tuple[Reduce | None, Reduce | None]
    usage: Usage
    inputs: Mapping[str, Tap]
    outputs: Mapping[str, Tap]
    seeds: dict[str, Any]

    def __call__(
        self, params: Any, *args: Any, seeds: Any = None, mask: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """`(fn(params, *args, **kwargs), {tap id: sums of the activation})`.

        The gradient with respect to `seeds` is {tap id: sums of the output gradients}.

        Args:
          params: parameters, dense or factored.
          args: arguments of fn.
          seeds: `self.seeds`, if output gradients are wanted.
          mask: booleans over the first axes of the tokens, [batch, length] or [tokens]: False is
            padding.
          kwargs: arguments of fn.

        Raises:
          StatsError: for these arguments the function uses its weights otherwise than for the
            example.
        """
        program = trace(self.fn, params, args, kwargs)
        read = survey(program)
        work = _work(read, self.inputs, self.outputs if seeds is not None else {}, self.reducers)
        sown = {
            place: spread(seeds[w.output.id], w.site)
            for place, w in work.items()
            if w.output is not None and seeds is not None
        }
        values = program.values(params, args, kwargs)
        outs, found = tap_run(program.jaxpr, values, work, sown, mask)
        sums: dict[str, Any] = {}
        for place, part in found.items():
            tap = work[place].input
            part = gather(part, work[place].site, tap.stack)
            sums[tap.id] = jax.tree.map(jnp.add, sums[tap.id], part) if tap.id in sums else part
        return jax.tree.unflatten(jax.tree.structure(program.out), outs), sums


def with_taps(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    inputs: Reduce | None = None,
    outputs: Reduce | None = None,
    select: Callable[[str], bool] | None = None,
    **kwargs: Any,
) -> Tapped:
    """Tap the activations (and output gradients) of the weights whose path `select` accepts.

    Arguments are examples, arrays or shapes; the result may be called with others, also under jit,
    vmap and grad.

    Args:
      fn: the function, as for `lift`.
      params: a tree of arrays, factored arrays or shapes.
      args: example arguments.
      inputs: reduces an activation, if given.
      outputs: reduces an output gradient, if given.
      select: which weights to tap; all by default.
      kwargs: example arguments.
    """
    read = survey(trace(fn, params, args, kwargs))
    known = read.usage
    chosen = {
        site.weight.path for site, _, _ in read.sites if select is None or select(site.weight.path)
    }
    taps: dict[str, Tap] = {}
    ends: dict[str, Tap] = {}
    seeds: dict[str, Any] = {}
    for site, tap, out in read.sites:
        path, shape = site.weight.path, site.weight.shape
        size = lambda dims, shape=shape: tuple(shape[d] for d in dims)
        wide = lambda dims, size=size: math.prod(size(dims))
        stack = size(site.stack)
        seen = [s.weight.path for s, t, _ in read.sites if t == tap]
        if inputs is not None and any(p in chosen for p in seen):
            taps[tap] = Tap(tap, site.kind, stack, wide(site.rows), tuple(dict.fromkeys(seen)))
        if outputs is not None and path in chosen and out not in ends:
            ends[out] = Tap(out, site.kind, stack, wide(site.cols), (path,))
            example = jax.ShapeDtypeStruct((*stack, 1, ends[out].width), site.dtype)
            made = jax.eval_shape(lambda g, t=ends[out]: outputs(t, g, None), example)
            seeds[out] = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made)
    return Tapped(fn, (inputs, outputs), known, taps, ends, seeds)


def _work(
    read: Survey,
    inputs: Mapping[str, Tap],
    outputs: Mapping[str, Tap],
    reducers: tuple[Reduce | None, Reduce | None],
) -> dict[tuple[int, ...], Work]:
    """What to do at each place: an activation is observed once for a tap, outputs everywhere."""
    known = {tap for _, tap, _ in read.sites}
    if missing := [tap for tap in inputs if tap not in known]:
        todo = "Calibrate with arguments that take the same way through the function."
        raise StatsError(
            message(
                path=missing[0], got="no use", expected="the use that the example has", todo=todo
            )
        )
    seen: set[Any] = set()
    work = {}
    for k, (site, tap, out) in enumerate(read.sites):
        new = tap in inputs and (tap, site.key) not in seen
        seen.add((tap, site.key))
        if new or out in outputs:
            begin, end = inputs[tap] if new else None, outputs.get(out)
            work[(*site.place, k)] = Work(site, begin, end, *reducers)
    return work
