"""Tucker: kernels run as three convolutions, tables by their digits, and misfits are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lrjax import ops
from lrjax.errors import ShapeError
from lrjax.formats.tucker import Tucker
from tests.formats import tensors as t

LETTERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def kernel(window, inner, outer, ranks=(4, 5)):
    """A Tucker-2 kernel, and its dense form in double precision."""
    w = t.tucker(
        t.generator(1),
        modes=(*window, inner, outer),
        ranks=(*(None for _ in window), *ranks),
        rows=(*window, inner),
        cols=(outer,),
    ).validate()
    dense = t.tucker_dense(jax.tree.map(lambda x: np.asarray(x, np.float64), w), np)
    return w, jnp.asarray(dense, jnp.float32)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 3))])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_chain_equals_the_dense_convolution(stride, padding, dilation, groups):
    w, dense = kernel((3, 2), 8 // groups, 12)
    x = jnp.asarray(t.generator(2).standard_normal((2, 9, 11, 8)), jnp.float32)
    options = {
        "window_strides": (stride, stride),
        "padding": padding,
        "rhs_dilation": (dilation, dilation),
        "dimension_numbers": LETTERS[2],
        "feature_group_count": groups,
        "precision": "highest",
    }
    got = ops.conv_general_dilated(x, w, **options)
    want = lax.conv_general_dilated(x, dense, **options)
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("window", [(5,), (2, 3, 2)])
def test_one_and_three_dimensions(window):
    w, dense = kernel(window, 6, 10)
    shape = (2, *(9 for _ in window), 6)
    x = jnp.asarray(t.generator(2).standard_normal(shape), jnp.float32)
    options = {
        "window_strides": (1,) * len(window),
        "padding": "SAME",
        "dimension_numbers": LETTERS[len(window)],
        "precision": "highest",
    }
    got = ops.conv_general_dilated(x, w, **options)
    want = lax.conv_general_dilated(x, dense, **options)
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


def test_only_the_small_core_is_convolved():
    w, _ = kernel((3, 2), 8, 12)
    x = jnp.ones((2, 9, 11, 8))
    run = lambda x, w: ops.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LETTERS[2])
    text = str(jax.make_jaxpr(run)(x, w))
    assert "f32[3,2,4,5]" in text
    assert "f32[3,2,8,12]" not in text


def test_parameters_count_the_core_and_every_factor():
    w, _ = kernel((3, 2), 8, 12)
    assert ops.cost(w).params == 3 * 2 * 4 * 5 + 8 * 4 + 12 * 5
    assert (w.rank, w.layout.rows, w.layout.cols) == ((3, 2, 4, 5), (0, 1, 2), (3,))


def test_attention_with_factors_shared_by_heads():
    """T[d_model, d_head, 4, heads]: two shared factors, a core for each head and projection."""
    w = t.tucker(t.generator(3), modes=(24, 6, 4, 5), ranks=(7, 3, None, None)).validate()
    x = jnp.asarray(t.generator(4).standard_normal((2, 24)), jnp.float32)
    got = ops.einsum("bm,mdph->bphd", x, w)
    dense = t.tucker_dense(w, np)
    np.testing.assert_allclose(got, np.einsum("bm,mdph->bphd", x, dense), atol=2e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": (3, 2, 7)}, "regroup"),
        ({"rows": None}, "both or neither"),
        ({"order": (0, 1)}, "permutation"),
        ({"factors": (None, jnp.ones((12, 5)))}, "divide|regroup"),
    ],
)
def test_misfits_are_named(change, words):
    w, _ = kernel((3, 2), 8, 12)
    fields = {"core": w.core, "factors": w.factors, "rows": w.rows, "cols": w.cols} | change
    with pytest.raises(ShapeError, match=r"(?i)" + words):
        Tucker(**fields).validate()
