"""The policy is static, total, and always returns a method that can hold the rank."""

import itertools

import pytest

from lrjax.linalg import Accuracy, Exact, GramEigh, Krylov, choose


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("accuracy", list(Accuracy))
def test_every_shape_and_rank_has_a_method_that_fits(accuracy, backend):
    sizes = (1, 2, 17, 384, 513, 768, 1536, 4096, 30522)
    for m, n in itertools.product(sizes, sizes):
        k = min(m, n)
        for rank in {1, min(k, 5), min(k, 64), max(k // 4, 1), max(k // 2, 1), k}:
            method = choose((m, n), rank, accuracy=accuracy, backend=backend)
            if isinstance(method, Krylov):
                assert rank + 8 <= method.block * method.steps <= k
            assert hash(method) == hash(choose((m, n), rank, accuracy=accuracy, backend=backend))


def test_small_orders_are_exact_and_large_ones_iterate():
    assert isinstance(choose((2000, 384), 64), GramEigh)
    assert isinstance(choose((4096, 4096), 64), Krylov)
    assert isinstance(choose((768, 768), 500), GramEigh)
    assert isinstance(choose((4096, 4096), 64, accuracy=Accuracy.EXACT), Exact)


def test_accuracy_buys_a_larger_basis():
    size = lambda accuracy: (lambda k: k.block * k.steps)(
        choose((4096, 4096), 64, accuracy=accuracy)  # pyright: ignore
    )
    assert size(Accuracy.ACCURATE) > size(Accuracy.DEFAULT)


def test_tall_matrices_of_large_rank_form_their_gram_first():
    formed = lambda *case: choose(case[:2], case[2], accuracy=Accuracy.ACCURATE).formed  # pyright: ignore
    assert formed(3072, 768, 192)
    assert not formed(3072, 768, 64)
    assert not formed(4096, 4096, 1024)
