"""NNX modules with factored parameters, called without losing what the call changes."""

from typing import Any

from flax import nnx

from lrjax.lift.lift import OnDense, lift


def call(model: nnx.Module, *args: Any, on_dense: OnDense = "error", **kwargs: Any) -> Any:
    """`model(*args, **kwargs)` where `nnx.Param`s may hold factored arrays.

    `lift` works on pure functions, so that an NNX module passed through it would lose its updates
    (running means, dropout counts, caches) silently.  Here the module is split, the lifted call
    returns the state that is not a parameter, and `nnx.update` writes it back.  Works inside
    `nnx.jit` and `nnx.grad`.

    Args:
      model: the module; its non-parameter state is updated in place, as by an ordinary call.
      args: arguments of the call.
      on_dense: as for `lift`.
      kwargs: arguments of the call.

    Raises:
      DensifyError: a weight is used in a way that has no form on factors.
    """
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def pure(params, rest, args, kwargs):
        module = nnx.merge(graph, params, rest)
        out = module(*args, **kwargs)
        return out, nnx.split(module, nnx.Param, ...)[2]

    out, rest = lift(pure, on_dense=on_dense)(params, rest, args, kwargs)
    nnx.update(model, rest)
    return out
