"""Plain smaller layers against factors and against magnitude, on a trained sentence encoder.

all-MiniLM-L6-v2. Every row keeps the same share of the parameters of the layers that it touches;
the score is the mean cosine of held-out embeddings to the dense model's. Calibration and evaluation
take different files of the standard library.

    python benchmarks/restructure.py [--keep 0.5 0.75] [--out results.json]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from harness import machine, publish
from rich.console import Console
from rich.table import Table

import lrjax as lr
from lrjax import trees
from lrjax.demo import corpus, weights
from lrjax.demo.encode import Tokenizer, batches
from lrjax.demo.evaluate import Task
from lrjax.restructure import QueryKeyHeads, Units, ValueHeads, restructure
from lrjax.zoo import load, sentence_embedder

MLP, ATTENTION = "encoder/*/mlp", "encoder/*/attention"

Model = tuple[Any, Any]


class Bench:
    """The encoder, what calibration saw, and the score of a cut one."""

    def __init__(self, pairs: int, calibration: int) -> None:
        folder = weights.find()
        self.model, self.params = load(folder)
        given, held_out = corpus.split(corpus.read())
        tokenize = Tokenizer(folder)
        cut = lambda ps: tuple(
            batches(tokenize([*(p.query for p in ps), *(p.document for p in ps)]))
        )
        self.batches, self.pairs = cut(held_out[:pairs]), pairs
        dense = sentence_embedder(self.model)
        self.stats = lr.calibrate(
            lambda params, batch: dense(params, *batch),
            self.params,
            [(b.ids, b.mask) for b in cut(given[:calibration])],
            mask=lambda batch: batch[1],
            select=("encoder/**/kernel",),
        )
        self.reference = self.task(self.model).embeddings(self.params)

    def task(self, model: Any) -> Task:
        """Held-out pairs, embedded by a model, its weights dense or factored."""
        return Task(jax.jit(sentence_embedder(model)), self.batches, self.pairs)

    def cut(self, rules: Any) -> Model:
        """By calibrated structures."""
        return restructure(self.model, self.params, rules, self.stats)

    def magnitude(self, keep: float) -> Model:
        """The MLPs' units of the largest weights, nothing made up for."""
        leaves, sizes = dict(trees.flatten(self.params)[0]), {}
        for i in range(self.model.config.num_hidden_layers):
            path = f"encoder/layer_{i}/mlp"
            up, down = (np.asarray(leaves[f"{path}/{k}/kernel"]) for k in ("up", "down"))
            sizes[i] = round(keep * len(down))
            price = np.linalg.norm(up, axis=0) * np.linalg.norm(down, axis=1)
            units = np.sort(np.argsort(-price)[: sizes[i]])
            leaves[f"{path}/up/bias"] = leaves[f"{path}/up/bias"][units]
            leaves |= {f"{path}/up/kernel": up[:, units], f"{path}/down/kernel": down[units]}
        config = self.model.config.with_mlp_sizes(sizes)
        return self.model.clone(config=config), unflatten_dict(leaves, sep="/")

    def factored(self, glob: str, keep: float) -> Model:
        """Low rank, at the calibrated best ranks."""
        budget = lr.Budget(keep=keep)
        plan = lr.plan(self.params, {glob: lr.SVD()}, budget=budget, stats=self.stats)
        return self.model, lr.compress(self.params, plan, self.stats)

    def run(self, name: str, make: Callable[[], Model], keep: float) -> dict[str, Any]:
        """Make a model and score it."""
        start = time.perf_counter()
        model, params = jax.block_until_ready(make())
        seconds = time.perf_counter() - start
        task = self.task(model)
        found = task.embeddings(params)
        cosine, recall = task.scores(found, self.reference)
        size = lr.cost(params).params / lr.cost(self.params).params
        row = {"name": name, "keep": keep, "of_model": size, "cosine": cosine}
        return row | {"recall@1": recall[1], "seconds": seconds}


def main() -> None:
    """Run, print, and publish."""
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    args.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.75])
    args.add_argument("--pairs", type=int, default=60)
    args.add_argument("--calibration", type=int, default=128, help="functions")
    args.add_argument("--out", type=Path)
    given = args.parse_args()
    bench, rows = Bench(given.pairs, given.calibration), []
    rows.append(bench.run("dense", lambda: (bench.model, bench.params), 1.0))
    for keep in given.keep:
        heads = {ATTENTION: (ValueHeads(keep=keep), QueryKeyHeads(keep=keep))}
        ways = {
            "MLP: largest units": lambda: bench.magnitude(keep),  # noqa: B023
            "MLP: Units, uniform": lambda: bench.cut({MLP: Units(keep=keep, uniform=True)}),  # noqa: B023
            "MLP: Units": lambda: bench.cut({MLP: Units(keep=keep)}),  # noqa: B023
            "MLP: SVD": lambda: bench.factored(f"{MLP}/*/kernel", keep),  # noqa: B023
            "attention: heads": lambda: bench.cut(heads),  # noqa: B023
            "attention: SVD": lambda: bench.factored(f"{ATTENTION}/*/kernel", keep),  # noqa: B023
        }
        rows += [bench.run(name, make, keep) for name, make in ways.items()]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:.4g}" for v in row.values()))
    Console(width=120).print(table)
    publish({"machine": machine(), "rows": rows}, given.out)


if __name__ == "__main__":
    main()
