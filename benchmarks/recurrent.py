"""What a step of a recurrent layer costs, dense and factored, and what its memory is worth.

    python benchmarks/recurrent.py [--quick] [--case TEXT] [--out results.json]
    python benchmarks/recurrent.py --tasks [--out results.json]

Steps: an LSTM layer over a text, forward; the median of a whole text over its steps. "stepwise"
multiplies the inputs in the loop, one token at a time; the others before it, all at once.

Tasks: GRUs trained from scratch whose recurrent kernel is dense, of low rank, or of low rank plus a
diagonal with no more parameters, on the adding problem and on copying (as arXiv:1603.03116, at
shorter delays); the mean over seeds of the held-out loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import Contestant, compete, machine, options, publish, table

from lrjax import ops
from lrjax.formats import Diagonal, LowRank, Sum, Tucker
from lrjax.zoo.recurrent import CELLS, GRUConfig, Layer, LSTMConfig

LENGTH = 200
CASES = {
    "batch 1, 512 units": (1, 256, 512),
    "batch 16, 512 units": (16, 256, 512),
    "batch 1, 1024 units": (1, 512, 1024),
}
SEEDS, STEPS, BATCH, UNITS = 3, 2000, 32, 64


def normal(seed: int, *shape: int) -> jax.Array:
    """A factor of unit gain."""
    return jax.random.normal(jax.random.key(seed), shape) / shape[-2] ** 0.5


def joint(gates: int, d: int, h: int, rank: int) -> LowRank:
    """All gates on one basis of the inputs."""
    return LowRank(normal(1, d, rank), normal(2, rank, gates * h), (d,), (gates, h), (1, 0, 2))


def forms(gates: int, d: int, h: int) -> dict[str, Any]:
    """Kernels [gates, d, h]: dense, and of half and a quarter of its parameters."""
    found = {"dense": normal(0, gates, d, h)}
    for keep in (0.5, 0.25):
        rank = int(keep * gates * d * h / (d + gates * h))
        found[f"joint, keep {keep}"] = joint(gates, d, h, rank)
        own = int(keep * d * h / (d + h))
        found[f"per gate, keep {keep}"] = LowRank(
            normal(1, gates, d, own), normal(2, gates, own, h)
        )
    r = int(d * 0.5)
    core = normal(3, r, 2, r)
    factors = (normal(4, d, r), normal(5, gates, 2), normal(6, h, r))
    found["tucker, half of each mode"] = Tucker(core, factors, (d,), (gates, h), (1, 0, 2))
    if d == h:
        values = jnp.ones((1, gates, h))
        low = joint(gates, d, h, int(0.25 * gates * d * h / (d + gates * h)))
        diagonal = Diagonal(values, (d,), (gates, h), (1, 0, 2))
        found["joint + diagonal, keep 0.25"] = Sum((low, diagonal))
    return found


def steps(batch: int, d: int, h: int) -> list[Contestant]:
    """The same layer, its recurrent and input kernels in each form."""
    layer, x = Layer(CELLS[LSTMConfig], h), normal(9, batch, LENGTH, d)
    hidden, inner = forms(4, h, h), forms(4, d, h)
    bias = jnp.zeros((4, h))
    hoisted = jax.jit(lambda params, x: layer.apply({"params": params}, x)[0])

    @jax.jit
    def stepwise(params: Any, x: jax.Array) -> jax.Array:
        def step(state: Any, now: jax.Array) -> Any:
            y, state = layer.apply({"params": params}, now[:, None], state)
            return state, y[:, 0]

        zero = jnp.zeros((batch, h))
        return jax.lax.scan(step, (zero, zero), x.swapaxes(0, 1))[1]

    found = []
    for name, kernel in hidden.items():
        given = inner.get(name, inner["joint, keep 0.25"])
        params = {
            "input": {"kernel": given, "bias": bias},
            "recurrent": {"kernel": kernel, "bias": bias},
        }
        kinds: list[tuple[str, Callable[..., Any]]] = [(name, hoisted)]
        if name in ("dense", "joint, keep 0.25"):
            kinds.append((f"{name}, stepwise", stepwise))
        for label, run in kinds:
            call = lambda run=run, params=params: run(params, x)
            found.append(Contestant(label, call, lambda _: 0.0, ours=True))
    return found


def adding(rng: np.random.Generator, length: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, and marks on two of them: the target is the sum of the marked, at the end."""
    x = np.zeros((BATCH, length, 2), np.float32)
    x[..., 0] = rng.random((BATCH, length))
    for row in x:
        row[[rng.integers(length // 2), rng.integers(length // 2, length)], 1] = 1
    return x, (x[..., 0] * x[..., 1]).sum(1, keepdims=True)


def copying(rng: np.random.Generator, delay: int = 40, count: int = 5) -> tuple[Any, Any]:
    """Five of eight symbols, a pause, and a signal: then the symbols again."""
    length = delay + 2 * count
    given = rng.integers(0, 8, (BATCH, count))
    x = np.zeros((BATCH, length, 10), np.float32)
    x[:, :, 8] = 1
    x[:, :count] = np.eye(10)[given]
    x[:, -count - 1] = np.eye(10)[9]
    return x, given


TASKS: dict[str, Any] = {"adding, 100 steps": (adding, 2, 1), "copying, 40 steps": (copying, 10, 8)}


def kernels() -> dict[str, Callable[[Any], Any]]:
    """Recurrent kernels [3, h, h] of a GRU to begin with, the factored ones of equal parameters."""
    h = UNITS
    low = lambda key, r: LowRank(
        jax.random.orthogonal(key, h)[:, :r], jax.random.normal(key, (r, 3 * h)) / r**0.5 / 2,
        (h,), (3, h), (1, 0, 2))  # fmt: skip
    diagonal = Diagonal(jnp.ones((1, 3, h)), (h,), (3, h), (1, 0, 2))
    found: dict[str, Callable[[Any], Any]] = {
        "dense": lambda key: jnp.stack(
            [jax.random.orthogonal(k, h) for k in jax.random.split(key, 3)]
        )
    }
    for r in (3, 9):
        # a diagonal for each gate costs 3 h of the (h + 3 h) r: three quarters of a rank
        found[f"low rank {r}"] = lambda key, r=r: low(key, r)
        found[f"low rank {r - 1} + diagonal"] = lambda key, r=r: Sum((low(key, r - 1), diagonal))
    return found


def learn(make: Any, wide: int, out: int, start: Callable[[Any], Any], steps: int) -> np.ndarray:
    """Held-out loss after training, for each seed."""
    layer, rng = Layer(CELLS[GRUConfig], UNITS), np.random.default_rng(0)
    xs, ys = (np.stack(z) for z in zip(*(make(rng) for _ in range(256)), strict=True))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))

    def loss(params: Any, x: Any, y: Any) -> jax.Array:
        states = layer.apply({"params": params["rnn"]}, x)[0]
        if out == 1:
            return jnp.mean((states[:, -1] @ params["head"] - y) ** 2)
        logits = states[:, -y.shape[1] :] @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def train(key: Any) -> jax.Array:
        one, two = jax.random.split(key)
        rnn = layer.init(one, jnp.zeros((1, 1, wide)))["params"]
        rnn = {**rnn, "recurrent": {**rnn["recurrent"], "kernel": start(two)}}
        params = {"rnn": rnn, "head": 0.1 * jax.random.normal(two, (UNITS, out))}

        def step(carry: Any, i: jax.Array) -> Any:
            params, state = carry
            grads = jax.grad(loss)(params, jnp.asarray(xs)[i % 240], jnp.asarray(ys)[i % 240])
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
        return jax.vmap(lambda x, y: loss(params, x, y))(xs[240:], ys[240:]).mean()

    return np.asarray(jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), SEEDS)))


def main() -> None:
    """Steps, or tasks."""
    parser = options(__doc__)
    parser.add_argument("--tasks", action="store_true")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.tasks:
        for task, (make, wide, out) in TASKS.items():
            for name, start in kernels().items():
                if args.case in f"{task}: {name}":
                    losses = learn(make, wide, out, start, 100 if args.quick else STEPS)
                    params = ops.cost(jax.eval_shape(start, jax.random.key(0))).params
                    row = {"task": task, "form": name, "params": params}
                    rows.append({**row, "loss": losses.mean().item(), "each": losses.tolist()})
                    print(rows[-1], flush=True)
    else:
        for case, shape in CASES.items():
            if args.case in case:
                found = compete(case, steps(*shape), seconds=1 if args.quick else args.seconds)
                table(found, [])
                rows += [{**r.to_json(), "step_us": 1e6 * r.median / LENGTH} for r in found]
    publish({"about": "recurrent layers", **machine(), "rows": rows}, args.out)


if __name__ == "__main__":
    main()
