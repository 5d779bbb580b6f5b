"""Tokens a second of a Llama of 100 million random weights: dense, factored, and the reference.

python benchmarks/decode.py [--quick] [--seconds 20] [--out results.json]

Prompts of 32 tokens are read, and what is timed is the decoding after them, in one process, in
turn, on as many threads as the process may use. The reference is the same checkpoint in PyTorch,
where torch and transformers can be imported: its own cache, one token at a time, no gradients. The
factored form keeps half of the parameters of every kernel. Then the time to compile the decode
step at several depths, with layers unrolled and scanned.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from harness import machine, publish
from rich.console import Console
from rich.table import Table

from lrjax import trees, zoo
from lrjax.formats import LowRank
from lrjax.generate import Greedy, decode
from lrjax.zoo.load import shapes_of

PROMPT, NEW = 32, 33
Decode = Callable[[int], float]


def llama(layers: int, scanned: bool = False) -> zoo.Llama:
    """A decoder of 100 million parameters at 12 layers."""
    config = zoo.LlamaConfig(
        vocab_size=16384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=4,
    )
    return zoo.Llama(config, scanned)


def drawn(model: zoo.Llama) -> Any:
    """Random weights, and scales of one."""
    draw = np.random.default_rng(0)
    leaf = lambda shape: draw.normal(0, 0.02, shape) if len(shape) > 1 else np.ones(shape)
    shapes = shapes_of(model).items()
    return unflatten_dict({path: jnp.float32(leaf(s.shape)) for path, s in shapes}, sep="/")


def factored(params: Any, keep: float) -> Any:
    """Every kernel as two factors of so large a share of its parameters, drawn likewise."""
    draw = np.random.default_rng(1)

    def factor(path: str, w: jax.Array) -> Any:
        if not path.endswith("kernel"):
            return w
        m, n = w.shape
        rank = int(keep * m * n / (m + n))
        left, right = (np.float32(draw.normal(0, 0.1, shape)) for shape in ((m, rank), (rank, n)))
        return LowRank(jnp.asarray(left), jnp.asarray(right))

    return trees.map_weights(factor, params, with_path=True)


def ours(model: zoo.Llama, params: Any) -> Decode:
    """Seconds a step for a batch."""
    stop, key = jnp.zeros(0, jnp.int32), jax.random.key(0)

    def run(batch: int) -> float:
        ids = jnp.full((batch, PROMPT), 7, jnp.int32)
        writing = decode.begin(
            model, params, ids, ids > 0, Greedy(), stop, key, room=64, dtype=jnp.dtype("float32")
        )
        jax.block_until_ready(writing)
        begin = time.perf_counter()
        out = decode.finish(model, params, writing, Greedy(), stop, jnp.int32(NEW))
        jax.block_until_ready(out)
        return (time.perf_counter() - begin) / (NEW - 1)

    return run


def reference(model: zoo.Llama, params: Any) -> Decode | None:
    """The same of the reference library, if it is there."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        zoo.save(Path(folder) / "llama", model, params)
        theirs = transformers.LlamaForCausalLM.from_pretrained(
            Path(folder) / "llama", dtype=torch.float32
        ).eval()

    @torch.inference_mode()
    def run(batch: int) -> float:
        out = theirs(torch.full((batch, PROMPT), 7), use_cache=True)
        begin = time.perf_counter()
        for _ in range(NEW - 1):
            token = out.logits[:, -1:].argmax(-1)
            out = theirs(token, past_key_values=out.past_key_values, use_cache=True)
        return (time.perf_counter() - begin) / (NEW - 1)

    return run


def compete(forms: dict[str, Decode], batch: int, seconds: float) -> list[dict[str, Any]]:
    """Tokens a second of every form, the median of interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for run in forms.values():
        run(batch)
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times["dense"]) < 3:
        for name, run in forms.items():
            times[name].append(run(batch))
    return [
        {
            "batch": batch,
            "form": name,
            "tokens_per_second": round(batch / statistics.median(own), 1),
            "ms_per_step": round(1e3 * statistics.median(own), 3),
            "least_ms_per_step": round(1e3 * min(own), 3),
            "rounds": len(own),
        }
        for name, own in times.items()
    ]


def compile_times(depths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Seconds to trace and compile one decode step, without any weights."""
    rows = []
    for depth in depths:
        for scanned in (False, True):
            model = llama(depth, scanned)
            leaves = unflatten_dict(dict(shapes_of(model)), sep="/")
            cache = jax.eval_shape(lambda model=model: model.cache(1, 96))
            token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
            step = jax.jit(lambda p, t, c, m=model: m.apply({"params": p}, t, cache=c, last=True))
            begin = time.perf_counter()
            step.lower(leaves, token, cache).compile()
            form = "scanned" if scanned else "unrolled"
            seconds = round(time.perf_counter() - begin, 2)
            rows.append({"layers": depth, "form": form, "seconds": seconds})
    return rows


def show(speeds: list[dict[str, Any]], compiled: list[dict[str, Any]]) -> None:
    """Both tables, on stderr."""
    for rows in (speeds, compiled):
        view = Table(*(name.replace("_", " ") for name in rows[0]))
        for row in rows:
            view.add_row(*map(str, row.values()))
        Console(stderr=True).print(view)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two layers, a second each")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each batch size")
    parser.add_argument("--out", type=Path, help="JSON file; default stdout")
    args = parser.parse_args()
    model = llama(2 if args.quick else 12)
    params = drawn(model)
    half = factored(params, 0.5)
    forms = {"dense": ours(model, params), "factored, keep 0.5": ours(model, half)}
    theirs = reference(model, params)
    if theirs is not None:
        forms["reference, PyTorch"] = theirs
    speeds = [
        row
        for batch in (1, 8)
        for row in compete(forms, batch, 1.0 if args.quick else args.seconds)
    ]
    compiled = compile_times((2, 4) if args.quick else (4, 12, 24, 48))
    show(speeds, compiled)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    result = {"machine": machine(), "parameters": size, "prompt": PROMPT, "new": NEW - 1}
    publish({**result, "speeds": speeds, "compile": compiled}, args.out)


if __name__ == "__main__":
    main()
