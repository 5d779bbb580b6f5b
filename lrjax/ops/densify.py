"""From factors back to the dense weight, and checks at the boundaries."""

from typing import Any

from lrjax.errors import DtypeError, ShapeError
from lrjax.formats.factored import Factored
from lrjax.formats.lazy import Operators
from lrjax.trees import map_weights


def densify(w: Any) -> Any:
    """The dense array of a weight, or a tree with all its factored weights made dense."""
    dense = lambda x: x.densify() if isinstance(x, Operators) else x
    return dense(w) if isinstance(w, Operators) else map_weights(dense, w)


def validate(tree: Any) -> Any:
    """Check every factored weight of a tree, and return the tree.

    Raises:
      ShapeError: the factors of a weight do not fit together; the message names its path.
      DtypeError: the factors of a weight have unfit dtypes.
    """

    def check(path: str, w: Any) -> Any:
        if isinstance(w, Factored):
            try:
                w.validate()
            except (ShapeError, DtypeError) as e:
                raise type(e)(f"{path}: {e}" if path else str(e)) from e
        return w

    return map_weights(check, tree, with_path=True)
