"""Init, step, terminate: the one loop of every iterative solver."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

State = TypeVar("State")


class Progress(NamedTuple):
    """How a run went: the best objective, steps taken, whether it settled, whether it is finite."""

    objective: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]
    finite: Bool[Array, ""]


def iterate(
    step: Callable[[State, Int[Array, ""]], tuple[State, Float[Array, ""]]],
    state: State,
    objective: Float[Array, ""],
    *,
    steps: int | Int[Array, ""],
    tol: float | Float[Array, ""] = 0.0,
    goal: float | Float[Array, ""] = 0.0,
    patience: int = 1,
) -> tuple[State, Progress]:
    """Repeat `step(state, i) -> (state, objective)` until it settles; hand back the best state.

    Ends when the objective fell by less than tol x itself in `patience` consecutive steps, when it
    is at or below `goal`, when it is not finite, or after `steps` steps. What comes back is the
    state of the least objective seen, the initial one included: the objective never rises, and a
    step that diverged is never handed on. `tol`, `goal` and `steps` may be traced, so that a new
    tolerance does not compile again. Under `vmap` every problem ends on its own.

    Args:
      step: one step; a pure function.
      state: initial state, any pytree.
      objective: its objective.
      steps: most steps to take.
      tol: relative decrease below which a step counts as still; 0 stops only at the goal.
      goal: objective that is good enough.
      patience: consecutive still steps that end the run.
    """
    start = jnp.asarray(objective)

    def going(carry):
        _, _, last, still, i = carry
        return (i < steps) & (still < patience) & (last > goal) & jnp.isfinite(last)

    def body(carry):
        state, (best_state, best), last, still, i = carry
        state, value = step(state, i)
        better = value < best
        best_state = jax.tree.map(lambda new, old: jnp.where(better, new, old), state, best_state)
        decrease = last - value
        settled = (decrease <= tol * jnp.abs(last)) & (tol > 0)
        still = jnp.where(settled, still + 1, 0)
        return state, (best_state, jnp.where(better, value, best)), value, still, i + 1

    zero = jnp.zeros((), jnp.int32)
    carry = (state, (state, start), start, zero, zero)
    _, (state, best), last, still, i = jax.lax.while_loop(going, body, carry)
    converged = (still >= patience) | (best <= goal)
    return state, Progress(best, i, converged & jnp.isfinite(best), jnp.isfinite(last))
