"""A trained decoder with less to remember: what a smaller cache costs, form by form.

python benchmarks/latent_cache.py [--steps 700] [--out results.json]

A Llama reads the docstrings of Python's standard library byte by byte. It is trained here, and no
weight is tuned after it is restructured. Statistics come from calibration modules, losses from
modules that neither training nor calibration has seen. Bytes of the cache are those of its arrays.
"""

import argparse
import ast
import functools
import itertools
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import machine, publish
from rich.console import Console
from rich.table import Table

import lrjax as lr
from lrjax.metrics import Frobenius, Input
from lrjax.restructure import GroupHeads, LatentKV, restructure
from lrjax.zoo.llama import Llama, LlamaConfig

LENGTH, BATCH = 128, 16
CONFIG = LlamaConfig(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=LENGTH,
    tie_word_embeddings=True,
)
KEEPS = (1 / 2, 1 / 4, 1 / 8)


def docstrings(module: Path) -> str:
    """Every docstring of a module, one after the other."""
    tree = ast.parse(module.read_text("utf-8", errors="replace"))
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(text for text in found if text)


def texts() -> list[np.ndarray]:
    """Pieces [n, LENGTH] to train on, to calibrate on and to judge by, of different modules."""
    modules = sorted(Path(os.__file__).parent.rglob("*.py"))
    modules = [m for m in modules if not {"test", "tests", "site-packages"} & set(m.parts)]
    modules = [modules[i] for i in np.random.default_rng(0).permutation(len(modules))]
    bounds = 0, len(modules) * 8 // 10, len(modules) * 9 // 10, len(modules)
    found = []
    for a, b in itertools.pairwise(bounds):
        data = np.frombuffer("\n\n".join(map(docstrings, modules[a:b])).encode(), np.uint8)
        found.append(data[: len(data) // LENGTH * LENGTH].reshape(-1, LENGTH).astype(np.int32))
    return found


def bits(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Mean loss in bits a byte."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
    return losses.mean() / jnp.log(2)


def train(model: Llama, data: np.ndarray, steps: int) -> Any:
    """The parameters after so many batches."""
    params = model.init(jax.random.key(0), jnp.asarray(data[:1]))["params"]
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0, 3e-3, 50, steps, 1e-4))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, ids: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(lambda p: bits(model.apply({"params": p}, ids), ids))(
            params
        )
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, draw = optimizer.init(params), np.random.default_rng(1)
    for _ in range(steps):
        ids = data[draw.integers(len(data), size=BATCH)]
        params, state, _ = step(params, state, jnp.asarray(ids))
    return params


def forms(keep: float) -> dict[str, tuple[Any, lr.Budget | None]]:
    """What a cache of this share can be, by name: a structure, and a budget if it reads one."""
    heads, layers = CONFIG.num_attention_heads, CONFIG.num_hidden_layers
    floats = int(2 * CONFIG.hidden_size * keep)
    pairs = floats // 4
    plain, inputs = Frobenius(), Input(center=True)
    found = {
        "latent, plain SVD": (LatentKV(keep=keep, metric=plain), None),
        "latent, input metric": (LatentKV(keep=keep, metric=inputs), None),
        "latent, two-sided metric": (LatentKV(keep=keep), None),
        "latent, two-sided, ranks by layer": (LatentKV(), lr.Budget(kv_bytes=4 * layers * floats)),
        f"latent, {pairs} shared rotated pairs": (LatentKV(keep=keep, rotary=pairs), None),
    }
    if groups := int(heads * keep):
        found["fewer heads, averaged"] = GroupHeads(groups, averaged=True), None
        found["fewer heads, merged"] = GroupHeads(groups), None
    return found


def bytes_per_token(model: Llama) -> float:
    """Of the arrays that the layers keep, by the difference of two capacities."""
    sizes = [
        sum(x.nbytes for x in jax.tree.leaves(model.cache(1, capacity).parts))
        for capacity in (LENGTH, 2 * LENGTH)
    ]
    return (sizes[1] - sizes[0]) / LENGTH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="batches to train on")
    parser.add_argument("--out", type=Path, help="JSON file; default stdout")
    args = parser.parse_args()

    model, begin = Llama(CONFIG), time.perf_counter()
    learn, seen, unseen = texts()
    params = train(model, learn, args.steps)
    trained = time.perf_counter() - begin
    calibration = [jnp.asarray(seen[i : i + 32]) for i in range(0, 256, 32)]
    apply = lambda p, ids: model.apply({"params": p}, ids)
    stats = lr.calibrate(apply, params, calibration, loss=bits)
    test = jnp.asarray(unseen[np.random.default_rng(2).permutation(len(unseen))[:192]])

    def loss(model: Llama, params: Any) -> float:
        return float(jax.jit(lambda p: bits(model.apply({"params": p}, test), test))(params))

    view = Table(title="A smaller cache, nothing tuned afterwards", title_justify="left")
    for name in ("keep", "form", "bits a byte", "more", "cache bytes a token"):
        view.add_column(name, justify="left" if name == "form" else "right")
    dense = loss(model, params)
    rows = [{"keep": 1.0, "form": "dense", "bits": dense, "cache_bytes": bytes_per_token(model)}]
    for keep in KEEPS:
        for name, (structure, budget) in forms(keep).items():
            new = restructure(model, params, {"layer_*/attention": structure}, stats, budget=budget)
            own = {"bits": loss(*new), "cache_bytes": bytes_per_token(new[0])}
            rows.append({"keep": keep, "form": name, **own})
    for r in rows:
        more = f"{r['bits'] - dense:+.4f}"
        view.add_row(f"{r['keep']:g}", r["form"], f"{r['bits']:.4f}", more, f"{r['cache_bytes']:g}")
    Console(stderr=True).print(view)
    setting = {
        "config": CONFIG.to_json(),
        "steps": args.steps,
        "train_tokens": args.steps * BATCH * LENGTH,
        "train_seconds": round(trained, 1),
        "calibration_tokens": 256 * LENGTH,
        "test_tokens": int(test.size),
        "seeds": 1,
    }
    publish({"machine": machine(), "setting": setting, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
