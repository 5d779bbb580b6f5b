"""The run-time type checker of the tests: beartype, wherever it can follow the annotation."""

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

# An int is a float where one is asked for, as static checkers have it (PEP 484).
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """Beartype, but for methods that speak of `Self`, which it knows in decorated classes only."""
    try:
        return _beartype(function)
    except BeartypeDecorHintPep673Exception:
        return function
