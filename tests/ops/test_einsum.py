"""`ops.einsum` reads every subscript that NumPy reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import ops
from lrjax.errors import ShapeError
from lrjax.formats import LowRank, Order, Sum, Unsupported
from lrjax.formats.lazy import LazyArray
from tests.cases import generator, low_rank, low_rank_dense, normal
from tests.laws import close, values

W = low_rank(generator(), m=4, n=6, r=2)
D = np.asarray(low_rank_dense(W, jnp))
S = low_rank(generator(1), 3, m=4, n=6, r=2)
DS = np.asarray(low_rank_dense(S, jnp))
X = np.asarray(normal(generator(2), 5, 4))
B = np.asarray(normal(generator(3), 3, 5, 4))
Y = np.asarray(normal(generator(4), 6, 7))


@pytest.mark.parametrize(
    ("spec", "operands"),
    [
        ("ij,jk->ik", (X, "W")),
        ("ij,jk", (X, "W")),
        ("jk,ij->ki", ("W", X)),
        ("ij, jk -> ki", (X, "W")),
        ("...j,jk->...k", (B, "W")),
        ("...j,jk", (B, "W")),
        ("...ij,...jk->...ik", (B, "S")),
        ("...ij,...jk->...ik", (B[:1], "S")),
        ("...ij,...jk->...ik", (X, "S")),
        ("...ij,...jk->i...k", (B, "S")),
        ("bij,bjk->bik", (B, "S")),
        ("bij,bjk->ik", (B, "S")),
        ("bij,bjk,kl->bil", (B, "S", Y)),
        ("ij,jk,kl->il", (X, "W", Y)),
        ("ij,jk,ij->ik", (X, "W", X)),
        ("ij,jk,lk->il", (X, "W", X[:, :1] * np.ones((5, 6), np.float32))),
        ("ij,kj->ik", (X, X[:3])),
        ("ij,jk->", (X, "W")),
        ("jk->", ("W",)),
        ("ij,kl->ijkl", (X, "W")),
        ("ii,ij->j", (np.eye(4, dtype=np.float32), "W")),
        ("i,ij,j->", (X[0], "W", Y[:, 0])),
        ("ij,jk->ijk", (X, "W")),
    ],
)
def test_equals_numpy(spec, operands):
    factored = [{"W": W, "S": S}[x] if isinstance(x, str) else x for x in operands]
    dense = [{"W": D, "S": DS}[x] if isinstance(x, str) else x for x in operands]
    close(jax.jit(lambda *a: ops.einsum(spec, *a))(*factored), np.einsum(spec, *dense))


@pytest.mark.parametrize("order", list(Order))
def test_the_order_changes_the_cost_never_the_value(order):
    close(ops.einsum("ij,jk->ik", X, W, order=order), X @ D)


def test_products_of_factored_arrays_stay_lazy():
    gram = ops.einsum("ij,kj->ik", W, W)
    assert isinstance(gram, LazyArray)
    close(gram, D @ D.T)
    close(X @ gram, X @ D @ D.T)
    close(ops.einsum("ij->ji", W), D.T)
    close(ops.einsum("ij,ij->", W, W), np.sum(D**2))
    trace = ops.einsum("ii->", low_rank(generator(), m=6, n=6))
    close(trace, np.trace(low_rank_dense(low_rank(generator(), m=6, n=6), jnp)))
    both = Sum((W, W, W))
    with pytest.raises(Unsupported, match="product of sums"):
        ops.einsum("ij,kj->ik", both, both)


def test_query_key_products_of_two_factored_heads_never_form():
    q = LowRank(normal(generator(), 64, 4), normal(generator(1), 4, 64), cols=(4, 16))
    x = normal(generator(2), 3, 64)
    f = lambda x, q: ops.einsum("td,dhk,ehk,se->hts", x, q, q, x)
    w = np.asarray(ops.densify(q))
    close(f(x, q), np.einsum("td,dhk,ehk,se->hts", x, w, w, x, optimize=True), 1e-4)
    jaxpr = jax.make_jaxpr(f)(x, q).jaxpr
    assert max(int(np.prod(shape)) for shape in values(jaxpr)) < q.size


@pytest.mark.parametrize(
    "spec", ["ij,jk,kl->il", "ijk,jk->ik", "ij,jk->iz", "ij,jk->ii", "ij...k,jk->i", "ij,jj->i"]
)
def test_wrong_subscripts_are_refused(spec):
    with pytest.raises(ShapeError):
        ops.einsum(spec, X, W)


def test_dense_operands_fall_through():
    close(ops.einsum("ij,kj->ik", X, X), X @ X.T)
    close(ops.dot_general(X, D, (((1,), (0,)), ((), ()))), X @ D)


@pytest.mark.parametrize("axis", [0, 1])
def test_precision_reaches_every_step(axis):
    f = lambda x, w: ops.dot_general(
        x, w, (((1,), (axis,)), ((), ())), precision=jax.lax.Precision.HIGHEST
    )
    jaxpr = jax.make_jaxpr(f)(np.ones((5, W.shape[axis]), np.float32), W).jaxpr
    dots = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert len(dots) == 2
    assert all(jax.lax.Precision.HIGHEST in eqn.params["precision"] for eqn in dots)


def test_mixed_dtypes_promote_as_dense_ones():
    x = jnp.asarray(X, jnp.bfloat16)
    assert ops.einsum("ij,jk->ik", x, W).dtype == jnp.float32
    assert (x @ W.astype(jnp.bfloat16)).dtype == jnp.bfloat16
