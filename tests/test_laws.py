"""Every format obeys every law."""

import jax
import pytest

from tests.cases import CASES
from tests.laws import LAWS, disk_keeps_every_bit

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@cases
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(case, law):
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        law(case)


@cases
def test_disk_keeps_every_bit(case, tmp_path):
    disk_keeps_every_bit(case, tmp_path)
