"""Containers of tensorly, both ways; its backend is neither set nor asked for more than arrays."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from lrjax.errors import ShapeError, message
from lrjax.formats.cp import CP
from lrjax.formats.factored import Factored
from lrjax.formats.tensor_ring import TensorRing
from lrjax.formats.tensor_train import TensorTrain
from lrjax.formats.tucker import Tucker


def from_tensorly(container: Any) -> Factored:
    """A container of tensorly as a factored weight of the same factors.

    That is a CPTensor, TuckerTensor, TTTensor, TTMatrix or TRTensor. A TTTensor [n_1, ..., n_d] is
    a train of d row digits, and its weight [n_1, ..., n_d, 1]; so it is with a TRTensor and rings.

    Raises:
      TypeError: another container.
    """
    match type(container).__name__:
        case "CPTensor":
            factors = tuple(map(_array, container.factors))
            weights = container.weights
            ones = jnp.ones(factors[0].shape[1], factors[0].dtype)
            return CP(ones if weights is None else _array(weights), factors)
        case "TuckerTensor":
            return Tucker(_array(container.core), tuple(map(_array, container.factors)))
        case "TTTensor" | "TRTensor" as kind:
            cores = tuple(_array(core)[:, :, None] for core in container.factors)
            chain = TensorTrain if kind == "TTTensor" else TensorRing
            return chain(cores, rows=tuple(core.shape[1] for core in cores), cols=(1,))
        case "TTMatrix":
            return TensorTrain(tuple(map(_array, container.factors)))
        case other:
            expected = "a CPTensor, TuckerTensor, TTTensor, TTMatrix or TRTensor"
            raise TypeError(message(got=other, expected=expected, todo="Convert it in tensorly."))


def to_tensorly(w: CP | Tucker | TensorTrain | TensorRing) -> Any:
    """A factored weight as tensorly's container of its modes, in arrays of the backend in use.

    How modes regroup into dense dimensions (`rows`, `cols`, `order`) has no counterpart there. A
    train whose columns have no digits is a TTTensor, any other a TTMatrix, padding included. A ring
    is a TRTensor whose modes are its pairs of digits.

    Raises:
      ShapeError: the weight has stack axes.
      TypeError: the format has no container.
    """
    import tensorly as tl
    from tensorly.cp_tensor import CPTensor
    from tensorly.tr_tensor import TRTensor
    from tensorly.tt_matrix import TTMatrix
    from tensorly.tt_tensor import TTTensor
    from tensorly.tucker_tensor import TuckerTensor

    move = lambda x: tl.tensor(np.asarray(x))
    match w:
        case CP(scale, factors):
            _check_single(w, scale.ndim - 1)
            return CPTensor((move(scale), [move(f) for f in factors]))
        case Tucker(core, factors):
            _check_single(w, core.ndim - len(factors))
            full = [np.eye(n) if f is None else f for n, f in zip(core.shape, factors, strict=True)]
            return TuckerTensor((move(core), [move(np.asarray(f, core.dtype)) for f in full]))
        case TensorTrain(cores):
            _check_single(w, cores[0].ndim - 4)
            if set(w.modes[1]) == {1}:
                return TTTensor([move(core[:, :, 0]) for core in cores])
            return TTMatrix([move(core) for core in cores])
        case TensorRing(cores):
            _check_single(w, cores[0].ndim - 4)
            return TRTensor([move(c.reshape(c.shape[0], -1, c.shape[-1])) for c in cores])
    expected = "a CP, Tucker, TensorTrain or TensorRing weight"
    todo = "Densify it, and decompose it in tensorly."
    raise TypeError(message(got=type(w).__name__, expected=expected, todo=todo))


def _array(x: Any) -> Any:
    """An array of any backend as one of JAX."""
    return jnp.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x))


def _check_single(w: Factored, stack: int) -> None:
    if stack:
        got = f"{type(w).__name__} with {stack} stack axes"
        todo = "Convert one index of the stack at a time: jax.tree.map(lambda x: x[0], w)."
        raise ShapeError(message(got=got, expected="a single weight", todo=todo))
