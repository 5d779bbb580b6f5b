"""Taps: what a weight sees.  The oracle is the weight's own gradient, which is x' g."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lrjax.errors import StatsError
from lrjax.formats.layout import Layout, matricize
from lrjax.lift import UseKind, with_taps
from lrjax.ops import densify
from tests.lift.oracle import close, factored, normal
from tests.lift.test_linen import Block, Vision, variables

KEY = jax.random.key(0)


def keep(tap, x, mask):
    """No reduction at all."""
    del tap, mask
    return x


def gram(tap, x, mask):
    if tap.kind is UseKind.LOOKUP and x.ndim == len(tap.stack) + 1:
        return {"count": x}
    x = x.astype(jnp.float32)
    x = x if mask is None else x * mask[:, None]
    return {"second": jnp.einsum("...ti,...tj->...ij", x, x)}


def score(out):
    return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(out))


def check_gradients(fn, params, *args, tied=()):
    """For each weight: gradient = sum over tokens of (activation)(output gradient)'."""
    tapped = with_taps(fn, params, *args, inputs=keep, outputs=keep_like(fn, params, *args))

    @jax.jit
    def run(seeds, params):
        (_, (out, sums)), grads = jax.value_and_grad(
            lambda s, p: (lambda r: (score(r[0]), r))(tapped(p, *args, seeds=s)),
            argnums=(0, 1),
            has_aux=True,
        )(seeds, params)
        return out, sums, *grads

    out, sums, ends, grads = run(tapped.seeds, params)
    close(out, fn(params, *args))
    flat = {
        "/".join(str(k.key) for k in path): g
        for path, g in jax.tree_util.tree_flatten_with_path(grads)[0]
    }
    seen = 0
    for path, use in tapped.usage.items():
        for u in use.matrix_uses:
            if path in tied or u.kind is UseKind.LOOKUP:
                continue
            want = jnp.einsum("...ti,...tj->...ij", sums[u.tap], ends[u.out])
            close(want, matricize(flat[path], Layout(u.rows, u.cols)), 1e-3)
            seen += 1
    assert seen
    return tapped, sums, ends


def keep_like(fn, params, *args):
    """`keep` for gradients, whose seeds need the number of tokens: that of the activation."""
    tokens = {}
    probe = with_taps(fn, params, *args, inputs=lambda t, x, m: x)
    sizes = jax.eval_shape(lambda p: probe(p, *args)[1], params)
    for use in probe.usage.values():
        for u in use.matrix_uses:
            tokens[u.out] = sizes[u.tap].shape[-2] if sizes[u.tap].ndim > 1 else 1

    def reduce(tap, g, mask):
        missing = tokens[tap.id] - g.shape[-2]
        return jnp.pad(g, [(0, 0)] * (g.ndim - 2) + [(0, missing), (0, 0)]) if missing > 0 else g

    return reduce


def test_attention_block_scanned_and_rematerialised():
    scan = nn.scan(
        nn.remat(Block),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=3,
    )
    model, x = scan(), normal(1, 2, 7, 20)
    params = variables(model, x, None)["params"]
    run = lambda p, x: model.apply({"params": p}, x, None)[0]
    tapped, sums, _ = check_gradients(run, params, x)
    query = tapped.usage["MultiHeadDotProductAttention_0/query/kernel"].uses[0]
    assert sums[query.tap].shape == (3, 14, 20)
    assert tapped.inputs[query.tap].stack == (3,)
    assert len(tapped.inputs[query.tap].weights) == 3


def test_convolutions():
    model, x = Vision(), normal(1, 2, 12, 12, 4)
    given = variables(model, x, False)
    run = lambda p, x: model.apply({**given, "params": p}, x, False)
    params = given["params"]
    only = {"Conv_0": params["Conv_0"], "ConvTranspose_0": params["ConvTranspose_0"]}
    full = lambda p, x: run({**params, **p}, x)
    check_gradients(full, only, x)


X = normal(3, 5, 12)
PLAIN = {
    "einsum": (lambda p, x: jnp.einsum("td,hdk->thk", x, p["w"]), (3, 12, 4)),
    "left": (lambda p, x: p["w"] @ x.T, (7, 12)),
    "heads_out": (lambda p, x: jnp.einsum("thk,khd->td", x.reshape(5, 3, 4), p["w"]), (4, 3, 6)),
    "experts": (lambda p, x: jnp.einsum("etd,edf->etf", jnp.stack([x, 2 * x]), p["w"]), (2, 12, 4)),
    "vmapped": (lambda p, x: jax.vmap(lambda w, t: t @ w)(p["w"], jnp.stack([x, -x])), (2, 12, 4)),
    "reshaped": (lambda p, x: jnp.einsum("td,dhk->htk", x, p["w"].reshape(12, 3, 2)), (12, 6)),
    "swapped": (
        lambda p, x: x @ jnp.swapaxes(p["w"].reshape(12, 3, 2), 1, 2).reshape(12, 6),
        (12, 6),
    ),
    "sliced": (lambda p, x: x[:, 2:9] @ p["w"][2:9, 1:5], (12, 6)),
    "joined": (lambda p, x: x @ jnp.concatenate([p["w"], jnp.ones((12, 2))], 1), (12, 6)),
    "indexed": (lambda p, x: x @ p["w"][1], (3, 12, 6)),
    "called": (lambda p, x: jax.jit(lambda w: jax.checkpoint(jnp.tanh)(x @ w))(p["w"]), (12, 6)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_of_plain_functions(name):
    fn, shape = PLAIN[name]
    check_gradients(fn, {"w": normal(1, *shape)}, X)


def grams(fn, params, *args, mask=None):
    tapped = with_taps(fn, params, *args, inputs=gram, outputs=gram)
    run = jax.jit(
        jax.grad(
            lambda s: (lambda r: (score(r[0]), r[1]))(tapped(params, *args, seeds=s, mask=mask)),
            has_aux=True,
        )
    )
    ends, sums = run(tapped.seeds)
    return tapped, sums, ends


def test_a_weight_used_many_times_adds_up():
    w = normal(1, 3, 12, 12)

    def f(p, x):
        for i in range(3):
            x = jnp.tanh(x @ p["w"][i])
        return lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ p["w"][i]), x)

    _, sums, ends = grams(f, {"w": w}, X)
    x, want = X, [0, 0, 0]
    for _ in range(2):
        for i in range(3):
            want[i] += x.T @ x
            x = jnp.tanh(x @ w[i])
    close(sums["w"]["second"], jnp.stack(want))
    assert ends["w"]["second"].shape == (3, 12, 12)
    assert bool(jnp.all(jnp.trace(ends["w"]["second"], axis1=1, axis2=2) > 0))


def test_recurrent_weights_add_up_over_time():
    w = normal(1, 12, 12)
    cell = lambda p: lambda h, t: (lambda n: (n, n))(jnp.tanh(t + h @ p["w"]))
    f = lambda p, x: lax.scan(cell(p), jnp.zeros(12), x)[1]
    tapped, sums, ends = grams(f, {"w": w}, X)
    hidden = jnp.concatenate([jnp.zeros((1, 12)), f({"w": w}, X)[:-1]])
    close(sums["w"]["second"], hidden.T @ hidden)
    pre = jax.grad(lambda e: score(jnp.stack(_unrolled(w, X, e))))(jnp.zeros((5, 12)))
    close(ends["w"]["second"], pre.T @ pre)
    assert tapped.inputs["w"].stack == ()


def _unrolled(w, x, shift):
    h, out = jnp.zeros(12), []
    for t, e in zip(x, shift, strict=True):
        h = jnp.tanh(t + h @ w + e)
        out.append(h)
    return out


def test_while_and_branches():
    w = normal(1, 12, 12)

    def f(p, x):
        step = lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"]))
        return lax.while_loop(lambda c: c[0] < 3, step, (0, x))[1]

    tapped = with_taps(f, {"w": w}, X, inputs=gram)
    _, sums = jax.jit(tapped)({"w": w}, X)
    x1 = jnp.tanh(X @ w)
    x2 = jnp.tanh(x1 @ w)
    close(sums["w"]["second"], X.T @ X + x1.T @ x1 + x2.T @ x2)

    g = lambda p, x: lax.cond(x.sum() > 0, lambda: x @ p["w"], lambda: jnp.tanh(x) @ p["w"])
    for x in (X, -X):
        _, sums, ends = grams(g, {"w": w}, x)
        seen = x if x.sum() > 0 else jnp.tanh(x)
        out = jnp.cos(seen @ w)
        close(sums["w"]["second"], seen.T @ seen)
        close(ends["w"]["second"], out.T @ out)


def test_lookups_count_and_masks_leave_padding_out():
    params = {"table": normal(1, 9, 12), "w": normal(2, 12, 4)}
    ids = jnp.array([[1, 1, 8], [0, 3, 3]])
    mask = jnp.array([[1, 1, 0], [1, 0, 0]], bool)
    f = lambda p, t: jnp.tanh(p["table"][t]) @ p["w"]
    tapped, sums, _ = grams(f, params, ids, mask=mask)
    np.testing.assert_array_equal(sums["table"]["count"], [1, 2, 0, 0, 0, 0, 0, 0, 0])
    x = jnp.tanh(params["table"][ids[mask]])
    close(sums["w"]["second"], x.T @ x)
    assert tapped.inputs["table"].kind is UseKind.LOOKUP
    assert tapped.inputs["table"].width == 9


def test_tied_table_has_a_tap_for_each_orientation():
    params = {"table": normal(1, 9, 12)}
    f = lambda p, t: jnp.tanh(p["table"][t]) @ p["table"].T
    tapped, sums, ends = grams(f, params, jnp.array([3, 1, 1]))
    first, second = tapped.usage["table"].matrix_uses
    assert sums[first.tap]["count"].shape == (9,)
    assert sums[second.tap]["second"].shape == (12, 12)
    assert ends[first.out]["second"].shape == (12, 12)
    assert ends[second.out]["second"].shape == (9, 9)


def test_factored_weights_give_the_sums_of_their_dense_forms():
    params = {"w": factored((3, 12, 12), Layout((1,), (2,)))}
    f = lambda p, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]
    _, sums, ends = grams(f, params, X)
    _, want, want_ends = grams(f, densify(params), X)
    close(sums, want)
    close(ends, want_ends)


def test_only_selected_weights_are_tapped():
    params = {"a": normal(1, 12, 12), "b": normal(2, 12, 4)}
    f = lambda p, x: x @ p["a"] @ p["b"]
    tapped = with_taps(f, params, X, inputs=gram, outputs=gram, select=lambda p: p == "b")
    out, sums = tapped(params, X)
    assert set(sums) == set(tapped.inputs) == {"b"}
    assert set(tapped.seeds) == {"b"}
    close(out, f(params, X))


def test_other_shapes_and_other_ways():
    params = {"w": normal(1, 12, 4)}
    f = lambda p, x: x @ p["w"] if x.ndim == 2 else x
    tapped = with_taps(f, params, jax.ShapeDtypeStruct((5, 12), jnp.float32), inputs=gram)
    x = normal(2, 8, 12)
    close(tapped(params, x)[1]["w"]["second"], x.T @ x)
    with pytest.raises(StatsError, match="w"):
        tapped(params, x[0])


def test_no_activation_is_kept():
    """Memory is bounded by the sums: the scan's outputs are Grams, never activations."""
    w = normal(1, 3, 12, 12)
    f = lambda p, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]
    tapped = with_taps(f, {"w": w}, X, inputs=gram)
    _, sums = jax.eval_shape(tapped, {"w": w}, jax.ShapeDtypeStruct((1000, 12), jnp.float32))
    assert sums["w"]["second"].shape == (3, 12, 12)
    (scan,) = (
        e for e in jax.make_jaxpr(tapped)({"w": w}, X).jaxpr.eqns if e.primitive.name == "scan"
    )
    assert {v.aval.shape for v in scan.outvars} == {(5, 12), (3, 12, 12)}
