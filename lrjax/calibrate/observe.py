"""The pure step of calibration: what one batch shows of every weight."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.calibrate.fisher import FisherObserver
from lrjax.calibrate.probes import Batch, Probes
from lrjax.calibrate.reduce import Reducer, mask_outputs, normalise
from lrjax.calibrate.stats import Stats
from lrjax.errors import StatsError, message
from lrjax.lift.taps import Tapped


@dataclasses.dataclass(frozen=True, eq=False)
class Observer:
    """Statistics of one batch; pure and jittable.

    Attributes:
        tapped: the function with its taps.
        inputs: reduces activations.
        outputs: reduces output gradients.
        loss: mean loss of outputs and batch; None to probe the outputs.
        probes: used where there is no loss; None for inputs alone.
        mask: which positions of a batch are tokens, [batch, length].
        fisher: squares the gradients of every example; None if not asked for.
    """

    tapped: Tapped
    inputs: Reducer
    outputs: Reducer
    loss: Callable[[Any, Batch], jax.Array] | None
    probes: Probes | None
    mask: Callable[[Batch], jax.Array] | None
    fisher: FisherObserver | None = None

    def __call__(self, params: Any, batch: Batch, key: jax.Array) -> Stats:
        """Moments of every tap, and squared gradients, over the batch's tokens."""
        mask = None if self.mask is None else jnp.asarray(self.mask(batch), bool)
        sums, grads = self._sums(params, batch, mask, key)
        taps = self.tapped
        inputs = {
            tap: normalise(sums[tap], diagonal=self.inputs.is_diagonal(taps.inputs[tap]))
            for tap in taps.inputs
        }
        outputs = {
            tap: normalise(grads[tap], diagonal=self.outputs.is_diagonal(taps.outputs[tap]))
            for tap in taps.outputs
        }
        examples = jnp.float32(_examples(batch))
        tokens = examples if mask is None else jnp.sum(mask, dtype=jnp.float32)
        fisher: dict[str, Any] = {}
        if self.fisher is not None:
            fisher = self.fisher(params, batch, jax.random.fold_in(key, self.fisher.fisher.seed))
        return Stats(inputs, outputs, tokens, taps.usage, fisher)

    def _sums(self, params, batch, mask, key) -> tuple[dict, dict]:
        """Sums of inputs, and sums of each token's own gradients."""
        own = tuple(
            dataclasses.replace(r, examples=_examples(batch)) for r in (self.inputs, self.outputs)
        )
        tapped, seeds = dataclasses.replace(self.tapped, reducers=own), self.tapped.seeds
        if self.loss is None and self.probes is None:
            _, sums = tapped(params, batch, mask=mask)
            return sums, {}

        def forward(seeds):
            outputs, sums = tapped(params, batch, seeds=seeds, mask=mask)
            if self.loss is not None:
                return self.loss(outputs, batch), sums
            return [y for y in jax.tree.leaves(outputs) if _is_float(y)], sums

        value: Any
        value, pull, sums = jax.vjp(forward, seeds, has_aux=True)
        if self.probes is None or self.loss is not None:
            _check_loss(value)
            # A mean over n examples has gradients of size 1 / n.
            n = _examples(batch) if mask is None else jnp.sum(mask)
            (grads,) = pull(jnp.asarray(n, value.dtype))
            return sums, grads
        return sums, _probed(self.probes, value, pull, mask, key)


def _probed(probes: Probes, outputs: Any, pull: Callable, mask: Any, key: jax.Array) -> Any:
    """Sums of squared gradients over all probes of the outputs."""
    if not outputs:
        raise StatsError(
            message(
                got="a function without floating outputs",
                expected="outputs to probe",
                todo="Pass a loss, or gradients=False.",
            )
        )

    def one(k: jax.Array) -> Any:
        (grads,) = pull([mask_outputs(r, mask) for r in probes.draw(k, outputs)])
        return grads

    each = jax.lax.map(one, jax.random.split(key, probes.count))
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), each)


def _examples(batch: Batch) -> int:
    """How many examples a batch has: the length of its first axis."""
    return next(x.shape[0] for x in jax.tree.leaves(batch) if jnp.ndim(x))


def _is_float(y: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(y), jnp.floating)


def _check_loss(value: Any) -> None:
    if jnp.shape(value) != () or not _is_float(value):
        got = f"a loss of shape {jnp.shape(value)} and dtype {jnp.result_type(value)}"
        todo = "Return the mean over the batch."
        raise StatsError(message(got=got, expected="a floating scalar", todo=todo))
