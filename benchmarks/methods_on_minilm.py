"""Published ways to weigh an SVD, and the default plan, on a trained sentence encoder.

all-MiniLM-L6-v2: the matrices of its blocks, or its word table, at equal parameters of one dtype,
so at equal bytes. Every published method is one of our metrics by its name, with the ranks that its
paper takes: the same share for every weight. Statistics come from random probes of the embeddings,
without labels; seeds draw other calibration texts and other probes, and every text of the
evaluation is of another file. The score is the mean cosine of held-out embeddings to the dense
model's, and the recall of each function's own docstring.

    python benchmarks/methods_on_minilm.py [--part blocks words] [--keep 0.6] [--seeds 0 1 2]
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from harness import machine, publish
from rich.console import Console
from rich.table import Table

import lrjax as lr
from lrjax.calibrate import Fisher, Probes
from lrjax.decompose import SVD, Banded, Spec, WeightedLowRank
from lrjax.demo import corpus, weights
from lrjax.demo.encode import Tokenizer, batches
from lrjax.demo.evaluate import Task
from lrjax.metrics import ASVD, FWSVD, TFWSVD, Frobenius, Input, Kind, TwoSided
from lrjax.zoo import load, sentence_embedder

GLOBS = {"blocks": "encoder/**/kernel", "words": "embeddings/word/embedding"}

METHODS: dict[str, tuple[Spec, Kind]] = {
    "SVD": (SVD(), Frobenius()),
    "FWSVD": (SVD(), FWSVD()),
    "TFWSVD": (WeightedLowRank(), TFWSVD()),
    "ASVD": (SVD(), ASVD()),
    "SVD-LLM": (SVD(), Input()),
    "KFAC-SVD": (SVD(), TwoSided(shrink_rows=0.1, shrink_cols=0.3)),
}
"""arXiv:2207.00112, 2211.09718, 2312.05821, 2403.07378; KFAC-SVD with the shares of its code."""

SENSED = 36
"""Functions of the calibration on which the default plan may measure sensitivities, `sensed`."""

DEFAULT: dict[str, Spec] = {"blocks": SVD(), "words": Banded()}


class Bench:
    """The encoder, its texts, and the score of a compressed one."""

    def __init__(self, pairs: int) -> None:
        folder = weights.find()
        model, self.params = load(folder)
        self.dense, self.tokenize = sentence_embedder(model), Tokenizer(folder)
        self.given, held_out = corpus.split(corpus.read())
        self.task = Task(jax.jit(lr.lift(self.dense)), self.cut(held_out[:pairs]), pairs)
        self.reference = self.task.embeddings(self.params)

    def cut(self, pairs: Any) -> tuple[Any, ...]:
        """Queries and documents in batches."""
        return tuple(
            batches(self.tokenize([*(p.query for p in pairs), *(p.document for p in pairs)]))
        )

    def draw(self, functions: int, seed: int) -> list[Any]:
        """Batches of the texts that a seed draws, fewer ones first among more."""
        drawn = np.random.default_rng(seed).permutation(len(self.given))[:functions]
        return [(b.ids, b.mask) for b in self.cut([self.given[i] for i in drawn])]

    def see(self, glob: str, functions: int, seed: int) -> lr.Stats:
        """All that any of the methods asks for, from texts that the seed draws."""
        return lr.calibrate(
            lambda params, batch: self.dense(params, *batch),
            self.params,
            self.draw(functions, seed),
            probes=Probes(seed=seed),
            mask=lambda batch: batch[1],
            select=(glob,),
            magnitudes=True,
            fisher=Fisher(labels=Probes(seed=seed)),
        )

    def run(self, part: str, name: str, keep: float, stats: lr.Stats, seed: int) -> dict[str, Any]:
        """Plan, compress and score by one method."""
        start, options = time.perf_counter(), {}
        spec = DEFAULT[part]
        if name in METHODS:
            spec, kind = METHODS[name]
            options = {"metric": kind, "allocation": lr.Uniform()}
        rules, budget = {GLOBS[part]: spec}, lr.Budget(keep=keep)
        if name == "sensed":
            embed = lambda params, batch: self.dense(params, *batch)
            options["sensitivity"] = lr.sensitivity(
                embed, self.params, rules, self.draw(SENSED, seed), stats
            )
        plan = lr.plan(self.params, rules, budget=budget, stats=stats, **options)
        small = jax.block_until_ready(lr.compress(self.params, plan, stats))
        seconds = time.perf_counter() - start
        cosine, recall = self.task.scores(self.task.embeddings(small), self.reference)
        sizes = {"keep": plan.keep, "bytes": sum(e.bytes for e in plan.entries)}
        scores = {"cosine": cosine, "recall@1": recall[1], "recall@10": recall[10]}
        return {"part": part, "asked": keep, "name": name} | sizes | scores | {"seconds": seconds}


def main() -> None:
    """Every method at every keep, seed by seed."""
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    args.add_argument("--part", nargs="+", choices=GLOBS, default=list(GLOBS))
    args.add_argument("--keep", type=float, nargs="+", default=[0.6])
    args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args.add_argument("--calibration", type=int, default=256, help="functions")
    args.add_argument("--pairs", type=int, default=250)
    args.add_argument(
        "--only",
        nargs="*",
        help="methods to run; 'default' is the default plan, 'sensed' the same by sensitivities",
    )
    args.add_argument("--out", type=Path)
    given, begin = args.parse_args(), time.perf_counter()
    rows = list(compare(Bench(given.pairs), given))
    show(rows)
    about = {"calibration_functions": given.calibration, "evaluated_functions": given.pairs}
    seconds = time.perf_counter() - begin
    publish({"machine": machine(), **about, "rows": rows, "seconds": seconds}, given.out)


def compare(bench: Bench, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows, as they are found."""
    named = [n for n in (*METHODS, "default", "sensed") if not given.only or n in given.only]
    for part in given.part:
        for seed in given.seeds:
            stats = bench.see(GLOBS[part], given.calibration, seed)
            for keep in given.keep:
                for name in named:
                    row = {"seed": seed, **bench.run(part, name, keep, stats, seed)}
                    print(row, flush=True)
                    yield row


def show(rows: list[dict[str, Any]]) -> None:
    """Means over seeds, and the spread of the cosine."""
    table = Table("part", "asked", "method", "bytes", "cosine", "spread", "recall@1", "recall@10")
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["part"], row["asked"], row["name"]), []).append(row)
    for (part, keep, name), mine in groups.items():
        mean = lambda key, mine=mine: statistics.fmean(r[key] for r in mine)
        spread = statistics.pstdev(r["cosine"] for r in mine)
        scores = (mean("cosine"), spread, mean("recall@1"), mean("recall@10"))
        table.add_row(
            part, f"{keep:g}", name, f"{mean('bytes'):,.0f}", *map("{:.4f}".format, scores)
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
