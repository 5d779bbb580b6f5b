"""Banded tables: every band its own optimum, ranks by loss a parameter, and more rows later."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax.decompose import Banded, spec_from_json
from lrjax.decompose.grow import grow
from lrjax.errors import RankError, ShapeError
from lrjax.formats import Banded as BandedWeight
from lrjax.formats import LowRank
from lrjax.metrics import Diagonal, Metric
from tests.formats.banded import EDGES
from tests.laws import close, values

V, N = 96, 20
RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.standard_normal((V, N)) @ np.diag(0.8 ** np.arange(N)), jnp.float32)
COUNTS = jnp.asarray(RNG.permutation(1000 / (1 + np.arange(V))), jnp.float32)
RANKS, SPEC = (6, 5, 3), Banded((6, 5, 3), count=3, floor=0.0)


def truncated(x, rank):
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


@pytest.fixture(scope="module")
def solved():
    return lr.solve(SPEC, TABLE, metric=Metric(rows=Diagonal(COUNTS)))


def test_each_band_is_the_optimum_of_its_words(solved):
    found, info = solved
    order = np.argsort(-np.asarray(COUNTS, np.float64), kind="stable")
    want, lost = np.zeros((V, N)), 0.0
    assert found.sizes == SPEC.sizes(V) == (6, 18, 72)
    assert found.rank == RANKS
    assert found.bands[0].shape == (6, N)  # six words of full rank are kept as they are
    for words, rank in zip(np.split(order, [6, 24]), RANKS, strict=True):
        weight = np.sqrt(np.asarray(COUNTS, np.float64)[words])[:, None]
        own = np.asarray(TABLE, np.float64)[words] * weight
        want[words] = truncated(own, rank) / weight
        lost += np.sum((own - truncated(own, rank)) ** 2)
    close(found, want, 1e-4)
    np.testing.assert_allclose(info.residual, np.sqrt(lost), rtol=1e-4)
    assert found.validate() is found


def test_the_plan_gives_frequent_words_more_rank_and_beats_one_basis():
    """Frequent words fill the space, rare ones a corner of it."""
    counts = np.sort(np.asarray(COUNTS, np.float64))[::-1]
    corner = RNG.standard_normal((V, 2)) @ RNG.standard_normal((2, N))
    frequent = np.arange(V)[:, None] < 24
    table = np.where(frequent, RNG.standard_normal((V, N)), corner) + 0.1 * np.asarray(TABLE)
    shuffled = RNG.permutation(V)
    params = {"embedding": jnp.asarray(table[shuffled], jnp.float32)}
    ids = RNG.choice(V, 4000, p=counts[shuffled] / counts.sum())
    stats = lr.calibrate(lambda p, ids: p["embedding"][ids], params, [jnp.asarray(ids)])
    known = {"stats": stats, "budget": lr.Budget(keep=0.5), "metric": lr.metrics.Input()}
    plan = lr.plan(params, {"embedding": [lr.SVD(), Banded(count=2)]}, **known)
    (entry,) = plan.factored
    banded = lr.compress(params, plan, stats)["embedding"]
    assert isinstance(entry.spec, Banded)
    assert banded.rank == entry.spec.rank
    assert lr.cost(banded).params == entry.params <= 0.5 * V * N
    row = lr.report(params, {"embedding": banded}, stats, plan)["embedding"]
    assert row.flops == entry.flops
    assert banded.rank[0] > 3 * banded.rank[1]
    assert lr.Plan.from_json(plan.to_json()) == plan


def test_a_lookup_and_a_tied_head_never_form_the_table(solved):
    table, ids = solved[0], jnp.array([[0, 5, 95], [7, 7, 50]])
    model = lr.zoo.Embed(V, N)

    def tied(table, ids):
        rows = model.apply({"params": {"embedding": table}}, ids)
        return rows, model.apply({"params": {"embedding": table}}, rows, method="attend")

    jaxpr = jax.make_jaxpr(tied)(table, ids)
    assert all(shape[-2:] not in {(V, N), (N, V)} for shape in values(jaxpr.jaxpr))
    assert max(np.prod(s) for s in values(jaxpr.jaxpr)) <= ids.size * V
    own = lr.lift(lambda w, ids: (w[ids], w[ids] @ w.T))  # any model's own lookup
    (rows, scores), lifted = jax.jit(lambda w: (tied(w, ids), own(w, ids)))(table)
    dense = np.asarray(table.densify())
    np.testing.assert_allclose(lifted[0], rows, atol=1e-6)
    np.testing.assert_allclose(lifted[1], scores, atol=1e-5)
    np.testing.assert_allclose(rows, dense[np.asarray(ids)], atol=1e-5)
    np.testing.assert_allclose(scores, dense[np.asarray(ids)] @ dense.T, atol=1e-4)


def test_large_tables_keep_their_order_in_bfloat16():
    weight = EDGES[1]()
    assert weight.index.shape == (340, 2)
    half = weight.astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(half.place), np.asarray(weight.place))
    half.validate()
    moved = BandedWeight(weight.bands, weight.index + 0.25)
    with pytest.raises(ShapeError, match="an index that was moved"):
        moved.validate()


def test_wrong_sizes_are_refused_and_specs_come_back():
    for spec, words in ((Banded(), "without ranks"), (Banded((3, 3)), r"\(3, 3\)")):
        with pytest.raises(RankError, match=words):
            lr.solve(spec, TABLE)
    with pytest.raises(ShapeError, match="9 bands for 4 rows"):
        Banded(count=9).sizes(4)
    assert spec_from_json(SPEC.to_json()) == SPEC
    assert sum(Banded(count=5).sizes(30522)) == 30522


def low(table=TABLE, rank=6):
    return LowRank.from_dense(table, rank)


GROWN = {
    "low rank": low,
    "banded": lambda: lr.solve(SPEC, TABLE)[0],
    "tokens": lambda: lr.solve(lr.TokenTrain((3,), (4, 5)), TABLE)[0],
    "train": lambda: lr.solve(lr.TensorTrain(4, rows=(8, 12), cols=(4, 5)), TABLE)[0],
    "dense": lambda: TABLE,
}


SLOW = ("tokens", "train", "dense")


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=pytest.mark.slow if f in SLOW else ()) for f in GROWN]
)
def test_new_rows_leave_the_old_ones_alone(form):
    table = GROWN[form]()
    fresh = jnp.asarray(RNG.standard_normal((5, N)), jnp.float32)
    held = lr.ops.take(table, jnp.array([3, 90, 41]))  # what the format holds, it can hold again
    rows = jnp.concatenate([fresh[:2], held, fresh[2:]])
    grown, error = grow(table, rows)
    assert grown.shape == (V + 8, N)
    assert type(grown) is (BandedWeight if form == "train" else type(table))
    look = jax.jit(lambda w: lr.ops.take(w, jnp.arange(V)))
    np.testing.assert_array_equal(look(grown), look(table))
    new = np.asarray(lr.ops.take(grown, jnp.arange(V, V + 8)))
    lost = np.linalg.norm(new - rows, axis=1) / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(error, lost, atol=1e-5)
    if form == "banded":  # the rows join factored bands, or the dense one where they are told to
        assert grown.sizes[0] == 6
        assert grow(table, fresh, band=0).error.max() < 1e-6
        with pytest.raises(ShapeError, match="band 7"):
            grow(table, fresh, band=7)
    else:
        assert error[2:5].max() < 1e-3
    if lr.is_factored(grown):
        grown.validate()
    if form != "train":
        return
    again, _ = grow(grown, fresh)  # the rows behind the train are a band that takes more
    assert again.sizes == (V, 13)


def test_a_low_rank_table_projects_new_rows_on_its_basis():
    table, rows = low(), jnp.asarray(RNG.standard_normal((4, N)), jnp.float32)
    grown, error = grow(table, rows)
    basis = np.linalg.svd(np.asarray(table.right, np.float64), full_matrices=False)[2]
    np.testing.assert_allclose(
        lr.ops.take(grown, np.arange(V, V + 4)), rows @ basis.T @ basis, atol=1e-4
    )
    assert (np.asarray(error) > 0).all()
    with pytest.raises(ShapeError, match=r"\(4, 7\)"):
        grow(table, rows[:, :7])
    with pytest.raises(ShapeError, match="finite"):
        grow(table, rows * jnp.nan)
