"""`LowRank` derives its dense shape, and refuses factors that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import ops
from lrjax.errors import DtypeError, ShapeError
from lrjax.formats import Layout, LowRank, Sum, is_factored
from tests.cases import generator, low_rank, normal
from tests.laws import close

ones = jnp.ones


def test_the_dense_shape_is_derived_not_stored():
    w = low_rank(generator(), 5, rows=(4, 6), cols=(8, 5), order=(2, 0, 3, 1))
    assert w.shape == (5, 8, 4, 5, 6)
    assert w.rank == 3
    assert w.layout == Layout(rows=(2, 4), cols=(1, 3))
    one = jax.tree.map(lambda x: x[0], w)
    assert one.shape == (8, 4, 5, 6)
    assert jax.vmap(lambda s: jnp.zeros(s.shape))(w).shape == (5, 8, 4, 5, 6)
    assert jax.eval_shape(lambda: w).shape == w.shape


def test_split_rows_and_columns_mean_a_reshape_and_a_transpose():
    w = low_rank(generator(), rows=(4, 6), cols=(8, 5), order=(2, 0, 3, 1))
    plain = np.asarray(w.left) @ np.asarray(w.right)
    close(w, plain.reshape(4, 6, 8, 5).transpose(2, 0, 3, 1))


def test_from_dense_is_the_best_approximation_of_its_rank():
    w = normal(generator(), 3, 12, 20)
    s = np.linalg.svd(np.asarray(w), compute_uv=False)
    error = np.linalg.norm(np.asarray(ops.densify(LowRank.from_dense(w, 5)) - w), axis=(1, 2))
    np.testing.assert_allclose(error, np.sqrt((s[:, 5:] ** 2).sum(1)), rtol=1e-5)


def test_arrays_defer_to_the_weight_and_never_densify_it():
    w = low_rank(generator())
    assert not hasattr(w, "__jax_array__")
    assert (np.ones((2, 24), np.float32) @ w).shape == (2, 40)
    assert (jnp.ones((2, 24)) @ w).shape == (2, 40)
    for use in (lambda: jnp.dot(ones((2, 24)), w), lambda: np.ones((24, 40)) + w):
        with pytest.raises(TypeError):
            use()
    with pytest.raises(ShapeError, match="equal inner sizes"):
        ones((2, 40)) @ w
    assert is_factored(w)
    assert not is_factored(ops.densify(w))


@pytest.mark.parametrize(
    ("w", "error", "text"),
    [
        (LowRank(ones((4, 2)), ones((3, 5))), ShapeError, "equal sizes"),
        (LowRank(ones((6, 4, 2)), ones((2, 5))), ShapeError, "axes"),
        (LowRank(ones((6, 4, 2)), ones((7, 2, 5))), ShapeError, "stack axes"),
        (LowRank(ones(4), ones((2, 5))), ShapeError, "LowRank"),
        (LowRank(ones((4, 2)), ones((2, 5)), rows=(2, 3)), ShapeError, "rows="),
        (LowRank(ones((4, 2)), ones((2, 5)), cols=(5, 5)), ShapeError, "cols="),
        (LowRank(ones((4, 2)), ones((2, 5)), order=(0, 0)), ShapeError, "permutation"),
        (LowRank(ones((4, 2)), ones((2, 5)), rows=(2, 2), order=(1, 0)), ShapeError, "order"),
        (LowRank(ones((4, 2), int), ones((2, 5), int)), DtypeError, "floating"),
        (LowRank(ones((4, 2), jnp.bfloat16), ones((2, 5))), DtypeError, "one dtype"),
        (LowRank([[1.0]], None), DtypeError, "array"),
        (Sum((ones((4, 5)), LowRank(ones((4, 2)), ones((2, 6))))), ShapeError, "one shape"),
    ],
)
def test_validate_refuses(w, error, text):
    with pytest.raises(error, match=text):
        w.validate()
    with pytest.raises(error, match=r"^layer/kernel: "):
        ops.validate({"layer": {"kernel": w}})


def test_construction_never_checks():
    LowRank(ones((4, 2)), ones((3, 5)))
    LowRank(None, object())
    assert jax.vmap(lambda w, x: x @ w, (LowRank(0, None), None))(
        LowRank(ones((3, 4, 2)), ones((2, 5))), ones((1, 4))
    ).shape == (3, 1, 5)
