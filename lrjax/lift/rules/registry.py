"""How rules are written down: one function for one or more primitives."""

from collections.abc import Callable, Sequence
from typing import Any

from lrjax.formats.contract import Order
from lrjax.formats.lazy import LazyArray


class Context:
    """What a rule may ask of the interpreter that applies it."""

    order: Order

    def compact(self, eqn: Any, position: int, value: Any) -> Any:
        """The operand before it was broadcast: its repeated dims have size one."""
        raise NotImplementedError

    def constant(self, eqn: Any, position: int) -> Any:
        """The operand's value if it is one number, written in the program; else None."""
        raise NotImplementedError


Rule = Callable[..., Sequence[Any]]
"""`rule(ctx, eqn, *operands) -> outputs`; at least one operand is lazy. Raises Unsupported."""


class Rules(dict[str, Rule]):
    """Primitive name -> rule."""

    def on(self, *names: str) -> Callable[[Rule], Rule]:
        """Decorator: the rule for these primitives."""

        def add(rule: Rule) -> Rule:
            self.update(dict.fromkeys(names, rule))
            return rule

        return add


ROWS = " (rows)"
"""Ends the name of rows that were looked up: they stay lazy where they meet an activation as a
weight does, and are computed where anything else is done with them."""


def is_lazy(x: Any) -> bool:
    """Whether x is a lazy array."""
    return isinstance(x, LazyArray)
