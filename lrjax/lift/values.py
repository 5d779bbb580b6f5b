"""Values as the reader sees them: views of parameters, or of numbered results."""

from dataclasses import dataclass
from typing import Any

from lrjax.lift.report import UseKind
from lrjax.lift.view import View


@dataclass(frozen=True)
class Param:
    """The root of a weight's views."""

    path: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Val:
    """A value: a view of a root; `fixed` if parameters and constants alone decide it.

    var    where it can be read: a variable of an enclosing jaxpr, or an integer
    parts  the parameters of a concatenation along `axis`
    """

    view: View
    fixed: bool
    var: Any = None
    parts: tuple["Val", ...] = ()
    axis: int = 0

    @property
    def weight(self) -> bool:
        """Whether it is a view of a parameter."""
        return isinstance(self.view.root, Param)


@dataclass(frozen=True)
class Touch:
    """A use of a parameter that is no site."""

    weight: Param
    kind: UseKind
    primitive: str
    source: str
