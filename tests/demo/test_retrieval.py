"""Recall counts right documents among the nearest; a tie is not a hit."""

import numpy as np

from lrjax.demo.retrieval import cosine, recall


def test_recall_equals_a_sort_by_hand():
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(50, 8)).astype(np.float32)
    queries = documents + 1.5 * rng.normal(size=(50, 8)).astype(np.float32)
    order = np.argsort(-queries @ documents.T, axis=1)
    place = np.argmax(order == np.arange(50)[:, None], axis=1)
    found = recall(queries, documents, (1, 5, 50))
    assert found == {1: (place < 1).mean(), 5: (place < 5).mean(), 50: 1.0}
    assert 0 < found[1] < found[5] < 1


def test_equal_documents_do_not_all_count_as_found():
    same = np.ones((4, 3), np.float32)
    assert recall(same, same, (1, 3, 4)) == {1: 0.0, 3: 0.0, 4: 1.0}


def test_cosine_is_the_mean_over_rows_whatever_their_length():
    a = np.array([[1.0, 0], [0, 2.0], [3.0, 3.0]])
    b = np.array([[5.0, 0], [1.0, 0], [1.0, 0]])
    np.testing.assert_allclose(cosine(a, b), (1 + 0 + 0.5**0.5) / 3)
