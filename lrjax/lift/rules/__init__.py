"""What each primitive does to a lazy array."""

from lrjax.lift.rules import elementwise, indexing, linear, shape
from lrjax.lift.rules.registry import ROWS, Rules, is_lazy

RULES = Rules({**linear.RULES, **shape.RULES, **indexing.RULES, **elementwise.RULES})
ELEMENTWISE = frozenset(elementwise.RULES)

__all__ = ["ELEMENTWISE", "ROWS", "RULES", "is_lazy"]
