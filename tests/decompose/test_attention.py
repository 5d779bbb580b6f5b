"""Attention's solvers against NumPy: planted structure is found, optima are optima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.decompose import SharedBasis, attention, solve
from lrjax.errors import RankError, StatsError
from lrjax.metrics import Gram, Metric

D, H, G, SIZE = 20, 6, 3, 8
"""Inputs, query heads, key heads, head size."""


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def moment(seed, d, tokens=60):
    x = draw(seed, tokens, d) * np.linspace(0.2, 2, d) + 0.3
    return x.T @ x / tokens, x.mean(0)


def root(g):
    values, vectors = np.linalg.eigh(g)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def f32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def tail(a, rank):
    return np.sum(np.linalg.svd(a, compute_uv=False)[rank:] ** 2)


def test_a_basis_that_all_heads_share_is_recovered():
    """Planted: keys and values in one subspace of inputs; also where the Gram is singular."""
    rank, gram = 5, moment(0, D, tokens=12)[0]
    basis = draw(1, D, rank)
    keys, values = basis @ draw(2, G, rank, SIZE), basis @ draw(3, G, rank, SIZE - 2)
    sides = [np.stack([moment(k, n)[0] for k in range(G)]) for n in (SIZE, SIZE - 2)]
    for rows, cols in ((None, None), (gram, None), (gram, sides)):
        rows, stacks = (None if rows is None else f32(rows)[0]), f32(keys, values)
        cols = None if cols is None else f32(*cols)
        found = attention.joint_basis(stacks, rank, rows=rows, cols=cols)
        x = draw(4, 12, D) if rows is None else root(gram)
        for want, core in zip((keys, values), found.cores, strict=True):
            got = x @ np.asarray(found.basis, np.float64) @ np.asarray(core, np.float64)
            np.testing.assert_allclose(got, x @ want, atol=1e-5 * np.abs(x @ want).max())


def test_the_joint_basis_is_the_truncated_svd_of_all_whitened_heads():
    gram, stacks = moment(0, D)[0], [draw(1, G, D, SIZE), draw(2, G, D, SIZE - 2)]
    sides = [np.stack([moment(k, w.shape[2])[0] for k in range(G)]) for w in stacks]
    white = [
        root(gram) @ w @ np.stack(list(map(root, s))) for w, s in zip(stacks, sides, strict=True)
    ]
    wide = np.concatenate([np.concatenate(list(w), 1) for w in white], 1)
    rows, own, cols = f32(gram)[0], f32(*stacks), f32(*sides)
    found = attention.joint_basis(own, 7, rows=rows, cols=cols)
    lost = sum(
        np.sum((root(gram) @ (w - np.asarray(found.basis @ c)) @ np.stack(list(map(root, s)))) ** 2)
        for w, c, s in zip(stacks, found.cores, sides, strict=True)
    )
    np.testing.assert_allclose(lost, tail(wide, 7), rtol=1e-4)
    np.testing.assert_allclose(float(found.info.residual) ** 2, lost, rtol=1e-4)
    spectrum = np.asarray(attention.joint_spectrum(own, rows=rows, cols=cols))
    np.testing.assert_allclose(spectrum, np.linalg.svd(wide, compute_uv=False), rtol=1e-3)


@pytest.mark.parametrize("d", [D, 100])
def test_a_joint_basis_of_full_rank_is_exact_whatever_the_statistics(d):
    stacks = f32(draw(0, G, d, SIZE), draw(1, G, d, SIZE))
    blind = jnp.zeros((d, d)).at[0, 0].set(1.0)
    found = attention.joint_basis(stacks, min(d, 2 * G * SIZE), rows=blind)
    for w, core in zip(stacks, found.cores, strict=True):
        np.testing.assert_allclose(found.basis @ core, w, atol=1e-6)
    with pytest.raises(RankError, match="from 1 to"):
        attention.joint_basis(stacks, min(d, 2 * G * SIZE) + 1)


def test_score_products_are_optimal_and_beat_separate_svds_on_every_random_layer():
    """Independent oracle: the truncated SVD of S^.5 Q K' S^.5, formed."""
    size, wins = 3, 0
    for layer in range(10):
        gram, mean = moment(layer, D)
        query, key = draw(10 + layer, 2, D, SIZE), draw(30 + layer, D, SIZE)
        bias = draw(50 + layer, 2, 1, SIZE)
        cov = gram - np.outer(mean, mean)
        own = attention.affine_gram(*f32(gram, mean))
        affine = np.concatenate([query, bias], 1)
        q, k, info = attention.score_product(
            *f32(affine, key), size, query_gram=own, key_gram=f32(cov)[0]
        )
        left, right = root(np.asarray(own, np.float64)), root(cov)
        scores = np.concatenate([left @ a @ key.T @ right for a in affine])
        new = np.concatenate([left @ np.asarray(a @ k.T, np.float64) @ right for a in q])
        lost = np.sum((scores - new) ** 2)
        np.testing.assert_allclose(lost, tail(scores, size), rtol=1e-3)
        np.testing.assert_allclose(float(info.residual) ** 2, lost, rtol=1e-3)

        def separate(w, gram):
            half = root(gram)
            u, s, vt = np.linalg.svd(half @ w, full_matrices=False)
            return np.linalg.pinv(half) @ (u[:, :size] * s[:size]) @ vt[:size]

        apart = separate(key, cov)
        apart = np.concatenate(
            [left @ separate(a, np.asarray(own, np.float64)) @ apart.T @ right for a in affine]
        )
        wins += lost < np.sum((scores - apart) ** 2)
    assert wins == 10  # and the separate factors hold more parameters


def test_value_products_are_optimal_for_all_heads_that_share_the_values():
    gram, value, output = moment(0, D)[0], draw(1, D, SIZE), draw(2, 2, SIZE, D + 3)
    v, o, _ = attention.value_product(*f32(value, output), 4, gram=f32(gram)[0])
    assert (v.shape, o.shape) == ((D, 4), (2, 4, D + 3))
    wide = np.concatenate(list(root(gram) @ value @ output), 1)
    new = np.concatenate(list(root(gram) @ np.asarray(v @ o, np.float64)), 1)
    np.testing.assert_allclose(np.sum((wide - new) ** 2), tail(wide, 4), rtol=1e-3)


def test_products_of_full_size_change_nothing_and_sizes_are_checked():
    query, key = f32(draw(0, 2, D, SIZE), draw(1, D, SIZE))
    blind = jnp.zeros((D, D))
    q, k, info = attention.score_product(query, key, SIZE, query_gram=blind, key_gram=blind)
    np.testing.assert_array_equal(q, query)
    np.testing.assert_array_equal(k, key)
    assert float(info.residual) == 0
    with pytest.raises(RankError, match="from 1 to 8"):
        attention.score_product(query, key, SIZE + 1)
    with pytest.raises(StatsError, match="mean"):
        attention.affine_gram(blind, None)


def test_stacked_layers_are_solved_alike():
    query, key = f32(draw(0, 2, G, 2, D, SIZE), draw(1, 2, G, D, SIZE))
    gram = f32(np.stack([moment(k, D)[0] for k in range(2)]))[0][:, None]
    solve = lambda q, k, g: attention.score_product(q, k, 3, query_gram=g, key_gram=g)[:2]
    q, k = jax.jit(solve)(query, key, gram)
    for i in range(2):
        for g in range(G):
            own = solve(query[i, g], key[i, g], gram[i, 0])
            np.testing.assert_allclose(q[i, g] @ k[i, g].T, own[0] @ own[1].T, atol=1e-4)


def turned(x, angles):
    a, b = np.split(x, 2, axis=-1)
    z = (a + 1j * b) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], -1)


@pytest.mark.parametrize("kept", [2, G])
def test_shared_pairs_are_rotated_as_the_heads_are(kept):
    """Every component kept, or a planted few: scores of rotated heads, from shared rotated keys."""
    f = SIZE // 2
    latent = draw(0, D, kept, f) + 1j * draw(1, D, kept, f)
    z = np.einsum("dcf,cgf->gdf", latent, draw(2, kept, G, f) + 1j * draw(3, kept, G, f))
    keys, queries = np.concatenate([z.real, z.imag], -1), draw(4, G, D, SIZE)
    gram, (x, y), angles = moment(5, D)[0], draw(6, 2, D), draw(7, 2, f) * 3
    energy = attention.pair_energy(attention.inner(*f32(queries), f32(gram)[0]))
    found = attention.components(*f32(keys), energy, f32(gram)[0])
    chosen = tuple(range(f)) * kept
    split = attention.split(*f32(keys), found, chosen)
    assert np.all(np.asarray(found.energy)[:, kept:] < 1e-4 * float(found.energy.max()))
    np.testing.assert_allclose(split.rest, 0, atol=1e-4)
    for g in range(G):
        want = turned(x @ queries[g], angles[0]) @ turned(y @ keys[g], angles[1])
        q = x @ (queries[g][:, :f] + 1j * queries[g][:, f:])
        q = q[list(chosen)] * (split.mix[g, :, 0] + 1j * split.mix[g, :, 1])
        k = y @ np.asarray(split.shared)
        k = k[: len(chosen)] + 1j * k[len(chosen) :]
        at = np.tile(angles, kept)
        got = np.real(np.conj(q * np.exp(1j * at[0])) * k * np.exp(1j * at[1])).sum()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_merged_heads_lose_less_than_averaged_ones_and_nothing_where_nothing_is_to_lose():
    heads, groups = 8, 2
    gram = moment(0, D)[0]
    angles = draw(1, SIZE // 2) * 3
    query, key, value = (draw(k, heads, D, SIZE) for k in (2, 3, 4))
    output = draw(5, heads, SIZE, D)

    def scores(query, key, rotated):
        turn = (lambda w: turned(w, angles)) if rotated else (lambda w: w)
        count = key.shape[0]
        return np.stack([
            root(gram) @ turn(query[n]) @ key[n * count // heads].T @ root(gram)
            for n in range(heads)
        ])  # fmt: skip

    def mixed(value, output):
        count = value.shape[0]
        return np.stack([
            root(gram) @ value[n * count // heads] @ output[n] for n in range(heads)
        ])  # fmt: skip

    mean = lambda w: w.reshape(groups, heads // groups, *w.shape[1:]).mean(1)
    g = f32(gram)[0]
    for rotated in (False, True):
        merge = attention.merge_rotated_keys if rotated else attention.merge_keys
        made = merge(*f32(query, key), groups, query_gram=g, key_gram=g)
        want = scores(query, key, rotated)
        lost = np.sum((want - scores(np.asarray(made.own), np.asarray(made.shared), rotated)) ** 2)
        assert lost < 0.9 * np.sum((want - scores(query, mean(key), rotated)) ** 2)
    made = attention.merge_values(*f32(value, output), groups, gram=g)
    want = mixed(value, output)
    lost = np.sum((want - mixed(np.asarray(made.shared), np.asarray(made.own))) ** 2)
    assert lost < 0.9 * np.sum((want - mixed(mean(value), output)) ** 2)
    np.testing.assert_allclose(float(made.missed.mean()), lost / np.sum(want**2), rtol=0.1)

    turns = np.exp(1j * draw(6, heads, 1, SIZE // 2))  # heads that differ by phases alone
    one = np.repeat(mean(key), heads // groups, 0)
    z = (one[..., : SIZE // 2] + 1j * one[..., SIZE // 2 :]) * turns
    phased = np.concatenate([z.real, z.imag], -1)
    made = attention.merge_rotated_keys(*f32(query, phased), groups, query_gram=g, key_gram=g)
    got = scores(np.asarray(made.own), np.asarray(made.shared), True)
    np.testing.assert_allclose(got, scores(query, phased, True), atol=1e-3)


def test_components_that_heads_share_are_a_shared_basis_of_their_products():
    """Collaborative heads, Q_h K_h' = A diag(m_h) B' (arXiv:2006.16362), have their format.

    The stack of products [heads, d, d] has one basis of queries, one of keys, a core for each head.
    """
    rank = 5
    a, b, mix = draw(0, D, rank), draw(1, D, rank), draw(2, H, rank)
    products = np.einsum("dr,hr,er->hde", a, mix, b)
    gram = f32(moment(3, D)[0])[0]
    spec = SharedBasis(rank=(rank, rank))
    found, _ = solve(spec, f32(products)[0], metric=Metric(Gram(gram), Gram(gram)))
    x, y = draw(4, 2, 9, D)
    queries, keys = x @ np.asarray(found.left), y @ np.asarray(found.right).T
    assert keys.shape == (9, rank)  # all that is cached, for all heads
    scores = np.einsum("qr,hrs,ks->hqk", queries, np.asarray(found.core), keys)
    np.testing.assert_allclose(scores, np.einsum("qd,hde,ke->hqk", x, products, y), atol=2e-2)
