"""Rows and columns of a weight of any number of dimensions."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import ops
from lrjax.errors import ShapeError
from lrjax.formats import Layout, default_layout, matricize, unmatricize
from lrjax.formats.layout import low_rank
from tests.cases import generator, normal
from tests.laws import close

LAYOUTS = [
    ((6, 8), Layout((0,), (1,))),
    ((6, 8), Layout((1,), (0,))),
    ((3, 6, 8), Layout((1,), (2,))),
    ((3, 6, 8), Layout((0, 1), (2,))),
    ((3, 6, 8), Layout((1,), (0, 2))),
    ((2, 3, 6, 8), Layout((3,), (2, 1))),
    ((3, 3, 4, 5), Layout((0, 1, 2), (3,))),
    ((3, 2, 4, 5), Layout((2,), (0, 3))),  # dimension 1 is unnamed and not leading: a row
]


@pytest.mark.parametrize(("shape", "layout"), LAYOUTS)
def test_unmatricize_undoes_matricize(shape, layout):
    w = normal(generator(), *shape)
    matrix = matricize(w, layout)
    assert matrix.shape == layout.matrix_shape(shape)
    np.testing.assert_array_equal(unmatricize(matrix, layout, shape), w)


@pytest.mark.parametrize(("shape", "layout"), LAYOUTS)
def test_low_rank_factors_the_matrix_and_means_the_weight(shape, layout):
    matrix = np.asarray(matricize(normal(generator(), *shape), layout))
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    w = low_rank(u * s[..., None, :], vt, layout, shape).validate()
    assert w.shape == shape
    _, rows, cols = layout.resolve(len(shape))
    assert (w.layout.rows, w.layout.cols) == (rows, cols)
    close(ops.densify(w), normal(generator(), *shape))


def test_matricize_names_rows_and_columns():
    w = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    got = np.asarray(matricize(jnp.asarray(w), Layout((2,), (1, 3))))
    for s, i, h, k in itertools.product(range(2), range(5), range(3), range(7)):
        assert got[s, i, h * 7 + k] == w[s, h, i, k]


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((6, 8), Layout((0,), (1,))),
        ((768, 12, 64), Layout((0,), (1, 2))),
        ((12, 64, 768), Layout((0, 1), (2,))),
        ((3, 3, 64, 64), Layout((0, 1, 2), (3,))),
        ((5, 5), Layout((0,), (1,))),
        ((7,), Layout((0,), ())),
        ((), Layout((), ())),
    ],
)
def test_the_default_cut_is_balanced(shape, layout):
    assert default_layout(shape) == layout


@pytest.mark.parametrize("layout", [Layout((0,), (0,)), Layout((0,), (2,)), Layout((-1,), (0,))])
def test_impossible_layouts_are_refused(layout):
    with pytest.raises(ShapeError, match="distinct dimensions below 2"):
        layout.resolve(2)
