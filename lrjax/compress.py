"""`compress`: parameters, a plan and statistics to factored parameters; pure and jittable."""

import dataclasses
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import trees
from lrjax.calibrate import Stats
from lrjax.decompose import SVD, BlockSVD, Spec
from lrjax.decompose.spec import solve_covering
from lrjax.errors import LrjaxError, ShapeError, StatsError, message
from lrjax.formats import LowRank
from lrjax.formats.placed import placed
from lrjax.linalg import Info, Status
from lrjax.metrics import Frobenius, Metric
from lrjax.ops import densify
from lrjax.plan.batching import batches, grouped
from lrjax.plan.binding import Bound, bind, stacked
from lrjax.plan.planner import weight_stats
from lrjax.plan.record import Entry, Plan
from lrjax.trees import Tree


def compress(
    params: Tree, plan: Plan, stats: Stats | None = None, *, key: jax.Array | None = None
) -> Tree:
    """The parameters with every planned weight factored; `jit`-able with the plan static.

    Weights of one shape are solved in one batched call, at the largest rank among them, and cut to
    their own; so compilations grow with the number of distinct shapes, not of weights or ranks. A
    centred metric hands the mean's part to the bias: b' = b + E[x] (W - W').

    Args:
        params: dense parameters that the plan was made for; not changed.
        plan: what `lrjax.plan` returned.
        stats: the statistics that the plan's metrics need.
        key: for randomised solvers; the same key gives the same bits.

    Raises:
        ShapeError: the parameters are not those of the plan.
        StatsError: statistics are missing or misfit, or (outside `jit`) a solve is not finite.
    """
    return compress_with_info(params, plan, stats, key=key)[0]


def compress_with_info(
    params: Tree, plan: Plan, stats: Stats | None = None, *, key: jax.Array | None = None
) -> tuple[Tree, dict[str, Info]]:
    """Like `compress`, and what the solver said of each factored weight."""
    key = jax.random.key(0) if key is None else key
    leaves, _ = trees.flatten(params)
    jobs = [_job(entry, leaves, stats) for entry in plan.factored]
    solved: dict[str, _Solution] = {}
    for group in grouped(jobs, lambda job: job.key):
        for batch, real in batches(group, group[0].bound.bytes):
            for job, solution in _solve(batch, real, key):
                _check(job.entry, solution)
                solved[job.entry.path] = solution
    new = {path: solution.factors for path, solution in solved.items()}
    biases = _biases(solved, leaves, stats)
    for entry in plan.entries:
        if entry.shared in new:
            new[entry.path] = new[entry.shared]
            biases |= _shared_bias(entry, biases, stats)
    return trees.replace(params, new | biases), {e.path: solved[e.path].info for e in plan.factored}


@dataclasses.dataclass(frozen=True)
class _Job:
    """One weight to factor."""

    entry: Entry
    spec: Spec
    bound: Bound

    @property
    def key(self) -> Any:
        """Equal for jobs that one batched solve can do."""
        return self.spec.family, self.bound.key


@dataclasses.dataclass(frozen=True)
class _Solution:
    """Factors, the mean output that they lose, and what the solver said."""

    factors: Any
    shift: Any
    info: Info


def _job(entry: Entry, leaves: dict[str, Any], stats: Stats | None) -> _Job:
    leaf = leaves.get(entry.path)
    if leaf is None:
        got = "no such leaf"
    elif trees.is_weight_leaf(leaf):
        got = f"a weight that is factored already ({type(leaf).__name__})"
    elif tuple(leaf.shape) != entry.shape:
        got = f"shape {tuple(leaf.shape)}"
    else:
        assert entry.spec is not None
        seen = None if isinstance(entry.kind, Frobenius) else weight_stats(stats, entry.path)
        bound = bind(entry.path, leaf, entry.layout, entry.kind, seen)
        return _Job(entry, entry.spec, bound)
    raise ShapeError(
        message(
            path=entry.path,
            got=got,
            expected=f"a dense array of shape {entry.shape}",
            todo="Pass the parameters that the plan was made for.",
        )
    )


def _solve(batch: list[_Job], real: int, key: jax.Array) -> Iterator[tuple[_Job, _Solution]]:
    """The solution of each job, from one solve at a rank that covers all."""
    spec, shape = batch[0].spec, batch[0].bound.matrix.shape
    covering, ranks = spec.covering([job.spec for job in batch], shape)
    # The key depends on the kind of weight alone: no weight's bits hang on its neighbours'.
    key = jax.random.fold_in(key, zlib.crc32(repr((spec.family, shape)).encode()))
    w, metric = stacked([job.bound for job in batch])
    try:
        solved = _solve_jit(covering, w, metric, key, jnp.asarray(ranks))
    except LrjaxError as e:
        raise type(e)(f"{', '.join(job.entry.path for job in batch[:real])}: {e}") from e
    for i, job in enumerate(batch[:real]):
        factors, shift, info = jax.tree.map(lambda x: x[i], solved)  # noqa: B023
        yield job, _Solution(_cut(factors, job), shift, info)


@partial(jax.jit, static_argnums=0)
def _solve_jit(spec: Spec, w: jax.Array, metric: Metric, key: jax.Array, ranks: jax.Array):
    """Factors (cut to `ranks` by zeros), E[x] (W - W') and info of each weight."""
    factors, info = solve_covering(spec, w, ranks, metric=metric, key=key)
    shift = None
    if metric.mean is not None:
        rebuilt = densify(jax.tree.map(lambda x: x.astype(jnp.float32), factors))
        lost = w.astype(jnp.float32) - rebuilt
        shift = jnp.einsum("...m,...mn->...n", metric.mean, lost, precision="highest")
    return factors, shift, info


def _cut(factors: Any, job: _Job) -> Any:
    """A solution cut to the job's own ranks, in the dense weight's dims."""
    if isinstance(job.spec, SVD):
        rank = job.spec.rank
        factors = LowRank(factors.left[..., :rank], factors.right[..., :rank, :])
    if isinstance(job.spec, BlockSVD):
        factors = factors.trimmed(job.spec.block_ranks.tolist())
    try:
        return placed(factors, job.entry.layout, job.entry.shape)
    except ShapeError as e:
        raise ShapeError(f"{job.entry.path}: {e}") from e


def _biases(
    solved: dict[str, _Solution], leaves: dict[str, Any], stats: Stats | None
) -> dict[str, Any]:
    """Path -> b + E[x] (W - W') for the weights whose metric is centred (AFM)."""
    fixed: dict[str, Any] = {}
    for weight, solution in solved.items():
        path = _bias_path(stats, weight)
        if solution.shift is None or path not in leaves:
            continue
        bias = fixed.get(path, leaves[path])
        shift = jnp.reshape(solution.shift, bias.shape)
        fixed[path] = (bias.astype(jnp.float32) + shift).astype(bias.dtype)
    return fixed


def _bias_path(stats: Stats | None, path: str) -> str | None:
    return None if stats is None or path not in stats.usage else stats.usage[path].bias


def _shared_bias(entry: Entry, biases: dict[str, Any], stats: Stats | None) -> dict[str, Any]:
    """The bias of an alias, where it is its own leaf, follows that of the weight it shares."""
    lead, own = _bias_path(stats, entry.shared or ""), _bias_path(stats, entry.path)
    return {own: biases[lead]} if lead in biases and own is not None and own != lead else {}


def _check(entry: Entry, solution: _Solution) -> None:
    """Raise where a solve went wrong; under trace there is nothing to look at yet."""
    try:
        status = np.asarray(solution.info.status)
        leaves = jax.tree.leaves(solution.factors)
        finite = all(np.isfinite(np.asarray(x, np.float32)).all() for x in leaves)
    except jax.errors.TracerArrayConversionError:
        return
    if finite and not (status == Status.NON_FINITE).any():
        return
    raise StatsError(
        message(
            path=entry.path,
            got="factors that are not finite",
            expected="finite weights and statistics",
            todo="Look for NaN, infinities or overflow in both.",
        )
    )
