"""`calibrate`: stream batches through a function and gather what its weights see."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from lrjax import trees
from lrjax.calibrate.fisher import Fisher, FisherObserver, check_request
from lrjax.calibrate.observe import Observer
from lrjax.calibrate.probes import Batch, Probes
from lrjax.calibrate.reduce import Reducer, all_finite
from lrjax.calibrate.stats import Stats, merge
from lrjax.errors import StatsError, message
from lrjax.formats.layout import Layout
from lrjax.lift.taps import Tapped, with_taps
from lrjax.trees import Tree

MAX_GRAM = 1 << 14
"""Longer vectors keep the diagonal of their second moment: a full one would exceed 1 GB."""


def calibrate(
    apply: Callable[[Tree, Batch], Any],
    params: Tree,
    batches: Iterable[Batch],
    *,
    loss: Callable[[Any, Batch], jax.Array] | None = None,
    probes: Probes | None = None,
    gradients: bool = True,
    mask: Callable[[Batch], jax.Array] | None = None,
    select: Sequence[str] | None = None,
    max_gram: int = MAX_GRAM,
    magnitudes: bool = False,
    fisher: Fisher | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Stats:
    """Second moments of every weight's inputs and output gradients, over all batches.

    For tokens x with output gradients g: rows E[x x'] and E[x], cols E[g g']. The gradient is the
    loss's, or, without one, of random probes of the outputs (Gauss-Newton), per token.

    Memory: one float32 d x d matrix for each distinct activation of width d and one n x n for
    each weight's output, twice (running and the batch's own), plus what one batch needs;
    independent of the number of batches. No activation outlives its batch. Means are merged, not
    sums, so float32 stays accurate over any number of tokens.

    Args:
        apply: apply(params, batch) -> outputs, any JAX function.
        params: dense parameters.
        batches: pytrees of arrays whose first axis counts examples; an iterator is read once.
        loss: loss(outputs, batch) -> mean loss of the batch.
        probes: how the outputs are probed where there is no loss; default `Probes()`.
        gradients: False for inputs alone: one forward pass, and half the memory.
        mask: mask(batch) -> which positions [batch, length] are tokens, and not padding.
        select: globs of the weights to look at; default: all.
        max_gram: widest vector whose full second moment is kept; wider ones keep its diagonal.
        magnitudes: also E|x| of the inputs, for `ASVD`.
        fisher: also squared gradients of every example, by entries (`TFWSVD`) or rows (`FWSVD`); a
            further pass over each batch. Its class says the memory and where labels come from.
        on_batch: called with the number of batches done, after each.

    Raises:
        StatsError: there are no batches, or no tokens in them, Fisher information is asked for
            without its loss, or a weight, activation or gradient is not finite.
        RuleError: a glob of `select` matches nothing.
    """
    _check_weights(params)
    if fisher is not None:
        check_request(fisher, loss)
    observe: Observer | None = None
    total: Stats | None = None
    done, finite = 0, None
    probes = (probes or Probes()) if gradients and loss is None else None
    key = jax.random.key(0 if probes is None else probes.seed)
    chosen = None
    if select is not None:
        chosen = set(trees.assign(dict.fromkeys(select), trees.paths(params)))
    for batch in batches:
        _check_batch(batch, done)
        if observe is None or total is None:
            reducers = Reducer(max_gram, mean=True, magnitude=magnitudes), Reducer(max_gram, False)
            own = loss if gradients else None
            observe = _observer(apply, params, batch, own, probes, mask, chosen, reducers)
            if fisher is not None:
                seen = [path for path in trees.paths(params) if chosen is None or path in chosen]
                layouts = _layouts(observe.tapped, seen)
                shared = trees.shared(params)
                squares = FisherObserver(apply, fisher, loss, mask, layouts, shared)
                observe = dataclasses.replace(observe, fisher=squares)
            first = jax.eval_shape(observe, params, batch, key)
            total = jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), first)
            step = jax.jit(_step(observe), donate_argnums=0)
        # The flag of the batch before is read after this one is under way.
        total, flag = step(total, params, batch, jax.random.fold_in(key, done))
        if finite is not None and not finite:
            break
        finite = flag
        done += 1
        if on_batch is not None:
            on_batch(done)
    if total is None or observe is None:
        todo = "An iterator can be read only once: pass a list, or a fresh iterator."
        raise StatsError(message(got="no batches", expected="at least one", todo=todo))
    if not finite:
        raise _not_finite(total, observe, done)
    if not total.tokens > 0:
        todo = "Look at the mask: it says which positions are tokens, and not padding."
        got = f"no token in {done} batches, all of them masked out"
        raise StatsError(message(got=got, expected="at least one", todo=todo))
    return total


def _step(observe: Observer) -> Callable:
    def step(total: Stats, params: Tree, batch: Batch, key: jax.Array) -> tuple[Stats, jax.Array]:
        seen = observe(params, batch, key)
        return merge(total, seen), all_finite(seen)

    return step


def _observer(apply, params, batch, loss, probes, mask, chosen, reducers) -> Observer:
    inputs, outputs = reducers
    tapped = with_taps(
        apply,
        params,
        batch,
        inputs=inputs,
        outputs=None if loss is None and probes is None else outputs,
        select=None if chosen is None else chosen.__contains__,
    )
    if not tapped.inputs:
        raise StatsError(
            message(
                got="a function that multiplies no selected weight",
                expected="at least one matrix product, lookup or convolution with a parameter",
                todo="Look at lrjax.usage(apply, params, batch).",
            )
        )
    return Observer(tapped, inputs, outputs, loss, probes, mask)


def _layouts(tapped: Tapped, paths: Iterable[str]) -> dict[str, Layout]:
    """Path -> layout, as `Stats.of` has it, of those weights that were tapped."""
    uses = {p: [u for u in tapped.usage[p].matrix_uses if u.tap in tapped.inputs] for p in paths}
    return {path: Layout(own[0].rows, own[0].cols) for path, own in uses.items() if own}


def _check_weights(params: Tree) -> None:
    leaves, _ = trees.flatten(params)
    for path, leaf in leaves.items():
        if trees.is_weight_leaf(leaf) or not hasattr(leaf, "dtype"):
            continue
        if not bool(all_finite(leaf)):
            todo = "Repair the checkpoint."
            got = "a weight with NaN or infinite entries"
            raise StatsError(message(path=path, got=got, expected="finite values", todo=todo))


def _check_batch(batch: Batch, index: int) -> None:
    sizes = [x.shape[0] for x in jax.tree.leaves(batch) if getattr(x, "ndim", 0)]
    if not sizes or 0 in sizes:
        raise StatsError(
            message(
                path=f"batch {index}",
                got="an empty batch",
                expected="arrays whose first axis counts examples",
                todo="Leave empty batches out.",
            )
        )


def _not_finite(total: Stats, observe: Observer, done: int) -> StatsError:
    """The error that names the weights of the first store that is not finite."""
    tapped = observe.tapped
    stores = [(tap.weights, "input", total.inputs[key]) for key, tap in tapped.inputs.items()]
    stores += [(t.weights, "gradient", total.outputs[key]) for key, t in tapped.outputs.items()]
    stores += [((path,), "squared-gradient", squares) for path, squares in total.fisher.items()]
    paths, what, _ = next(store for store in stores if not all_finite(store[2]))
    when = f"batch {done - 1} or {done}" if done > 1 else "the first batch"
    todo = "Look at the batch, at its padding (pass mask=...), and at overflow in low precision."
    return StatsError(
        message(
            path=", ".join(paths),
            got=f"{what} values that are not finite, in {when}",
            expected="finite values",
            todo=todo,
        )
    )
