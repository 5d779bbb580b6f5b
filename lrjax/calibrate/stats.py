"""What calibration found: one store for each distinct activation and each output; mergeable."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.calibrate.tied import combine
from lrjax.errors import StatsError, message
from lrjax.lift import Usage, Use, WeightUse
from lrjax.metrics import (
    Moments,
    Scatter,
    SquaredGradients,
    WeightStats,
    merge_moments,
    merge_squares,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stats:
    """Second moments of what every weight sees, normalised by the number of tokens.

    `a + b` equals one pass over both samples; `path in stats` says whether a weight was seen.

    Attributes:
        inputs: tap -> moments of a distinct activation, shared by all weights that see it.
        outputs: tap -> moments of the gradient at a weight's output; empty without gradients.
        tokens: tokens of all batches (examples, without a mask).
        usage: how each weight is used: layouts, ties, biases, taps.
        fisher: path -> squared gradients of every example; empty if not asked for.
    """

    inputs: Any
    outputs: Any
    tokens: Any
    usage: Usage = dataclasses.field(metadata={"static": True})
    fisher: Any = dataclasses.field(default_factory=dict)

    def __add__(self, other: "Stats") -> "Stats":
        """Statistics of both samples together."""
        return merge(self, other)

    def __contains__(self, path: str) -> bool:
        return path in self.usage and bool(self._uses(path))

    def of(self, path: str) -> WeightStats:
        """What the weight at `path` saw, in its layout: inputs on the rows, gradients on the cols.

        Uses of one orientation are merged by tokens. A table that is looked up and is the output
        head too has one metric for both, if gradients were taken, else that of its first use.

        Raises:
            StatsError: the weight was not seen.
        """
        uses = self._uses(path) if path in self.usage else []
        if not uses:
            raise StatsError(
                message(
                    path=path,
                    got="no statistics",
                    expected="a weight that the calibrated function uses",
                    todo=f"Seen were: {', '.join(p for p in self.usage if p in self) or 'none'}.",
                )
            )
        bias = self.usage[path].bias
        found = [self._moments(u for u in uses if u.rows == rows) for rows in _orientations(uses)]
        if len(found) > 1 and all(cols is not None for _, cols in found):
            (rows, cols), *others = found
            rows, cols = combine([(rows, cols), *((c, r) for r, c in others)])
        else:
            rows, cols = found[0]
        return WeightStats(rows, cols, bias, self.fisher.get(path))

    def _moments(self, uses: Iterable[Use]) -> tuple[Any, Any]:
        """Inputs and output gradients of uses of one orientation."""
        uses = list(uses)
        rows = [self.inputs[tap] for tap in dict.fromkeys(u.tap for u in uses)]
        outs = dict.fromkeys(u.out for u in uses if u.out in self.outputs)
        cols = [self.outputs[out] for out in outs]
        return reduce(merge_moments, rows), reduce(merge_moments, cols) if cols else None

    def psum(self, axis_name: str | tuple[str, ...]) -> "Stats":
        """Statistics of all shards of a mapped axis together, inside `shard_map` or `pmap`."""
        total = lambda x: jax.lax.psum(x, axis_name)

        def one(m: Moments) -> Moments:
            count = total(m.count)
            share = m.count / jnp.where(count > 0, count, 1.0)
            weigh = lambda x: total(
                x * jnp.reshape(share, share.shape + (1,) * (x.ndim - share.ndim))
            )
            some = lambda x: None if x is None else weigh(x)
            scatter = None if m.scatter is None else apart(m.scatter)
            mean, magnitude = some(m.mean), some(m.magnitude)
            return Moments(count, mean, weigh(m.second), m.diagonal, magnitude, scatter)

        def apart(m: Scatter) -> Scatter:
            count = total(m.examples)
            share = m.examples / jnp.where(count > 0, count, 1.0)
            trace = None if m.trace is None else total(share * m.trace)
            return Scatter(count, total(share * m.square), trace)

        def squares(m: SquaredGradients) -> SquaredGradients:
            count = total(m.count)
            share = m.count / jnp.where(count > 0, count, 1.0)
            return dataclasses.replace(m, count=count, mean=total(share * m.mean))

        inputs = {tap: one(m) for tap, m in self.inputs.items()}
        outputs = {tap: one(m) for tap, m in self.outputs.items()}
        fisher = {path: squares(m) for path, m in self.fisher.items()}
        return Stats(inputs, outputs, total(self.tokens), self.usage, fisher)

    def digest(self) -> str:
        """SHA-256 of all values: equal for equal statistics, on every machine."""
        sha = hashlib.sha256()
        for name in ("inputs", "outputs", "fisher"):
            store = getattr(self, name)
            for tap in sorted(store):
                sha.update(f"{name} {tap} {jax.tree.structure(store[tap])}".encode())
                for leaf in jax.tree.leaves(store[tap]):
                    value = np.ascontiguousarray(leaf, np.float32)
                    sha.update(str(value.shape).encode())
                    sha.update(value.tobytes())
        return sha.hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all sums."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def __str__(self) -> str:
        seen = sum(path in self for path in self.usage)
        kind = "inputs and output gradients" if self.outputs else "inputs"
        for squares in list(self.fisher.values())[:1]:
            what = "element" if squares.elements else "row"
            kind += f", {what} Fisher ({squares.labels} labels)"
        return (
            f"Stats of {seen} weights, {kind}: {float(self.tokens):,.0f} tokens, "
            f"{len(self.inputs)} activations, {self.nbytes / 1e6:.1f} MB"
        )

    def _uses(self, path: str) -> list[Use]:
        use: WeightUse = self.usage[path]
        return [u for u in use.matrix_uses if u.tap in self.inputs]


def _orientations(uses: list[Use]) -> list[tuple[int, ...]]:
    """The rows of the first use, and those of its transpose if there is such a use."""
    turned = [u.rows for u in uses if (u.rows, u.cols) == (uses[0].cols, uses[0].rows)]
    return list(dict.fromkeys([uses[0].rows, *turned]))


def merge(a: Stats, b: Stats) -> Stats:
    """Statistics of both samples together; associative up to rounding.

    Raises:
        StatsError: they belong to different functions or were taken in different ways.
    """
    same = jax.tree.structure(a) == jax.tree.structure(b)
    if not same:
        raise StatsError(
            message(
                got="statistics of two different functions or calibrations",
                expected="the same weights, taps, gradients and Fisher information in both",
                todo="Calibrate both with one function and the same options.",
            )
        )
    return Stats(
        merge_stores(a.inputs, b.inputs),
        merge_stores(a.outputs, b.outputs),
        a.tokens + b.tokens,
        a.usage,
        {path: merge_squares(a.fisher[path], b.fisher[path]) for path in a.fisher},
    )


def merge_stores(a: Mapping[str, Moments], b: Mapping[str, Moments]) -> dict[str, Moments]:
    """Merge moments tap by tap."""
    return {tap: merge_moments(a[tap], b[tap]) for tap in a}
