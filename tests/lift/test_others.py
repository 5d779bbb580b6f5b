"""Unmodified Equinox, Haiku and plain JAX models."""

import math

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from jax import lax

from lrjax import trees
from lrjax.formats.layout import Layout
from lrjax.lift import lift
from tests.lift.oracle import check, factor, factored, fill, normal

KEY = jax.random.key(0)


def test_equinox():
    class Model(eqx.Module):
        embed: eqx.nn.Embedding
        attend: eqx.nn.MultiheadAttention
        mlp: eqx.nn.MLP
        gru: eqx.nn.GRUCell
        conv: eqx.nn.Conv1d

        def __init__(self, key):
            keys = jax.random.split(key, 5)
            self.embed = eqx.nn.Embedding(23, 12, key=keys[0])
            self.attend = eqx.nn.MultiheadAttention(3, 12, key=keys[1])
            self.mlp = eqx.nn.MLP(12, 17, 31, 2, key=keys[2])
            self.gru = eqx.nn.GRUCell(17, 9, key=keys[3])
            self.conv = eqx.nn.Conv1d(9, 5, 3, key=keys[4])

        def __call__(self, tokens):
            x = jax.vmap(self.embed)(tokens)
            x = jax.vmap(self.mlp)(x + self.attend(x, x, x))
            _, h = lax.scan(lambda h, t: (self.gru(t, h),) * 2, jnp.zeros(9), x)
            return self.conv(h.T)

    model = fill(eqx.filter_eval_shape(Model, KEY))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    params = factor(params, {"conv/weight": Layout((1, 2), (0,))})
    run = lambda p, t: eqx.combine(p, static, is_leaf=trees.is_weight_leaf)(t)
    check(run, params, jnp.arange(7), cheaper=True, grad=False)
    whole = eqx.combine(params, static, is_leaf=trees.is_weight_leaf)
    batch = jnp.stack([jnp.arange(7)] * 2)
    out = eqx.filter_jit(lift(lambda m, t: jax.vmap(m)(t)))(whole, batch)
    assert out.shape == (2, 5, 5)


def test_haiku():
    def model(tokens):
        x = hk.Embed(23, 12)(tokens)
        x = x + hk.MultiHeadAttention(3, 4, w_init_scale=1.0, model_size=12)(x, x, x)
        x = hk.LayerNorm(-1, True, True)(x)
        x, _ = hk.dynamic_unroll(hk.LSTM(9), x, hk.LSTM(9).initial_state(2), time_major=False)
        return hk.nets.MLP([14, 6])(hk.Conv1D(8, 3)(x))

    f = hk.without_apply_rng(hk.transform(model))
    tokens = jnp.arange(14).reshape(2, 7)
    where = lambda path: not path.endswith(("/b", "offset", "scale"))
    params = factor(
        fill(jax.eval_shape(f.init, KEY, tokens)), {"conv1_d/w": Layout((0, 1), (2,))}, where=where
    )
    check(f.apply, params, tokens, grad=False)


def rotary(x):
    angle = jnp.arange(x.shape[1])[:, None] / 10.0 ** jnp.arange(x.shape[-1] // 2)
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = (f(angle)[:, None] for f in (jnp.cos, jnp.sin))
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def decoder(p, tokens):
    """Grouped queries, rotary positions, RMS norms, LoRA, layer scale, tied head: plain einsums."""
    x = p["embed"][tokens] * math.sqrt(16)
    mask = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))

    def block(x, q):
        norm = lambda x, g: x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * (1 + g)
        h = norm(x, q["norm1"]).astype(jnp.float32)
        wq = q["q"] + 0.5 * jnp.einsum("dr,rhk->dhk", q["lora_a"], q["lora_b"])
        query = rotary(jnp.einsum("btd,dhk->bthk", h, wq))
        key, value = jnp.einsum("btd,cdgk->cbtgk", h, q["kv"])
        key, value = (jnp.repeat(y, 2, axis=2) for y in (rotary(key), value))
        score = jnp.einsum("bthk,bshk->bhts", query, key) / 2
        score = jax.nn.softmax(jnp.where(mask, score, -1e30), -1)
        o = jnp.einsum("bhts,bshk->bthk", score, value)
        x = x + q["scale"] * jnp.einsum("bthk,hkd->btd", o, q["o"])
        h = norm(x, q["norm2"])
        gate, up = jnp.split(h @ q["up"], 2, axis=-1)
        return x + (jax.nn.silu(gate) * up) @ q["down"]

    for k in range(2):
        x = jax.checkpoint(block)(
            x, jax.tree.map(lambda a, k=k: a[k], p["layers"], is_leaf=lambda a: False)
        )
    return x @ p["embed"].T


def test_plain_decoder_with_stacked_layers_by_index():
    f = lambda shape, rows, cols: factored(shape, Layout(rows, cols), seed=sum(shape))
    params = {
        "embed": factored((37, 16)),
        "layers": {
            "q": f((2, 16, 4, 6), (1,), (2, 3)),
            "lora_a": normal(1, 2, 16, 2),
            "lora_b": normal(2, 2, 2, 4, 6),
            "kv": f((2, 2, 16, 2, 6), (2,), (3, 4)),
            "o": f((2, 4, 6, 16), (1, 2), (3,)),
            "up": f((2, 16, 46), (1,), (2,)),
            "down": f((2, 23, 16), (1,), (2,)),
            "norm1": normal(3, 2, 16),
            "norm2": normal(4, 2, 16),
            "scale": normal(5, 2, 16),
        },
    }
    check(decoder, params, jnp.arange(14).reshape(2, 7), cheaper=True)


def fused(p, x):
    """nanoGPT's fused qkv, a cosine head, a mixture of experts by one-hot dispatch."""
    q, k, v = jnp.split(x @ p["qkv"] + p["b"], 3, axis=-1)
    x = x + jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2)) @ v
    wq, wk, _ = jnp.split(p["qkv"], 3, axis=-1)
    x = x + jnp.tanh(x @ wq) @ wk.T + x @ p["qkv"][:, 28:]
    gates = jax.nn.softmax(x @ p["router"])
    top, which = lax.top_k(gates, 2)
    y = jnp.einsum("btd,edf->btef", x, p["experts_in"])
    y = jnp.einsum("btef,efd->bted", jax.nn.relu(y), p["experts_out"])
    y = jnp.take_along_axis(y, which[..., None], 2) * top[..., None]
    x = x + y.sum(2)
    unit = p["head"] / jnp.linalg.norm(p["head"], axis=1, keepdims=True)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True) @ unit.T * jnp.exp(p["temperature"])


def test_fused_attention_experts_and_cosine_head():
    params = {
        "qkv": factored((14, 42)),
        "b": normal(1, 42),
        "router": normal(2, 14, 3),
        "experts_in": factored((3, 14, 19), Layout((1,), (2,))),
        "experts_out": factored((3, 19, 14), Layout((1,), (2,))),
        "head": factored((29, 14)),
        "temperature": jnp.float32(0.3),
    }
    check(fused, params, normal(3, 2, 5, 14))


def test_lora_between_two_factored_weights():
    params = {"w": factored((12, 18)), "a": factored((12, 5)), "b": factored((5, 18))}
    f = lambda p, x: x @ (p["w"] + 2.0 * (p["a"] @ p["b"]))
    check(f, params, normal(1, 7, 12))
