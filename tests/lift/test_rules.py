"""Each primitive on a factored operand: equals the dense result, forms no dense weight."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lrjax.formats.layout import Layout
from tests.lift.oracle import check, factored, normal

X = normal(9, 5, 12)
W = {"w": factored((12, 18))}
STACK = {"w": factored((4, 12, 18), Layout((1,), (2,)))}
HEADS = {"w": factored((12, 3, 6), Layout((0,), (1, 2)))}
TABLE = {"w": factored((30, 12))}
IDS = jnp.array([[3, 29, 0], [7, 7, -1]])

MATRIX = {
    "matmul": lambda w, x: x @ w,
    "vector": lambda w, x: x[0] @ w,
    "left": lambda w, x: w.T @ x.T,
    "transposed": lambda w, x: (x @ w) @ w.T,
    "bf16": lambda w, x: (
        (x.astype("bfloat16") @ w.astype("bfloat16")).astype("float32") * 0 + x @ w
    ),
    "scale": lambda w, x: x @ (w * 0.5 / 3),
    "scalar_array": lambda w, x: x @ (w * x[0, 0]),
    "rows_scaled": lambda w, x: x @ (w * x[0][:, None]),
    "cols_scaled": lambda w, x: x @ (w / (1 + jnp.arange(18.0))),
    "minus": lambda w, x: x @ (-w + 2 * w),
    "delta": lambda w, x: x @ (w + jnp.arange(18.0)),
    "centred": lambda w, x: x @ (w - w.mean(0)),
    "standardised": lambda w, x: x @ ((w - w.mean(0)) / jnp.sqrt(w.var(0) + 1e-3)),
    "weight_norm": lambda w, x: x @ (w / jnp.linalg.norm(w, axis=0)),
    "row_norm": lambda w, x: x @ (w * lax.rsqrt(jnp.sum(w * w, axis=1, keepdims=True))),
    "decay": lambda w, x: x @ w + jnp.sum(w**2) + jnp.sum(jnp.square(w)) + jnp.mean(w),
    "spectral": lambda w, x: x @ w / jnp.linalg.norm(x[0] @ w),
    "split": lambda w, x: sum(x @ p for p in jnp.split(w, 3, axis=1)),
    "slice": lambda w, x: x @ w[:, 4:10],
    "slice_rows": lambda w, x: x[:, 3:8] @ w[3:8],
    "strided": lambda w, x: x @ w[:, ::2] + x @ w[:, 1::2],
    "row": lambda w, x: x @ jnp.outer(w[3, :12], jnp.ones(2)),
    "dynamic": lambda w, x: x @ lax.dynamic_slice_in_dim(w, jnp.argmax(x[0]), 6, 1),
    "concatenated": lambda w, x: x @ jnp.concatenate([w, w * 2], 1),
    "mixed_parts": lambda w, x: x @ jnp.concatenate([w, jnp.ones((12, 5))], 1),
    "stacked_rows": lambda w, x: jnp.concatenate([x, x], 1) @ jnp.concatenate([w, -w], 0),
    "cut_again": lambda w, x: x @ jnp.concatenate([w, w], 1)[:, 10:25],
    "heads": lambda w, x: jnp.einsum("td,dhk->thk", x, w.reshape(12, 3, 6)),
    "heads_out": lambda w, x: jnp.einsum("thk,hkd->td", x.reshape(5, 4, 3), w.reshape(4, 3, 18)),
    "merge_after_swap": lambda w, x: x @ w.reshape(12, 3, 6).transpose(0, 2, 1).reshape(12, 18),
    "expand": lambda w, x: jnp.einsum("td,bdn->btn", x, w[None]),
    "broadcast": lambda w, x: jnp.einsum(
        "btd,bdn->btn", jnp.stack([x, 2 * x]), jnp.broadcast_to(w, (2, 12, 18))
    ),
    "padded": lambda w, x: x @ jnp.pad(w, ((0, 0), (0, 3))),
    "reversed": lambda w, x: x @ w[:, ::-1],
    "stop": lambda w, x: x @ lax.stop_gradient(w),
    "barrier": lambda w, x: x @ lax.optimization_barrier(w),
    "copied": lambda w, x: x @ jnp.copy(w),
    "put": lambda w, x: x @ jax.device_put(w),
    "where_scalar": lambda w, x: x @ jnp.where(x[0, 0] > 0, w, 2 * w),
    "where_zero": lambda w, x: x @ jnp.where(x[0, 0] > 0, w, 0.0),
    "where_cols": lambda w, x: x @ jnp.where(jnp.arange(18) < 9, w, 0.0),
    "where_rows": lambda w, x: x @ jnp.where(x[0][:, None] > 0, w, 0.0),
    "masked_cols": lambda w, x: x @ (w * (jnp.arange(18) % 2)),
    "permuted": lambda w, x: x @ w[:, jnp.arange(18)[::-1]],
    "permuted_rows": lambda w, x: x[:, ::-1] @ jnp.take(w, jnp.arange(12)[::-1], axis=0),
    "absolute": lambda w, x: x @ w + jnp.sqrt(jnp.sum(w.real**2 + w.imag**2)),
    "two_weights": lambda w, x: x @ (w @ w.T) @ w,
    "named": lambda w, x: x @ checkpoint_name(w, "kernel"),
    "precision": lambda w, x: lax.dot(
        x, w, precision="highest", preferred_element_type=jnp.float32
    ),
    "vmapped": lambda w, x: jax.vmap(lambda t: t @ w)(x),
    "vmapped_weight": lambda w, x: jax.vmap(lambda c: x @ c, in_axes=1)(w),
    "linearised": lambda w, x: jax.jvp(lambda t: jnp.tanh(t @ w), (x,), (x,))[1],
    "input_gradient": lambda w, x: jax.grad(lambda t: jnp.sum(jnp.tanh(t @ w)))(x),
    "under_jit": lambda w, x: jax.jit(lambda w, x: jax.nn.gelu(x @ w))(w, x),
    "columns": lambda w, x: x @ w[:, jnp.array(3)][:, None],
}


# Gradients are jax's own, through the operations; a few stand for all.
GRADIENTS = {
    "matmul", "cols_scaled", "weight_norm", "strided", "mixed_parts", "heads_out", "padded",
    "where_scalar", "where_cols", "two_weights", "vmapped_weight", "input_gradient",
    "experts", "ragged", "lookup", "tied", "head_pairs", "plain", "grouped",
}  # fmt: skip


@pytest.mark.parametrize("name", MATRIX)
def test_matrix(name):
    f = MATRIX[name]
    dense = {(2, 12, 18), (18, 12)} if name in ("broadcast",) else ()
    check(lambda p, x: f(p["w"], x), W, X, dense=dense, grad=name in GRADIENTS)


TENSOR = {
    "layers": (STACK, lambda w, x: [x @ w[i] for i in range(4)]),
    "layer_at": (
        STACK,
        lambda w, x: x @ lax.dynamic_index_in_dim(w, jnp.argmax(x[0]) % 4, 0, False),
    ),
    "layer_taken": (STACK, lambda w, x: x @ jnp.take(w, jnp.argmax(x[0]) % 4, axis=0)),
    "experts": (STACK, lambda w, x: jnp.einsum("etd,edf->etf", jnp.stack([x] * 4), w)),
    "all_experts": (STACK, lambda w, x: jnp.einsum("td,edf->tef", x, w)),
    "expert_of_token": (STACK, lambda w, x: jnp.einsum("td,tdf->tf", x, w[jnp.arange(5) % 4])),
    "ensemble": (STACK, lambda w, x: jax.vmap(lambda m: jnp.tanh(x @ m))(w)),
    "ragged": (STACK, lambda w, x: lax.ragged_dot(x, w, jnp.array([1, 0, 3, 1], jnp.int32))),
    "unstacked": (STACK, lambda w, x: [x @ m[0] for m in jnp.split(w, 4)]),
    "restacked": (STACK, lambda w, x: jnp.einsum("td,edf->etf", x, jnp.stack([w[2], w[0]]))),
    "swapped": (STACK, lambda w, x: jnp.einsum("td,def->etf", x, jnp.swapaxes(w, 0, 1))),
    "qkv": (HEADS, lambda w, x: jnp.einsum("td,dhk->htk", x, w)),
    "head": (HEADS, lambda w, x: x @ w[:, 1]),
    "merged_heads": (HEADS, lambda w, x: x @ w.reshape(12, 18)),
    "head_pairs": (HEADS, lambda w, x: x @ w[:, :2].reshape(12, 12)),
    "lookup": (TABLE, lambda w, x: w[IDS]),
    "lookup_taken": (TABLE, lambda w, x: jnp.take(w, IDS, axis=0)),
    "lookup_clipped": (TABLE, lambda w, x: jnp.take(w, IDS + 20, axis=0, mode="clip")),
    "lookup_columns": (TABLE, lambda w, x: w.T[:, IDS[0]]),
    "lookup_of_all": (TABLE, lambda w, x: jnp.tanh(w[jnp.arange(30)[::-1]]).sum(0)),
    "lookup_vmapped": (TABLE, lambda w, x: jax.vmap(lambda i: w[i])(IDS[0])),
    "lookup_of_each": (
        STACK,
        lambda w, x: jax.vmap(lambda m, i: m[i])(w, jnp.array([3, 0, 5, 11])),
    ),
    "tied": (TABLE, lambda w, x: jnp.tanh(w[IDS]) @ w.T),
    "one_hot": (TABLE, lambda w, x: jax.nn.one_hot(IDS, 30) @ w),
}


@pytest.mark.parametrize("name", TENSOR)
def test_tensor(name):
    params, f = TENSOR[name]
    dense = {"head_pairs": {(12, 12)}, "lookup_of_all": {(30, 12)}}.get(name, ())
    check(lambda p, x: f(p["w"], x), params, X, dense=dense, grad=name in GRADIENTS)


CONV = {
    "plain": ((3, 3, 4, 6), (1, 8, 7, 4), {}),
    "same": ((3, 3, 4, 6), (1, 8, 7, 4), {"padding": "SAME", "window_strides": (2, 1)}),
    "dilated": ((3, 3, 4, 6), (1, 9, 9, 4), {"rhs_dilation": (2, 2)}),
    "transposed": (
        (3, 3, 4, 6),
        (1, 5, 5, 4),
        {"lhs_dilation": (2, 2), "padding": ((1, 1), (2, 2))},
    ),
    "grouped": ((3, 3, 2, 6), (1, 8, 7, 4), {"feature_group_count": 2}),
    "pointwise": ((1, 1, 4, 6), (1, 8, 7, 4), {}),
}


@pytest.mark.parametrize("name", CONV)
def test_convolution(name):
    kernel, shape, options = CONV[name]
    options = {"window_strides": (1, 1), "padding": "VALID", **options}
    w = {"w": factored(kernel, Layout((0, 1, 2), (3,)))}
    dims = ("NHWC", "HWIO", "NHWC")
    f = lambda p, x: lax.conv_general_dilated(x, p["w"], dimension_numbers=dims, **options)
    check(f, w, normal(3, *shape), grad=name in GRADIENTS)


def test_convolution_channels_first():
    w = {"w": factored((6, 4, 3), Layout((1, 2), (0,)))}
    f = lambda p, x: lax.conv_general_dilated(
        x, p["w"], (1,), "SAME", dimension_numbers=("NCW", "OIW", "NCW")
    )
    check(f, w, normal(3, 2, 4, 9))
