"""The NMF solver: accelerated HALS for non-negative and semi-non-negative factors."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.nmf.hals import passes, stationarity
from lrjax.decompose.nmf.start import nndsvda, semi_start
from lrjax.errors import RuleError, message
from lrjax.formats.low_rank import LowRank
from lrjax.linalg.driver import iterate
from lrjax.linalg.info import Info, Status
from lrjax.linalg.stack import dot, dot_t, over_stack, working
from lrjax.linalg.tensor import CANCELS, squares, unit_of
from lrjax.linalg.truncated import check_rank, matrix_shape
from lrjax.linalg.whitening import solve_ridge

PASS_SHARE = 0.25
"""Passes over the components for each product with the data, times the ratio of their costs: a
pass is r^2 m multiply-adds in matrix-vector form, the product m n r in the four times faster
matrix form."""

SHORT = 128
"""Entries of a component up to which a pass costs its launches, not arithmetic, and 4 are enough.
Digits, 1797 x 64, r = 16: with 4 or 8 passes over the 64 columns 22 iterations reach the loss of 50
of coordinate descent, 39 or 38 that of 200."""

SMALL = 512
"""Sides up to which an iteration takes a fraction of a millisecond, and their number counts."""

MOST_PASSES = 16
"""Passes for small matrices. Uniform planted parts (300 x 200, r = 10), six seeds, error after 200
iterations: 6e-6 to 3e-3, four within 1e-3; with 6 and 8 passes and no search 2e-3 to 5e-3."""

ITERATIONS_PER_CHECK = 5
"""Iterations between evaluations of the true residual, which cost half an iteration."""

DEAD = 1e-6
"""Entries below this share of a factor's largest count as zero in the sparsity."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NMFInfo(Info):
    """Info, with the KKT residual and the sparsity of the factors.

    Attributes:
        kkt: usable gradient relative to the gradient at zero factors; 0 at a stationary point.
        kkt_start: the same at the start.
        sparsity: share of zero entries of the non-negative factors.
    """

    kkt: Any = None
    kkt_start: Any = None
    sparsity: Any = None


class _Pair(NamedTuple):
    """Factors [r, m] and [r, n], the extrapolated ones, and the step of extrapolation.

    `image` is left X [r, n], which the last update of `right` needed and the residual needs again;
    None where iterates are extrapolated, and that update saw another left factor.
    """

    left: Array
    right: Array
    left_ahead: Array
    right_ahead: Array
    image: Array | None
    best: Array
    beta: Array


def nmf(
    w: Float[Array, "*S m n"],
    rank: int,
    *,
    semi: bool = False,
    weights: Float[Array, "*S m n"] | None = None,
    l1: float | Array = 0.0,
    key: Array | None = None,
    iterations: int | Array = 200,
    tol: float | Array = 1e-4,
) -> tuple[LowRank, NMFInfo]:
    """W near left @ right, right >= 0 and, unless `semi`, left >= 0.

    min 1/2 |F^.5 * (W - L R)|^2 + l1 (|L|_1 + |R|_1), L signed and unpenalised in the semi form.
    Extrapolated HALS (Ang and Gillis, arXiv:1805.06604) from NNDSVDa; a weighted problem is
    majorised by W~ = L R + F / max F * (W - L R). Of a W with negative entries the best
    non-negative product is found, which leaves at least the norm of those entries: the semi form
    is meant for it.

    Args:
      w: matrices with stack axes.
      rank: number of components.
      semi: let `left` be signed.
      weights: F >= 0, one for each entry; None is all ones.
      l1: penalty, in the unit in which W has mean square one.
      key: randomness of the SVD that starts; the same key gives the same bits.
      iterations: most iterations, each of two products with W and a few passes.
      tol: relative decrease of the objective in five iterations at which it has settled.

    Raises:
      RankError: rank below 1 or above min(m, n).
      RuleError: W has negative entries and `semi` is not set; under `jit` that is not looked at.
    """
    check_rank(rank, matrix_shape(w))
    if not semi and _has_negative(w):
        todo = "Use the semi form (NMF(semi=True)); clipping or abs() would change the weight."
        got = f"a weight with {int(jnp.sum(w < 0))} negative entries"
        raise RuleError(message(got=got, expected="non-negative entries", todo=todo))
    key = jax.random.key(0) if key is None else key
    w = jax.lax.stop_gradient(working(w))
    return _solve(w, weights, l1, key, iterations, tol, rank, semi)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _solve(w, weights, l1, key, iterations, tol, rank, semi):
    def single(w: Array, weights: Array | None) -> tuple[LowRank, NMFInfo]:
        to_one, energy, finite = unit_of(w)
        if weights is not None:
            finite &= jnp.all(jnp.isfinite(weights))
            weights = jnp.where(finite, weights, 0)
        mean = jnp.sqrt(energy / w.size)
        unit = jnp.where(finite & (mean > 0), mean, 1) / to_one
        x = jnp.where(finite, w * (1 / unit), 0)
        top = jnp.ones(()) if weights is None else jnp.maximum(jnp.max(weights), 1e-30)
        f = None if weights is None else weights / top
        problem = _Problem(x, squares(x), f, jnp.asarray(l1, x.dtype), semi)
        pair = problem.start(rank, key)
        begun = problem.kkt(pair.left, pair.right, pair.image)
        steps = -(-iterations // ITERATIONS_PER_CHECK)
        step = lambda pair, i: problem.step(pair, iterations - i * ITERATIONS_PER_CHECK)
        pair, progress = iterate(step, pair, pair.best, steps=steps, tol=tol, patience=3)
        left, right = pair.left, pair.right
        missed = jnp.sqrt(problem.missed(left, right, pair.image) * top)
        size = jnp.where(finite, unit, jnp.nan)
        ended = jnp.where(progress.converged, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
        info = NMFInfo(
            residual=missed * size,
            iterations=jnp.minimum(progress.steps * ITERATIONS_PER_CHECK, iterations),
            status=jnp.where(finite, ended, int(Status.NON_FINITE)).astype(jnp.int32),
            kkt=problem.kkt(left, right, pair.image),
            kkt_start=begun,
            sparsity=_sparsity((right,) if semi else (left, right)),
        )
        root = jnp.sqrt(jnp.where(finite, unit, 0))
        return LowRank(left.T * root, right * root), info

    return over_stack(single, [w, weights], core=2)


class _Problem(NamedTuple):
    """One problem: data of mean square one, |X|^2, weights at most one, penalty, and the form."""

    x: Array
    energy: Array
    weights: Array | None
    l1: Array
    semi: bool

    @property
    def small(self) -> bool:
        """Whether iterations are so short that their number counts."""
        return max(self.x.shape) <= SMALL

    @property
    def extrapolates(self) -> bool:
        """Whether iterates are extrapolated: not where several passes make each step exact enough.

        Planted 3072 x 768, r = 64, residual after 5 / 10 / 20 iterations from one start: 155 / 95 /
        42 without, 181 / 156 / 58 with extrapolation.
        """
        return self.small or self.semi or self.weights is not None

    def start(self, rank: int, key: Array) -> _Pair:
        """NNDSVDa, or the shifted singular vectors of the semi form."""
        if self.semi:
            right = semi_start(self.x, rank, key)
            left = solve_ridge(dot(right, right.T), dot_t(right, self.x))
        else:
            left, right = nndsvda(self.x, rank, key, near=not self.small)
        image = None if self.extrapolates else dot(left, self.x)
        beta = jnp.float32(0.5 if self.extrapolates else 0.0)
        return _Pair(left, right, left, right, image, self.objective(left, right, image), beta)

    def objective(self, left: Array, right: Array, image: Array | None = None) -> Array:
        """The objective, from the true residual."""
        return self.missed(left, right, image) / 2 + self.penalty(left, right)

    def missed(self, left: Array, right: Array, image: Array | None = None) -> Array:
        """The squared residual; while digits are left, from the image LX that an update needs too.

        |X - L'R|^2 = |X|^2 - 2 <LX, R> + <L L', R R'>.
        """

        def direct() -> Array:
            missed = (self.x - dot(left.T, right)) ** 2
            return jnp.sum(missed if self.weights is None else missed * self.weights)

        if self.weights is not None or self.small:
            return direct()
        cross = jnp.sum((dot(left, self.x) if image is None else image) * right)
        cheap = self.energy - 2 * cross + jnp.sum(dot(left, left.T) * dot(right, right.T))
        return jax.lax.cond(cheap > CANCELS * self.energy, lambda: cheap, direct)

    def penalty(self, left: Array, right: Array) -> Array:
        """l1 times the sum of the non-negative factors."""
        return self.l1 * (jnp.sum(right) + (0.0 if self.semi else jnp.sum(left)))

    def data(self, left: Array, right: Array) -> Array:
        """The matrix to fit next: W, or the majoriser's at the current product."""
        if self.weights is None:
            return self.x
        product = dot(left.T, right)
        return product + self.weights * (self.x - product)

    def kkt(self, left: Array, right: Array, image: Array | None = None) -> Array:
        """The usable gradient of both factors, relative to the data's."""
        x = self.x if self.weights is None else self.x * self.weights
        targets = dot_t(right, x), dot(left, x) if image is None else image
        if self.weights is None:
            models = dot(dot(right, right.T), left), dot(dot(left, left.T), right)
        else:
            product = dot(left.T, right) * self.weights
            models = dot(right, product.T), dot(left, product)
        free = jnp.zeros(()) if self.semi else self.l1
        gradients = models[0] - targets[0] + free, models[1] - targets[1] + self.l1
        size = jnp.hypot(*map(jnp.linalg.norm, targets))
        parts = [
            stationarity(left, gradients[0], signed=self.semi),
            stationarity(right, gradients[1], signed=False),
        ]
        return jnp.hypot(*parts) / jnp.where(size > 0, size, 1)

    def step(self, pair: _Pair, left: Array) -> tuple[_Pair, Array]:
        """A few iterations, at most those left.

        If they end higher, the next ones restart from here more carefully.
        """
        one = lambda _, p: self._iteration(p)
        count = jnp.minimum(left, ITERATIONS_PER_CHECK)
        new = jax.lax.fori_loop(0, count, one, pair)
        if self.small:
            new, value = self.search(pair, new)
        else:
            value = self.objective(new.left, new.right, new.image)
        rose = ~(value <= pair.best)
        restart = pair._replace(left_ahead=pair.left, right_ahead=pair.right, beta=pair.beta * 0.5)
        ahead = new._replace(best=value, beta=jnp.minimum(1.2 * pair.beta, 0.98))
        pair = jax.tree.map(lambda a, b: jnp.where(rose, a, b), restart, ahead)
        return pair, pair.best

    def search(self, old: _Pair, new: _Pair) -> tuple[_Pair, Array]:
        """The new pair, or one further along its move if that is better, and its objective.

        Collinear parts are a swamp: iterations creep along one direction, in which the residual is
        E - s B - s^2 C exactly. The best step s, up to 200, is tried whole and in its quarter,
        clipped at zero; see `MOST_PASSES` for what it brings.
        """
        left, right = new.left - old.left, new.right - old.right
        root = 1.0 if self.weights is None else jnp.sqrt(self.weights)
        parts = (
            self.x - dot(new.left.T, new.right),
            -dot(left.T, new.right) - dot(new.left.T, right),
            -dot(left.T, right),
        )
        stacked = jnp.stack([(root * part).ravel() for part in parts])
        steps = jnp.concatenate([jnp.zeros(1), jnp.geomspace(0.5, 200.0, 24)])
        powers = steps[:, None] ** jnp.arange(3)
        squares = jnp.sum(dot(powers, dot(stacked, stacked.T)) * powers, axis=1)
        step = steps[jnp.argmin(squares)]
        clip = lambda a: jnp.maximum(a, 0)
        penalty = self.penalty(new.left, new.right)
        value = jnp.sum((root * parts[0]) ** 2) / 2 + penalty
        for share in (1.0, 0.25):
            far = new.left + share * step * left, clip(new.right + share * step * right)
            far = (far[0] if self.semi else clip(far[0]), far[1])
            there = self.objective(*far)
            better = there < value
            moved = new._replace(left=far[0], right=far[1], left_ahead=far[0], right_ahead=far[1])
            new = jax.tree.map(lambda a, b, better=better: jnp.where(better, a, b), moved, new)
            value = jnp.where(better, there, value)
        return new, value

    def _iteration(self, p: _Pair) -> _Pair:
        x = self.data(p.left_ahead, p.right_ahead)
        gram, target = dot(p.right_ahead, p.right_ahead.T), dot_t(p.right_ahead, x)
        if self.semi:
            left = solve_ridge(gram, target)
            left_ahead = left + p.beta * (left - p.left)
        else:
            left = passes(p.left_ahead, target - self.l1, gram, _passes(p, *x.shape))
            left_ahead = jnp.maximum(left + p.beta * (left - p.left), 0)
        x = self.data(left_ahead, p.right_ahead)
        gram, target = dot(left_ahead, left_ahead.T), dot(left_ahead, x)
        right = passes(p.right_ahead, target - self.l1, gram, _passes(p, *x.shape[::-1]))
        right_ahead = jnp.maximum(right + p.beta * (right - p.right), 0)
        image = None if self.extrapolates else target
        return _Pair(left, right, left_ahead, right_ahead, image, p.best, p.beta)


def _passes(p: _Pair, length: int, size: int) -> int:
    """Passes for components of a length whose data product sums over `size` entries.

    4 to 8; 16 where the problem is small.
    """
    if max(length, size) <= SMALL:
        return MOST_PASSES
    most = 4 if length <= SHORT else 8
    return min(max(1 + round(PASS_SHARE * size / p.left.shape[0]), 4), most)


def _has_negative(w: Array) -> bool:
    try:
        return bool(jnp.any(w < 0))
    except jax.errors.TracerBoolConversionError:
        return False


def _sparsity(factors: tuple[Array, ...]) -> Array:
    zero = jnp.stack([jnp.sum(f <= DEAD * jnp.max(f)) for f in factors])
    return jnp.sum(zero) / sum(f.size for f in factors)
