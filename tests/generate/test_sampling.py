"""Sampling against distributions that NumPy cuts by sorting; options out of range are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.errors import GenerationError
from lrjax.generate import Greedy, Sample

VOCAB, DRAWS = 11, 20_000
LOGITS = np.random.default_rng(0).normal(scale=1.5, size=VOCAB).astype(np.float32)

draw = jax.jit(lambda rule, logits, keys: rule(jnp.broadcast_to(logits, (DRAWS, VOCAB)), keys))


def oracle(temperature, top_k, top_p):
    """The distribution, cut token by token, in float64."""
    p = np.exp(LOGITS.astype(np.float64) / temperature)
    order = [int(i) for i in np.argsort(-p)][: top_k or VOCAB]
    p /= p[order].sum()
    kept, mass = [], 0.0
    for token in order:
        if top_p is not None and mass >= top_p:
            break
        kept.append(token)
        mass += p[token]
    out = np.zeros(VOCAB)
    out[kept] = p[kept] / p[kept].sum()
    return out


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.7, 4, None), (1.3, None, 0.8), (0.9, 6, 0.75), (1.0, 99, 1.0)],
)
def test_draws_follow_the_distribution_that_is_cut(temperature, top_k, top_p):
    expected = oracle(temperature, top_k, top_p)
    tokens = draw(
        Sample(temperature, top_k, top_p), LOGITS, jax.random.split(jax.random.key(1), DRAWS)
    )
    seen = np.bincount(np.asarray(tokens), minlength=VOCAB) / DRAWS
    assert not seen[expected == 0].any()
    np.testing.assert_allclose(seen, expected, atol=5 * 0.5 / DRAWS**0.5)


def test_a_share_that_the_likeliest_token_has_leaves_that_token():
    keys = jax.random.split(jax.random.key(0), DRAWS)
    assert (np.asarray(draw(Sample(1.0, None, 1e-9), LOGITS, keys)) == LOGITS.argmax()).all()


def test_greedy_takes_the_first_of_the_likeliest():
    logits = jnp.asarray([[0.0, 2.0, 2.0], [3.0, 1.0, 3.0]])
    np.testing.assert_array_equal(Greedy()(logits, jax.random.split(jax.random.key(0))), [1, 0])


def test_other_temperatures_and_shares_compile_nothing_new():
    keys, before = jax.random.split(jax.random.key(1), DRAWS), draw._cache_size()
    draw(Sample(0.5, None, 0.31), LOGITS, keys)
    draw(Sample(0.6, None, 0.32), LOGITS, keys)
    assert draw._cache_size() <= before + 1


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Sample(0.0), "temperature: got 0.0"),
        (Sample(-1.0), "temperature: got -1.0"),
        (Sample(float("nan")), "temperature: got nan"),
        (Sample(top_k=0), "top_k: got 0"),
        (Sample(top_p=0.0), "top_p: got 0.0"),
        (Sample(top_p=1.1), "top_p: got 1.1"),
    ],
)
def test_options_out_of_range_are_refused(rule, said):
    with pytest.raises(GenerationError, match=said):
        rule.check()
