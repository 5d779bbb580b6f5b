"""Word tables in every format, through a model whose head is tied to its table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax.decompose import Banded
from lrjax.decompose.grow import grow
from lrjax.zoo import LSTMConfig, Recurrent
from tests.laws import values
from tests.zoo.test_goldens import quick

V, H = 97, 24
MODEL = Recurrent(
    LSTMConfig(
        vocab_size=V, embedding_size=H, hidden_size=H, num_layers=1, tie_word_embeddings=True
    )
)
IDS = jax.random.randint(jax.random.key(0), (2, 5), 0, V)
PARAMS = jax.jit(MODEL.init)(jax.random.key(1), IDS)["params"]

# Format, and its parameters by hand.
TABLES = {
    "matrix": (lr.SVD(6), 6 * (V + H)),
    "bands": (Banded((9, 4), count=2, ratio=4), 9 * (24 + H) + 4 * (73 + H) + V),
    # 97 rows in the digits 7 x 14, 24 columns in 4 x 6
    "train": (lr.TensorTrain(5, rows=(7, 14), cols=(4, 6)), 7 * 4 * 5 + 5 * 14 * 6),
    # TensorGPT (arXiv:2307.00526): a train a token
    "tokens": (lr.TokenTrain((2,), (4, 6)), V * (4 * 2 + 2 * 6)),
    "kronecker": (lr.Kronecker(2, shape=(1, 3)), 2 * (V * 8 + 3)),
}


SLOW = ("matrix", "bands", "tokens", "train")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in TABLES]
)
def test_a_tied_model_runs_from_the_factors_of_its_table(name):
    spec, count = TABLES[name]
    plan = lr.plan(PARAMS, {"embed/embedding": spec})
    small = lr.compress(PARAMS, plan)
    table = small["embed"]["embedding"]
    assert lr.cost(table).params == sum(x.size for x in jax.tree.leaves(table)) == count
    apply = lambda params: MODEL.apply({"params": params}, IDS)
    shapes = set(values(jax.make_jaxpr(apply)(small).jaxpr))
    dense = lambda s: np.prod(s) >= V * H and np.prod(s) % (V * H) == 0
    assert not [s for s in shapes if dense(s)]
    got, want = quick(lambda *trees: [apply(p) for p in trees])(small, lr.densify(small))
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.slow
def test_a_vocabulary_grows_and_the_old_logits_stay():
    plan = lr.plan(PARAMS, {"embed/embedding": TABLES["matrix"][0]})
    small = lr.compress(PARAMS, plan)
    rows = jax.random.normal(jax.random.key(2), (3, H))
    table, error = grow(small["embed"]["embedding"], rows)
    assert error.shape == (3,)
    bigger = MODEL.clone(
        config=LSTMConfig.from_json({**MODEL.config.to_json(), "vocab_size": V + 3})
    )
    bias = jnp.pad(small["bias"], (0, 3))
    grown = {**small, "embed": {"embedding": table}, "bias": bias}
    before, after = (
        quick(lambda p, m=m: m.apply({"params": p}, IDS))(p)
        for m, p in ((MODEL, small), (bigger, grown))
    )
    np.testing.assert_allclose(after[..., :V], before, atol=1e-6)
    logits = bigger.apply({"params": grown}, jnp.array([[V, V + 2, 1]]))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("spec", "shape", "each"),
    [
        (lr.SVD(128), (30000, 768), None),  # ALBERT (arXiv:1909.11942): 23.0 M to 3.9 M
        (lr.TokenTrain((4, 4, 4), (4, 8, 4, 6)), (50257, 768), 232),  # TensorGPT's 3.31 x
        (lr.TokenTrain((6,), (16, 48)), (50257, 768), 384),  # and its 2.0 x
    ],
)
def test_published_sizes(spec, shape, each):
    layout, tails = lr.formats.Layout((0,), (1,)), np.zeros(768)
    params = int(spec.options(shape, np.float32, layout, tails[-2:] if each else tails).params[0])
    assert params == (3_938_304 if each is None else shape[0] * each)
    ratio = shape[0] * shape[1] / params
    assert round(ratio, 2) == (5.85 if each is None else {232: 3.31, 384: 2.0}[each])
