"""Rotated keys of several heads, frequency by frequency: the components that all heads may share.

The pair (k_j, k_{j + h/2}) of a rotated head is a complex number that position s turns by
exp(i f_j s). Turning commutes with complex mixtures of heads, at one frequency: there the keys of G
heads are a vector in C^G, whose principal components are rotated as well as the heads are, while
the queries take the coefficients (arXiv:2502.07864 does so with orthogonal matrices).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from lrjax.linalg.stack import dot, working

FLOOR = 1e-6
"""Least energy of queries, relative to the largest head's, so that none is divided by zero."""


class Components(NamedTuple):
    """Principal components of the heads' keys at every frequency, strongest first.

    Attributes:
        energy: [*S, h/2, G], what the scores of all heads owe to each component.
        analysis: [*S, h/2, G, G]; component c of keys k is sum_g analysis[c, g] k_g.
        synthesis: likewise; k_g = sum_c synthesis[c, g] component_c.
    """

    energy: Float[Array, "*S f G"]
    analysis: Complex[Array, "*S f G G"]
    synthesis: Complex[Array, "*S f G G"]


class Split(NamedTuple):
    """Keys as a few rotated pairs that all heads share, and a rest that is not rotated.

    Attributes:
        shared: [*S, d, 2k], the kernel of the rotated pairs: first halves, then second halves.
        mix: [*S, G, k, 2], real and imaginary part of what a head's query pair is multiplied with.
        rest: [*S, G, d, h], the kernels of the rest.
    """

    shared: Array
    mix: Array
    rest: Array


def pairs(heads: Float[Array, "*S d h"]) -> Complex[Array, "*S d f"]:
    """Columns j and j + h/2 as one complex column."""
    a, b = jnp.split(working(heads), 2, axis=-1)
    return a + 1j * b


def unpair(z: Complex[Array, "*S d f"]) -> Float[Array, "*S d h"]:
    """Undoes `pairs`."""
    return jnp.concatenate([z.real, z.imag], axis=-1)


def components(
    keys: Float[Array, "*S G d h"],
    queried: Float[Array, "*S G f"],
    gram: Float[Array, "*#S d d"] | None = None,
) -> Components:
    """Components of E[k k'] at each frequency, each head weighed by the energy of its queries.

    The scores of head g at frequency j are Re(conj(q) k exp(i f_j (s - t))), so that leaving out
    dk costs E|q|^2 E|dk|^2 / 2: eigenvectors v of Q^.5 E[k k^H] Q^.5, Q = diag(queried).
    """
    images = working(keys) if gram is None else dot(gram[..., None, :, :], working(keys))
    moment = jnp.einsum(
        "...gdf,...edf->...fge", pairs(images), pairs(keys).conj(), precision="highest"
    )
    weight = jnp.swapaxes(jnp.maximum(queried, FLOOR * queried.max(-2, keepdims=True)), -1, -2)
    roots = jnp.sqrt(jnp.where(weight > 0, weight, 1))
    values, vectors = jnp.linalg.eigh(roots[..., :, None] * moment * roots[..., None, :])
    vectors = jnp.swapaxes(vectors, -1, -2)[..., ::-1, :]  # [*S, f, component, head]
    # The phase of an eigenvector is free: its largest entry is real and positive.
    at = jnp.argmax(jnp.abs(vectors), axis=-1, keepdims=True)
    largest = jnp.take_along_axis(vectors, at, axis=-1)
    vectors = vectors * (largest.conj() / jnp.abs(largest))
    energy = jnp.maximum(values[..., ::-1], 0)
    return Components(energy, vectors.conj() * roots[..., None, :], vectors / roots[..., None, :])


def split(
    keys: Float[Array, "*S G d h"],
    found: Components,
    frequencies: Sequence[int],
) -> Split:
    """Keeps the leading components at `frequencies` rotated, for all heads at once.

    A frequency that is named twice keeps two components. The rest is as at distance zero.
    """
    at = jnp.asarray(frequencies, jnp.int32)
    order = jnp.asarray([tuple(frequencies[:i]).count(f) for i, f in enumerate(frequencies)], int)
    z = pairs(keys)
    analysis, synthesis = (x[..., at, order, :] for x in (found.analysis, found.synthesis))
    shared = jnp.einsum("...kg,...gdk->...dk", analysis, z[..., at], precision="highest")
    back = jnp.einsum("...kg,...dk->...gdk", synthesis, shared, precision="highest")
    rest = z.at[..., at].add(-back)
    mix = jnp.swapaxes(synthesis.conj(), -1, -2)
    return Split(unpair(shared), jnp.stack([mix.real, mix.imag], axis=-1), unpair(rest))


def pair_energy(gram: Float[Array, "*S h h"]) -> Float[Array, "*S f"]:
    """E|q_j|^2 of the pairs of a head from the second moment of its outputs."""
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
    first, second = jnp.split(diagonal, 2, axis=-1)
    return first + second
