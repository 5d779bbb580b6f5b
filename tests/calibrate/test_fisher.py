"""Squared gradients equal a loop over examples, whatever the chunk; labels and memory as stated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import io
from lrjax.calibrate import Drawn, Fisher, Observer, Probes, calibrate
from lrjax.calibrate.fisher import FisherObserver
from lrjax.errors import StatsError
from lrjax.formats.layout import Layout

T, D, H, O = 4, 5, 7, 3


def draw(rng, *shape):
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return {"w": draw(rng, D, H), "head": draw(rng, H, O), "bias": draw(rng, O)}


def apply(p, batch):
    """Tokens [n, T, D] to logits, by a sum over the tokens: each example has a gradient X'G."""
    return jnp.tanh(batch["x"] @ p["w"]).sum(1) @ p["head"] + p["bias"]


def loss(y, batch):
    chosen = jnp.take_along_axis(jax.nn.log_softmax(y), batch["label"][:, None], axis=1)
    return -jnp.mean(chosen)


def batch(seed, n):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(n, T, D)), jnp.float32)
    return {"x": x, "label": jnp.asarray(rng.integers(0, O, n))}


def by_hand(p, batches):
    """The chain rule for each example apart, in float64: sums over tokens inside, squares out."""
    p = {k: np.asarray(v, np.float64) for k, v in p.items()}
    found = {"w": 0.0, "head": 0.0}
    examples = [(x, y) for b in batches for x, y in zip(*map(np.asarray, b.values()), strict=True)]
    for x, label in ((np.asarray(x, np.float64), y) for x, y in examples):
        t = np.tanh(x @ p["w"])
        y = t.sum(0) @ p["head"] + p["bias"]
        g = np.exp(y) / np.exp(y).sum() - np.eye(O)[label]
        gradients = {"w": x.T @ ((1 - t**2) * (p["head"] @ g)), "head": np.outer(t.sum(0), g)}
        found = {k: found[k] + v**2 / len(examples) for k, v in gradients.items()}
    return found


@pytest.mark.parametrize("chunk", [4, 64])
def test_elements_equal_the_loop_over_examples(params, chunk):
    """Batches of 6 and 3 fit no chunk of 4; a chunk may exceed the batch."""
    batches = [batch(1, 6), batch(2, 3)]
    stats = calibrate(
        apply, params, batches, loss=loss, gradients=False, fisher=Fisher(chunk=chunk)
    )
    for path, want in by_hand(params, batches).items():
        got = stats.of(path).fisher
        assert got.count == 9
        assert (got.elements, got.labels) == (True, "given")
        np.testing.assert_allclose(got.mean, want, rtol=2e-4, atol=1e-7)
    assert stats.outputs == {}


def test_rows_are_the_elements_sums_and_survive_merging_and_the_disk(params, tmp_path):
    batches = [batch(1, 6), batch(2, 3)]
    run = lambda b, **how: calibrate(apply, params, b, loss=loss, gradients=False, **how)
    rows = Fisher(elements=False)
    stats = run(batches, fisher=rows, magnitudes=True)
    for path, want in by_hand(params, batches).items():
        assert stats.of(path).fisher.mean.shape == (len(want),)
        np.testing.assert_allclose(stats.of(path).fisher.rows, want.sum(1), rtol=2e-4)
    size = np.abs(np.concatenate([b["x"] for b in batches])).mean((0, 1))
    np.testing.assert_allclose(stats.of("w").rows.magnitude, size, rtol=1e-5)
    one, two = (run([b], fisher=rows, magnitudes=True) for b in batches)
    for x, y in zip(jax.tree.leaves(one + two), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    io.save_stats(tmp_path / "s", stats)
    back = io.load_stats(tmp_path / "s")
    assert back.digest() == stats.digest() != one.digest()
    assert jax.tree.structure(back) == jax.tree.structure(stats)
    assert "row Fisher (given labels)" in str(back)
    with pytest.raises(StatsError, match="two different"):
        _ = dataclasses.replace(one, fisher={}) + one


def test_nothing_is_gathered_that_is_not_asked_for(params):
    stats = calibrate(apply, params, [batch(1, 6)], gradients=False, fisher=None)
    assert stats.fisher == {}
    assert stats.of("w").fisher is None
    assert stats.of("w").rows.magnitude is None
    some = calibrate(
        apply, params, [batch(1, 6)], loss=loss, gradients=False, select=["head"], fisher=Fisher()
    )
    assert list(some.fisher) == ["head"]


def test_drawn_labels_give_the_true_fisher_information():
    """Of a softmax layer: E_y[(p - y)_j^2] x_i^2 = p_j (1 - p_j) x_i^2, not that of the labels."""
    p = {"w": draw(np.random.default_rng(0), D, O)}
    x = jnp.asarray(np.random.default_rng(1).normal(size=(64, D)), jnp.float32)
    given = {"x": x, "label": jnp.zeros(64, int)}
    again = lambda key, y, b: b | {"label": jax.random.categorical(key, y)}
    run = lambda seed: calibrate(
        lambda p, b: b["x"] @ p["w"],
        p,
        [given],
        loss=loss,
        gradients=False,
        fisher=Fisher(labels=Drawn(again, count=100, seed=seed), chunk=32),
    )
    first = run(0)
    prob = np.asarray(jax.nn.softmax(x @ p["w"]))
    want = np.einsum("ni,nj->ij", np.asarray(x) ** 2, prob * (1 - prob)) / 64
    np.testing.assert_allclose(first.of("w").fisher.mean, want, rtol=0.1)
    assert first.of("w").fisher.labels == "drawn"
    assert first.digest() != run(1).digest()


def test_probes_give_the_diagonal_of_gauss_newton_without_a_loss(params):
    """Of a linear layer: E[(x_i r_j)^2] = E[x_i^2]; integer outputs are left out."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(50, D)), jnp.float32)
    request = Fisher(labels=Probes(count=8, law="rademacher"))
    fn = lambda p, x: (x @ p["w"], jnp.arange(len(x)))
    stats = calibrate(fn, {"w": params["w"]}, [x], gradients=False, fisher=request)
    want = np.broadcast_to(np.mean(np.asarray(x) ** 2, 0)[:, None], (D, H))
    np.testing.assert_allclose(stats.of("w").fisher.mean, want, rtol=1e-4)
    with pytest.raises(StatsError, match="given labels, without a loss"):
        calibrate(fn, {"w": params["w"]}, [x], fisher=Fisher())


def test_a_tied_table_has_one_gradient_and_padded_examples_do_not_count():
    """Lookup and head of one table, stacked layers in a scan, against jax.grad for each example."""
    rng = np.random.default_rng(0)
    p = {"table": draw(rng, 6, D), "layers": draw(rng, 2, D, D)}

    def tied(p, b):
        h = p["table"][b["ids"]]
        h, _ = jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), h, p["layers"])
        return h @ p["table"].T

    def own(y, b):
        return jnp.sum(jnp.where(b["mask"][..., None], y, 0) ** 2) / b["mask"].sum()

    ids = jnp.asarray(rng.integers(0, 6, (4, 3)))
    mask = jnp.asarray([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    whole = {"ids": ids, "mask": mask}
    stats = calibrate(
        tied,
        p,
        [whole],
        loss=own,
        gradients=False,
        mask=lambda b: b["mask"],
        fisher=Fisher(chunk=3),
    )
    single = [jax.tree.map(lambda x, i=i: x[i : i + 1], whole) for i in range(3)]
    each = [jax.grad(lambda p, b: own(tied(p, b), b))(p, b) for b in single]
    for path in p:
        want = sum(np.asarray(g[path], np.float64) ** 2 for g in each) / 3
        got = stats.of(path).fisher
        assert got.count == 3
        np.testing.assert_allclose(got.mean, want, rtol=1e-3, atol=1e-6)


def test_memory_hangs_on_the_chunk_and_not_on_the_batch():
    """At most chunk + 2 copies of the weights: never a gradient for every example."""
    p = {"w": jnp.ones((256, 192)), "v": jnp.ones((192, 128))}
    fn = lambda p, b: jnp.tanh(b @ p["w"]) @ p["v"]
    layouts = dict.fromkeys(p, Layout((0,), (1,)))
    own = lambda y, b: jnp.mean(y**2)
    weights = sum(w.nbytes for w in p.values())

    def bytes_needed(examples, chunk):
        observe = FisherObserver(fn, Fisher(chunk=chunk), own, None, layouts, {})
        compiled = jax.jit(observe).lower(p, jnp.ones((examples, 256)), jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for chunk in (1, 8):
        small, large = (bytes_needed(n, chunk) for n in (16, 256))
        assert large < 1.05 * small + 2**16
        assert large < (chunk + 2.5) * weights
    assert Observer.__dataclass_fields__["fisher"].default is None
