"""Sums of Kronecker products and of rank-one tensors for the laws, and what they mean."""

from lrjax.formats.cp import CP
from lrjax.formats.kronecker import Kronecker
from tests.formats.tensors import generator, normal


def kronecker(rng, *stack, s=2, i=4, j=10, k=6, l=4, **layout):
    return Kronecker(normal(rng, *stack, s, i, j), normal(rng, *stack, s, k, l), **layout)


def kronecker_dense(w, xp):
    full = xp.einsum("...sij,...skl->...ikjl", w.a, w.b)
    *stack, i, k, j, l = full.shape
    return full.reshape(*stack, i * k, j * l)


KRONECKER_EDGES = (
    lambda: kronecker(generator(), s=1),
    lambda: kronecker(generator(), i=1, j=7, k=11, l=1),
    lambda: kronecker(generator(), s=0),
)


def cp(rng, *stack, r=3, sizes=(6, 4, 40), **layout):
    factors = tuple(normal(rng, *stack, d, r) for d in sizes)
    return CP(1 + normal(rng, *stack, r), factors, **layout)


def table(rng, *stack, **options):
    """The matrix whose 24 rows are two modes."""
    return cp(rng, *stack, rows=(24,), cols=(40,), **options)


def cp_dense(w, xp):
    full = xp.einsum("...r,...ar,...br,...cr->...abc", w.scale, *w.factors)
    *stack, a, b, c = full.shape
    return full.reshape(*stack, a * b, c)


CP_EDGES = (
    lambda: table(generator(), r=1),
    lambda: table(generator(), r=0),
    lambda: cp(generator(), sizes=(7, 1, 11), rows=(7,), cols=(11,)),
)
