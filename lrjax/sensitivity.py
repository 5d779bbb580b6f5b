"""`sensitivity`: how much of each weight's loss arrives at the model's output."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax import trees
from lrjax.calibrate import Stats
from lrjax.calibrate.probes import Batch
from lrjax.calibrate.reduce import mask_outputs
from lrjax.compress import compress
from lrjax.errors import StatsError, message
from lrjax.formats import is_factored
from lrjax.metrics import Kind
from lrjax.ops import densify
from lrjax.plan import Budget, Entry, Plan, Uniform, plan
from lrjax.plan.matching import Rule
from lrjax.trees import Tree

NOISE = 1e-6
"""Share of the loss of dropping a weight below which its loss is rounding, and says nothing."""

Distance = Callable[[Any, Any, Batch], Float[Array, ""]]


def sensitivity(
    apply: Callable[[Tree, Batch], Any],
    params: Tree,
    rules: Mapping[str, Rule],
    batches: Iterable[Batch],
    stats: Stats,
    *,
    metric: Kind | None = None,
    keep: float = 0.5,
    mask: Callable[[Batch], Array] | None = None,
    distance: Distance | None = None,
    on_weight: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[float, ...]]:
    """How much dearer errors are at the model's output than statistics predict, by weight and form.

    Every weight in turn is replaced by W', what it becomes by each candidate of its rule, while all
    others stay dense:

        s = E |f(W') - f(W)|^2 / loss(W - W'), over the geometric mean of all weights.

    Statistics take tokens for independent of each other, and inputs for independent of gradients
    (K-FAC; arXiv:2311.00636 on shared weights). Where tokens see nearly the same, as behind
    attention, their errors add up instead, and the true loss is several times the predicted one.
    `plan(..., sensitivity=...)` multiplies each candidate's losses by its own. So scaled, losses
    of statistics without gradients are comparable between weights, too.

    Costs a solve and a forward pass over the batches for every candidate of every weight, and holds
    the dense outputs of all batches; a few dozen examples are enough.

    Args:
      apply: apply(params, batch) -> outputs.
      params: dense parameters.
      rules: those of the plan.
      batches: pytrees of arrays; of the calibration, never of the evaluation.
      stats: what `calibrate` found.
      metric: what error means, for specs that do not say: that of the plan.
      keep: share of each weight's parameters that W' keeps, or the next below that it can.
      mask: mask(batch) -> which positions [batch, length] are tokens, and not padding.
      distance: distance(outputs, dense outputs, batch) -> what counts, summed over the examples;
        default: the squared distance of all floating outputs.
      on_weight: called with the number of weights done, and of all, after each.

    Returns:
      path -> s of each candidate, for `plan`.

    Raises:
      StatsError: there are no batches, no statistics of a weight, or a distance is not finite.
      RuleError: a rule matches nothing that can be factored.
      BudgetError: the sizes that rules fix, or the least possible, exceed `keep`: raise it.
    """
    given = list(batches)
    if not given:
        raise StatsError(message(got="no batches", expected="at least one", todo="Pass some."))
    chosen = plan(
        params,
        rules,
        budget=Budget(keep=keep),
        stats=stats,
        metric=metric,
        allocation=Uniform(),
        trials=False,
    )
    far = distance or (lambda found, dense, batch: _squared(found, dense, batch, mask))
    run = jax.jit(apply)
    score = jax.jit(lambda params, dense, batch: far(apply(params, batch), dense, batch))
    dense = [run(params, batch) for batch in given]

    def moved(entry: Entry) -> float:
        """The distance that one weight's own form makes."""
        alone = trees.map_weights(_rebuilt, compress(params, _only(chosen, entry), stats))
        each = [score(alone, y, batch) for y, batch in zip(dense, given, strict=True)]
        return math.fsum(map(float, each))

    found: dict[str, list[float]] = {}
    listed = [e for e in chosen.entries if not e.shared and (e.spec is not None or e.rivals)]
    for done, entry in enumerate(listed, 1):
        forms = _forms(entry)
        found[entry.path] = [math.nan if f is None else _ratio(f, moved(f)) for f in forms]
        if on_weight is not None:
            on_weight(done, len(listed))
    return _normalised(found)


def _forms(entry: Entry) -> list[Entry | None]:
    """The entry with each of its rule's candidates; None for one that has no such size."""
    sized = lambda spec, loss: dataclasses.replace(entry, spec=spec, loss=loss, rivals=())
    forms = [None if r.loss is None else sized(r.spec, r.loss) for r in entry.rivals]
    if entry.spec is not None:
        forms.insert(entry.candidate, sized(entry.spec, entry.loss))
    return forms


def _only(chosen: Plan, entry: Entry) -> Plan:
    """The plan of one weight, and of those that share it."""
    return dataclasses.replace(
        chosen, entries=(entry, *(e for e in chosen.entries if e.shared == entry.path))
    )


def _rebuilt(w: Any) -> Any:
    """The dense weight, so that one compilation serves all."""
    return densify(w) if is_factored(w) else w


def _ratio(entry: Entry, moved: float) -> float:
    """Measured over predicted loss; NaN where the prediction is rounding."""
    if math.isfinite(moved):
        return moved / entry.loss if entry.loss > NOISE * entry.total else math.nan
    got, todo = f"a distance of {moved}", "Look for NaN or overflow in the outputs."
    raise StatsError(message(path=entry.path, got=got, expected="a finite number", todo=todo))


def _normalised(found: Mapping[str, list[float]]) -> dict[str, tuple[float, ...]]:
    """Ratios over the mean of all weights; the unknown ones are those of the weight's others."""
    known = {path: _mean([r for r in ratios if r > 0]) for path, ratios in found.items()}
    whole = _mean([k for k in known.values() if k > 0]) or 1.0
    scale = lambda r, own: (own if math.isnan(r) else r) / whole
    return {
        path: tuple(scale(r, known[path] or whole) for r in ratios)
        for path, ratios in found.items()
    }


def _mean(values: list[float]) -> float:
    """The geometric one; of nothing 0."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else 0.0


def _squared(found: Any, dense: Any, batch: Batch, mask: Any) -> Float[Array, ""]:
    """The squared distance of floating outputs, without padding."""
    here = None if mask is None else jnp.asarray(mask(batch), bool)
    total = jnp.zeros(())
    for y, y0 in zip(jax.tree.leaves(found), jax.tree.leaves(dense), strict=True):
        if jnp.issubdtype(y.dtype, jnp.floating):
            gap = mask_outputs(y.astype(jnp.float32) - y0.astype(jnp.float32), here)
            total += jnp.sum(gap**2)
    return total
