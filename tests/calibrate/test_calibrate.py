"""Calibration equals a numpy loop over all tokens; streams, merges, masks, and fails loudly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lrjax.calibrate import Observer, Probes, Stats, calibrate, merge
from lrjax.calibrate.reduce import Reducer
from lrjax.errors import StatsError
from lrjax.lift.taps import with_taps

D, H, O, V = 5, 7, 3, 11


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    draw = lambda *s: jnp.asarray(rng.normal(size=s) / np.sqrt(s[0]), jnp.float32)
    return {
        "q": {"kernel": draw(D, H), "bias": draw(H)},
        "k": {"kernel": draw(D, H)},
        "out": {"kernel": draw(H, O), "bias": draw(O)},
    }


def apply(p, x):
    h = jnp.tanh(x @ p["q"]["kernel"] + p["q"]["bias"]) * (x @ p["k"]["kernel"])
    return h @ p["out"]["kernel"] + p["out"]["bias"]


def loss(y, x):
    return jnp.mean(jnp.sum(y**2, -1))


def inputs(rng, *sizes, offset=1.0):
    return [jnp.asarray(rng.normal(size=(n, D)) + offset, jnp.float32) for n in sizes]


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def oracle(p, x):
    """Second moments by hand, and gradients of a token's own loss by the chain rule, in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    x = np.asarray(x, np.float64)
    t, k = np.tanh(x @ p["q"]["kernel"] + p["q"]["bias"]), x @ p["k"]["kernel"]
    y = (t * k) @ p["out"]["kernel"] + p["out"]["bias"]
    gy = 2 * y
    gh = gy @ p["out"]["kernel"].T
    grads = {"q/kernel": gh * k * (1 - t**2), "k/kernel": gh * t, "out/kernel": gy}
    seen = {"q/kernel": x, "k/kernel": x, "out/kernel": t * k}
    return seen, grads


def check(stats, p, x, rtol=2e-4):
    seen, grads = oracle(p, x)
    for path, z in seen.items():
        w = stats.of(path)
        np.testing.assert_allclose(w.rows.second, z.T @ z / len(z), rtol=rtol, atol=1e-5)
        np.testing.assert_allclose(w.rows.mean, z.mean(0), rtol=rtol, atol=1e-5)
        assert float(w.rows.count) == len(z)
        if w.cols is not None:
            g = grads[path]
            np.testing.assert_allclose(w.cols.second, g.T @ g / len(g), rtol=rtol, atol=1e-5)


@pytest.fixture(scope="module")
def calibrated(params):
    """Ragged batches and what they showed: shared, for every calibration compiles its step."""
    batches = inputs(np.random.default_rng(1), 16, 16, 5)
    return batches, calibrate(apply, params, batches, loss=loss)


def test_moments_and_gradients_equal_the_loop_over_tokens(params, calibrated):
    """Batches of 16, 16 and 5 weigh by their tokens."""
    batches, stats = calibrated
    check(stats, params, np.concatenate(batches))
    assert float(stats.tokens) == 37


def test_one_store_for_each_distinct_activation(calibrated):
    _, stats = calibrated
    assert len(stats.inputs) == 2
    assert len(stats.outputs) == 3
    assert stats.of("q/kernel").rows is stats.of("k/kernel").rows
    assert stats.of("q/kernel").bias == "q/bias"
    assert stats.of("k/kernel").bias is None


def test_inputs_alone(params, rng):
    stats = calibrate(apply, params, inputs(rng, 8), gradients=False)
    assert stats.outputs == {}
    assert stats.of("k/kernel").cols is None


def test_one_sample(params, rng):
    batches = inputs(rng, 1)
    stats = calibrate(apply, params, batches, loss=loss)
    check(stats, params, batches[0])
    assert np.linalg.matrix_rank(stats.of("q/kernel").rows.second) == 1


def test_merging_is_one_pass_and_associative(params, calibrated):
    batches, whole = calibrated
    reducers = Reducer(99, mean=True), Reducer(99, mean=False)
    tapped = with_taps(apply, params, batches[0], inputs=reducers[0], outputs=reducers[1])
    step = jax.jit(Observer(tapped, *reducers, loss, None, None))
    a, b, c = (step(params, x, jax.random.key(0)) for x in batches)
    for merged in ((a + b) + c, merge(a, b + c)):
        assert jax.tree.structure(merged) == jax.tree.structure(whole)
        for x, y in zip(jax.tree.leaves(merged), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_float32_stays_accurate_over_many_tokens():
    """200k tokens far from the origin: running sums would lose the covariance's digits."""
    rng = np.random.default_rng(3)
    w = {"w": jnp.eye(D, 2)}
    batches = [np.float32(rng.normal(size=(1000, D)) * 0.1 + 30) for _ in range(200)]
    stats = calibrate(lambda p, x: x @ p["w"], w, batches, gradients=False)
    x = np.concatenate(batches).astype(np.float64)
    got, want = np.asarray(stats.of("w").rows.second, np.float64), x.T @ x / len(x)
    assert np.abs(got / want - 1).max() < 2e-6
    np.testing.assert_allclose(stats.of("w").rows.mean, x.mean(0), rtol=2e-6)


class TestProbes:
    def linear(self, rng):
        return {"a": jnp.asarray(rng.normal(size=(D, H)), jnp.float32),
                "b": jnp.asarray(rng.normal(size=(H, O)), jnp.float32)}  # fmt: skip

    @pytest.mark.parametrize("law", ["normal", "rademacher"])
    def test_probes_estimate_the_gauss_newton_matrix(self, rng, law):
        """For x -> x A B the gradient at A's output is B r: E is B B'."""
        p = self.linear(rng)
        fn = lambda p, x: (x @ p["a"]) @ p["b"]
        batches = inputs(rng, *[200] * 5)
        stats = calibrate(fn, p, batches, probes=Probes(count=4, law=law))
        b = np.asarray(p["b"], np.float64)
        got = np.asarray(stats.of("a").cols.second)
        assert np.linalg.norm(got - b @ b.T) < 0.1 * np.linalg.norm(b @ b.T)
        got = np.asarray(stats.of("b").cols.second)
        assert np.linalg.norm(got - np.eye(O)) < 0.1 * np.sqrt(O)

    def test_probes_work_where_the_loss_has_no_gradient(self, params, rng):
        """Distance to the dense model's own outputs: zero gradient, but probes see."""
        batches = inputs(rng, 64)
        own = lambda y, x: jnp.mean((y - apply(params, x)) ** 2)
        blind = calibrate(apply, params, batches, loss=own)
        assert np.abs(blind.of("q/kernel").cols.second).max() < 1e-10
        seeing = calibrate(apply, params, batches)
        assert np.trace(seeing.of("q/kernel").cols.second) > 0.1

    def test_two_sided_loss_predicts_the_output_change(self, rng):
        """E|f(W + D) - f(W)|^2 for a last layer is exactly tr(D' A D)."""
        from lrjax.metrics import TwoSided

        p = self.linear(rng)
        fn = lambda p, x: (x @ p["a"]) @ p["b"]
        (x,) = inputs(rng, 4000)
        stats = calibrate(fn, p, [x], probes=Probes(count=4))
        delta = 0.1 * rng.normal(size=(D, H))
        metric = TwoSided().bind(stats.of("a"), (D, H))
        moved = p | {"a": p["a"] + jnp.asarray(delta, jnp.float32)}
        want = float(jnp.mean(jnp.sum((fn(moved, x) - fn(p, x)) ** 2, -1)))
        np.testing.assert_allclose(metric.loss(jnp.asarray(delta)), want, rtol=0.05)

    def test_same_seed_same_bits(self, rng):
        p, batches = {"a": self.linear(rng)["a"]}, inputs(rng, 8, 8)
        run = lambda seed: calibrate(lambda p, x: x @ p["a"], p, batches, probes=Probes(seed=seed))
        first = run(4).digest()
        assert first == run(4).digest()
        assert first != run(5).digest()

    def test_integer_outputs_cannot_be_probed(self, params, rng):
        with pytest.raises(StatsError, match="floating outputs"):
            calibrate(lambda p, x: jnp.argmax(apply(p, x), -1), params, inputs(rng, 4))


class TestTokens:
    """A table, two linear layers over [batch, length], and padding that holds rubbish."""

    def model(self, rng):
        draw = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)
        return {"embed": draw(V, D), "w": draw(D, H), "head": draw(H, O)}

    @staticmethod
    def apply(p, batch):
        h = jnp.tanh(p["embed"][batch["ids"]] @ p["w"])
        keep = batch["mask"][..., None]
        pooled = jnp.where(keep, h, 0).sum(1) / keep.sum(1)
        return pooled @ p["head"]

    def batch(self, rng, n=6, length=9):
        lengths = rng.integers(1, length + 1, n)
        mask = np.arange(length) < lengths[:, None]
        ids = np.where(mask, rng.integers(0, V, (n, length)), 0)
        return {"ids": jnp.asarray(ids), "mask": jnp.asarray(mask)}

    def test_padding_does_not_count(self, rng):
        p, batches = self.model(rng), [self.batch(rng) for _ in range(3)]
        stats = calibrate(self.apply, p, batches, mask=lambda b: b["mask"])
        ids = np.concatenate([np.asarray(b["ids"])[np.asarray(b["mask"])] for b in batches])
        z = np.asarray(p["embed"], np.float64)[ids]
        np.testing.assert_allclose(
            stats.of("w").rows.second, z.T @ z / len(z), rtol=1e-4, atol=1e-5
        )
        freq = np.bincount(ids, minlength=V) / len(ids)
        rows = stats.of("embed").rows
        assert rows.diagonal
        np.testing.assert_allclose(rows.second, freq, rtol=1e-5, atol=1e-7)
        assert float(stats.tokens) == len(ids) == float(stats.of("w").rows.count)
        assert float(stats.of("head").rows.count) == 18

    def test_gradients_are_per_token_and_padding_has_none(self, rng):
        """G of the table's output by a loop over single tokens' Jacobians."""
        p, batch = self.model(rng), self.batch(rng, n=4)
        stats = calibrate(
            self.apply, p, [batch], mask=lambda b: b["mask"], probes=Probes(count=3000)
        )
        mask = np.asarray(batch["mask"])

        def out(z, mask):
            h = jnp.where(mask[:, None], jnp.tanh(z @ p["w"]), 0).sum(0) / mask.sum()
            return h @ p["head"]

        total = np.zeros((D, D))
        for ids, m in zip(np.asarray(batch["ids"]), mask, strict=True):
            jac = np.asarray(jax.jacobian(out)(p["embed"][ids], jnp.asarray(m)))  # [O, L, D]
            total += np.einsum("otd,ote->de", jac[:, m], jac[:, m])
        want = total / mask.sum()
        got = np.asarray(stats.of("embed").cols.second)
        assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want)

    def test_nan_in_padding_is_harmless_with_a_mask(self, rng):
        p = {"w": self.model(rng)["w"]}
        x = rng.normal(size=(3, 4, D)).astype(np.float32)
        mask = np.arange(4) < np.array([4, 2, 3])[:, None]
        x[~mask] = np.nan
        fn = lambda p, x: jnp.where(jnp.isnan(x).any(-1, keepdims=True), 0, x @ p["w"])
        stats = calibrate(fn, p, [jnp.asarray(x)], mask=lambda x: mask, gradients=False)
        z = x[mask].astype(np.float64)
        np.testing.assert_allclose(stats.of("w").rows.second, z.T @ z / len(z), rtol=1e-4)


def test_scanned_layers_keep_their_stack_axis(rng):
    stack = jnp.asarray(rng.normal(size=(3, D, D)) / np.sqrt(D), jnp.float32)

    def fn(p, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0]

    (x,) = inputs(rng, 40)
    stats = calibrate(fn, {"w": stack}, [x[:10], x[10:]], loss=loss)
    h = np.asarray(x, np.float64)
    seen = stats.of("w")
    assert seen.rows.second.shape == seen.cols.second.shape == (3, D, D)
    for i in range(3):
        np.testing.assert_allclose(seen.rows.second[i], h.T @ h / 40, rtol=1e-3, atol=1e-5)
        h = np.tanh(h @ np.asarray(stack[i], np.float64))


def test_wide_vectors_keep_the_diagonal(params, rng):
    (x,) = inputs(rng, 30)
    stats = calibrate(apply, params, [x], loss=loss, max_gram=6)
    seen, grads = oracle(params, x)
    rows, cols = stats.of("out/kernel").rows, stats.of("q/kernel").cols
    assert rows.diagonal
    assert cols.diagonal
    np.testing.assert_allclose(rows.second, (seen["out/kernel"] ** 2).mean(0), rtol=1e-4)
    np.testing.assert_allclose(cols.second, (grads["q/kernel"] ** 2).mean(0), rtol=1e-3)
    assert not stats.of("q/kernel").rows.diagonal


def test_only_selected_weights_are_stored(params, rng):
    stats = calibrate(apply, params, inputs(rng, 4), select=["out/*"])
    assert "out/kernel" in stats
    assert "q/kernel" not in stats
    with pytest.raises(StatsError, match=r"q/kernel.*out/kernel"):
        stats.of("q/kernel")


def test_memory_does_not_grow_with_the_number_of_batches(params):
    """Live bytes between batches: the running sums, and nothing of earlier batches."""
    live = []

    def stream(count):
        rng = np.random.default_rng(0)
        for _ in range(count):
            live.append(sum(x.nbytes for x in jax.live_arrays()))
            yield rng.normal(size=(4096, D)).astype(np.float32)

    stats = calibrate(apply, params, stream(8), loss=loss)
    assert max(live[3:]) - live[2] < 4096 * D  # less than a quarter of one batch
    taps = 2 * D * D + H * H + 2 * (H * H) + O * O  # inputs: x and h; outputs: q, k, out
    assert stats.nbytes < 4 * (taps + 100)


def test_the_step_compiles_once_and_its_memory_is_the_sums_and_one_batch(params):
    """XLA's own account of the jitted step, against the bound of the docstring."""
    x = jnp.ones((512, D))
    reducers = Reducer(99, mean=True), Reducer(99, mean=False)
    tapped = with_taps(apply, params, x, inputs=reducers[0], outputs=reducers[1])
    observe = Observer(tapped, *reducers, loss, None, None)
    memory = jax.jit(observe).lower(params, x, jax.random.key(0)).compile().memory_analysis()
    sums = sum(a.nbytes for a in jax.tree.leaves(observe(params, x, jax.random.key(0))))
    assert memory.output_size_in_bytes < sums + 1024
    # activations of this batch: x, and half a dozen of [512, H]
    assert memory.temp_size_in_bytes < 4 * 512 * (D + 12 * H) + 3 * sums


def test_shards_of_a_mapped_axis_sum_to_one_pass(params, rng):
    devices = np.array(jax.devices()[:4])
    (x,) = inputs(rng, 32)
    reducers = Reducer(99, mean=True), Reducer(99, mean=False)
    tapped = with_taps(apply, params, x[:8], inputs=reducers[0], outputs=reducers[1])
    observe = Observer(tapped, *reducers, loss, None, None)
    step = lambda p, x: observe(p, x, jax.random.key(0)).psum("data")
    spec = PartitionSpec("data")
    sharded = jax.shard_map(
        step, mesh=Mesh(devices, ("data",)), in_specs=(PartitionSpec(), spec),
        out_specs=PartitionSpec(), check_vma=False,
    )  # fmt: skip
    check(jax.jit(sharded)(params, x), params, x)


def test_progress_is_reported(params, rng):
    done = []
    calibrate(apply, params, iter(inputs(rng, 4, 4, 4)), gradients=False, on_batch=done.append)
    assert done == [1, 2, 3]


class TestMistakes:
    def test_no_batches_and_empty_batches(self, params, rng):
        with pytest.raises(StatsError, match="no batches"):
            calibrate(apply, params, [])
        with pytest.raises(StatsError, match="iterator"):
            calibrate(apply, params, iter([]))
        with pytest.raises(StatsError, match="batch 1: got an empty batch"):
            calibrate(apply, params, [*inputs(rng, 4), jnp.zeros((0, D))])

    def test_batches_without_a_token(self, params, rng):
        batches, empty = [x.reshape(2, 2, D) for x in inputs(rng, 4)], jnp.zeros((2, 2), bool)
        with pytest.raises(StatsError, match="no token in 1 batches"):
            calibrate(apply, params, batches, mask=lambda _: empty, gradients=False)

    def test_nan_weights_are_named(self, params, rng):
        bad = params | {"k": {"kernel": params["k"]["kernel"].at[1, 1].set(jnp.nan)}}
        with pytest.raises(StatsError, match=r"k/kernel.*NaN"):
            calibrate(apply, bad, inputs(rng, 4))

    @pytest.mark.parametrize("where", [0, 2])
    def test_activations_that_are_not_finite_are_named(self, params, rng, where):
        batches = inputs(rng, 4, 4, 4)
        batches[where] = batches[where].at[2, 3].set(jnp.inf)
        with pytest.raises(StatsError, match=r"q/kernel, k/kernel.*not finite"):
            calibrate(apply, params, batches, gradients=False)

    def test_later_activations_are_named_by_their_own_weight(self, params, rng):
        fn = lambda p, x: jnp.log(-jnp.abs(x @ p["q"]["kernel"])) @ p["out"]["kernel"]
        with pytest.raises(StatsError, match=r"^out/kernel"):
            calibrate(fn, params, inputs(rng, 4), gradients=False)

    def test_a_loss_that_is_no_scalar(self, params, rng):
        with pytest.raises(StatsError, match=r"loss of shape \(4,\)"):
            calibrate(apply, params, inputs(rng, 4), loss=lambda y, x: jnp.sum(y, -1))

    def test_a_function_without_weights(self, params, rng):
        with pytest.raises(StatsError, match="no selected weight"):
            calibrate(lambda p, x: x * 2, params, inputs(rng, 4))

    def test_statistics_of_two_calibrations_do_not_merge(self, params, rng, calibrated):
        _, stats = calibrated
        with pytest.raises(StatsError, match="different"):
            stats + calibrate(apply, params, inputs(rng, 4), gradients=False)


def test_statistics_are_a_pytree_with_hashable_structure(calibrated):
    _, stats = calibrated
    assert isinstance(jax.tree.map(lambda x: x, stats), Stats)
    assert hash(jax.tree.structure(stats)) == hash(jax.tree.structure(stats + stats))
    assert "3 weights" in str(stats)
