"""The run-time type checker of the tests: beartype, wherever it can follow the annotation."""

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep673Exception


def check(function):
    """Beartype, but for methods that speak of `Self`, which it knows in decorated classes only."""
    try:
        return beartype(function)
    except BeartypeDecorHintPep673Exception:
        return function
