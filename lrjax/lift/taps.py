"""Taps: run a function on its weights and reduce what each weight sees, on the way.

    tapped = with_taps(fn, params, *example_args, inputs=..., outputs=..., select=...)
    outputs, sums = tapped(params, *args, mask=mask)                 # forward only
    grads = jax.grad(lambda seeds: loss(tapped(params, *args, seeds=seeds)[0]))(tapped.seeds)

`inputs(tap, x, mask)` reduces one activation to sums; `outputs(tap, g, mask)` reduces one output
gradient.  Both are pure and return a pytree of arrays that *add up* over calls; every array starts with
the axes `tap.stack`.  They are called once for each distinct activation (or output) and traced there, in
place: inside scan, remat, cond, vmap and jit.  Nothing but their sums is kept.

    tap.kind   DOT, CONV: x is [*stack, tokens, tap.width], in x's own dtype
               LOOKUP:    x is [*stack, tap.width], float32: how often each row was looked up
               (for outputs g is [*stack, tokens, tap.width] for every kind)
    mask       [tokens] or [*stack, tokens] boolean, False where the token is padding, or None; never given for LOOKUP
               inputs, whose counts leave masked tokens out

Rows and columns run in the order of the dense weight's own dims (`Use.rows`, `Use.cols`, ascending), so
that x and g match `matricize(w, layout)`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lrjax.lift.report import Usage, UseKind


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


@dataclass(frozen=True)
class Tapped:
    """A function that also returns the sums of its taps.

    usage    how each weight is used, for the example arguments
    inputs   tap id -> Tap, activations
    outputs  tap id -> Tap, outputs; empty unless `outputs` was given
    seeds    tap id -> zeros of outputs' sums: differentiate with respect to them
    """

    usage: Usage
    inputs: Mapping[str, Tap]
    outputs: Mapping[str, Tap]
    seeds: Mapping[str, Any]

    def __call__(
        self, params, *args, seeds=None, mask=None, **kwargs
    ) -> tuple[Any, dict[str, Any]]:
        """(fn's outputs, {tap id: sums of the activation}); the gradient of seeds is {tap id: sums of g}."""
        raise NotImplementedError


def with_taps(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    inputs: Reduce | None = None,
    outputs: Reduce | None = None,
    select: Callable[[str], bool] | None = None,
    **kwargs: Any,
) -> Tapped:
    """Tap the activations (and output gradients) of the weights whose path `select` accepts (default: all).

    Arguments are examples: arrays, or jax.ShapeDtypeStruct; the result may be called with other shapes.
    """
    raise NotImplementedError
