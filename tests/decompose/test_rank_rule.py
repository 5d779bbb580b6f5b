"""Rank rules: planted structure of every format is found again, by `plan`, without a budget."""

import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.compress import compress
from lrjax.decompose import (
    BLAST,
    CP,
    EVBMF,
    HODLR,
    NMF,
    SVD,
    BlockSVD,
    Energy,
    Kronecker,
    Monarch,
    SharedBasis,
    TensorTrain,
    Tucker,
    spec_from_json,
)
from lrjax.errors import RankError, RuleError, StatsError
from lrjax.formats import Layout
from lrjax.lift import Use, UseKind, WeightUse
from lrjax.ops import densify
from lrjax.plan import plan

BY = EVBMF(center=False)


def noisy(w, rng, share=0.02):
    return w + share * np.std(w) * rng.standard_normal(w.shape)


def matrix(rng):
    return rng.standard_normal((48, 4)) @ rng.standard_normal((4, 60))


def multilinear(rng):
    core, a, b, c = (rng.standard_normal(s) for s in ((3, 4, 5), (16, 3), (12, 4), (20, 5)))
    return np.einsum("pqr,ip,jq,kr->ijk", core, a, b, c).reshape(16 * 12, 20)


def train(rng):
    cores = (rng.standard_normal(s) for s in ((1, 24, 3), (3, 24, 4), (4, 24, 1)))
    x = np.einsum("aib,bjc,ckd->ijk", *cores).reshape(4, 6, 4, 6, 4, 6)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(64, 216)


def kronecker(rng):
    terms = zip(rng.standard_normal((3, 6, 10)), rng.standard_normal((3, 8, 6)), strict=True)
    return sum(np.kron(a, b) for a, b in terms)


def shared(rng):
    u, v = rng.standard_normal((24, 3)), rng.standard_normal((5, 30))
    return np.einsum("mr,srq,qn->smn", u, rng.standard_normal((4, 3, 5)), v)


def stacked(path, shape):
    one = Use(UseKind.DOT, (1,), (2,), (0,), "x", "", shape, "dot_general", "model.py:1 (f)")
    return {path: WeightUse(path, shape, "float32", Layout((1,), (2,)), (one,))}


def blocks(rng):
    ranks = np.array([[2, 4], [3, 1]])
    cell = lambda r: rng.standard_normal((32, r)) @ rng.standard_normal((r, 40))
    return np.block([[cell(r) for r in row] for row in ranks])


CASES = [
    ("svd", SVD(rank_by=BY), matrix, 4),
    ("nmf", NMF(rank_by=BY), matrix, 4),
    ("tucker", Tucker(rank_by=BY, modes=(16, 12, 20), smallest=1), multilinear, (3, 4, 5)),
    ("cp", CP(rank_by=BY, modes=(16, 12, 20)), multilinear, 5),
    ("train", TensorTrain(rank_by=BY, rows=(4, 4, 4), cols=(6, 6, 6)), train, (3, 4)),
    ("kronecker", Kronecker(rank_by=BY, shape=(6, 10)), kronecker, 3),
    ("shared", SharedBasis(rank_by=BY), shared, (3, 5)),
    ("blocks", BlockSVD(rank_by=BY, grid=(2, 2)), blocks, (2, 4, 3, 1)),
    ("blast", BLAST(rank_by=BY, grid=(2, 2)), matrix, 4),
    ("monarch", Monarch(rank_by=BY, grid=(4, 4)), matrix, 4),
    ("hodlr", HODLR(rank_by=BY, levels=1), blocks, (4,)),
]


@pytest.mark.parametrize(("name", "spec", "make", "want"), CASES, ids=[c[0] for c in CASES])
def test_every_format_finds_its_planted_ranks_in_noise(name, spec, make, want):
    rng = np.random.default_rng(0)
    w = noisy(make(rng), rng)
    size = lambda s: getattr(s, "ranks", None) if isinstance(s, BlockSVD | HODLR) else s.rank
    assert size(spec.ranked(w)) == want
    assert spec_from_json(spec.to_json()) == spec
    # a matrix and its noise in other units: the same
    assert size(spec.ranked(1e-6 * w)) == want


@pytest.mark.slow
def test_plan_needs_no_budget_and_says_who_chose():
    rng = np.random.default_rng(1)
    params = {
        "low": jnp.asarray(noisy(matrix(rng), rng), jnp.float32),
        "layers": jnp.asarray(noisy(shared(rng), rng), jnp.float32),
        "full": jnp.asarray(np.linalg.qr(rng.standard_normal((40, 40)))[0], jnp.float32),
    }
    rules = {"low": SVD(rank_by=EVBMF()), "layers": SharedBasis(rank_by=BY)}
    rules["full"] = SVD(rank_by=Energy(0.99))
    p = plan(params, rules, usage=stacked("layers", (4, 24, 30)))
    assert p["low"].spec.rank == 4
    assert p["low"].reason == "rank by its rule"
    assert p["layers"].spec.rank == (3, 5)
    assert p["full"].spec is None  # all of its directions count alike: no rank saves anything
    assert "dense" in p["full"].reason
    small = densify(compress(params, p))
    for name in ("low", "layers"):
        w = params[name]
        assert jnp.linalg.norm(w - small[name]) < 0.03 * jnp.linalg.norm(w)


def test_a_mean_counts_as_one_direction_and_noise_around_it_as_none():
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((50, 80))
    assert EVBMF(minimum=0).rank(noise) == 0
    assert EVBMF(minimum=0).rank(noise + 1.0) == 1
    assert EVBMF().rank(noise) == 1
    assert EVBMF().rank(np.zeros((5, 8))) == 1
    assert EVBMF(minimum=0).rank(np.zeros((5, 8))) == 0


def test_energy_is_the_least_rank_that_keeps_the_share():
    w = np.diag([4.0, 2.0, 1.0, 0.0])[:, :3]
    assert [Energy(k).rank(w) for k in (0.5, 16 / 21, 0.8, 1.0)] == [1, 1, 2, 3]
    with pytest.raises(RankError, match="keep"):
        Energy(0.0)


def test_mistakes_are_named():
    with pytest.raises(RuleError, match="EVBMF"):
        spec_from_json({"spec": "SVD", "rank_by": {"rule": "Guess"}})
    with pytest.raises((StatsError, RuleError)):
        plan({"w": jnp.full((8, 9), jnp.nan)}, {"w": SVD(rank_by=EVBMF())})
