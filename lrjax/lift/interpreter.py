"""The interpreter: evaluates a jaxpr, and lets a subclass take over chosen equations.

Two domains share it: `lift` (values are arrays or lazy arrays) and taps (values are arrays; chosen
equations also yield sums).  What every domain needs from sub-jaxprs is in `control.py`.

A run takes `seeds` and returns `found`, both {place: pytree}.  A place is the position of an
equation: its index, then for every level of nesting the branch and the index in it.  Seeds go down
to their equation, sums come up from it, through scan, remat, cond and while alike, as ordinary
values.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.extend import source_info_util
from jax.extend.core import Literal

from lrjax.lift import jaxprs

Place = tuple[int, ...]
Sums = dict[Place, Any]
Step = tuple[Sequence[Any], Sums]


class Interpreter:
    """Evaluates jaxprs; subclasses say which equations they take over, and how."""

    def __init__(self) -> None:
        self.eqns: list[Any] = []  # the equations being evaluated, outermost first
        self.frames: list[dict[Any, Any]] = []  # their variables' values
        self.jaxprs: list[Any] = []  # the jaxprs that they are in

    def takes(self, eqn: Any, vals: Sequence[Any], at: Place) -> bool:
        """Whether the equation needs more than to be bound."""
        raise NotImplementedError

    def leaf(self, eqn: Any, vals: Sequence[Any], at: Place, seeds: Sums) -> Step:
        """Evaluate an equation that was taken and has no control rule."""
        raise NotImplementedError

    def control(self, eqn: Any) -> Callable[..., Step] | None:
        """The rule for an equation that evaluates jaxprs."""
        raise NotImplementedError

    def stacked(self, place: Place, at: Place) -> bool:
        """Whether the sums of `place` are one per step of the scan `at`, or one for all."""
        del place, at
        return False

    def pending(self, at: Place, *, stacked: bool) -> bool:
        """Whether sums will be found under `at`: one per step, or one for all steps."""
        del at, stacked
        return False

    def dense(self, x: Any, why: str) -> Any:
        """The value as an array that a control primitive can carry."""
        del why
        return x

    def run(
        self, closed: Any, args: Sequence[Any], at: Place = (), seeds: Mapping[Place, Any] = {}
    ) -> tuple[list[Any], Sums]:
        """Evaluate a jaxpr: (outputs, sums found)."""
        jaxpr, consts = jaxprs.opened(closed)
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        found: Sums = {}
        stack = source_info_util.current_name_stack()
        self.frames.append(env)
        self.jaxprs.append(jaxpr)
        try:
            for k, eqn in jaxprs.live(jaxpr):
                vals = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
                info, here = eqn.source_info, (*at, k)
                with (
                    source_info_util.user_context(
                        info.traceback, name_stack=stack + info.name_stack
                    ),
                    eqn.ctx.manager,
                ):
                    if self.takes(eqn, vals, here):
                        outs, more = self._step(eqn, vals, here, dict(seeds))
                        found.update(more)
                    else:
                        outs = jaxprs.bind(eqn, vals)
                env.update(zip(eqn.outvars, outs, strict=True))
        finally:
            self.frames.pop()
            self.jaxprs.pop()
        return [v.val if isinstance(v, Literal) else env[v] for v in jaxpr.outvars], found

    def _step(self, eqn: Any, vals: Sequence[Any], at: Place, seeds: Sums) -> Step:
        self.eqns.append(eqn)
        try:
            control = self.control(eqn)
            if control is not None:
                return control(self, eqn, vals, at, under(seeds, at))
            return self.leaf(eqn, vals, at, seeds)
        finally:
            self.eqns.pop()

    def source(self) -> str:
        """The user's line that is being evaluated."""
        return jaxprs.source(self.eqns)

    def read(self, var: Any) -> Any:
        """The value of a variable of this jaxpr or of one around it."""
        return next(env[var] for env in reversed(self.frames) if var in env)


def under(sums: Mapping[Place, Any], at: Place) -> Sums:
    """What belongs to the equation `at`, or to equations inside it."""
    return {place: v for place, v in sums.items() if place[: len(at)] == at}
