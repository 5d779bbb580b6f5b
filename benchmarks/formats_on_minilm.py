"""Formats on a trained sentence encoder: a mixture by rules, each alone, the planner's choice.

all-MiniLM-L6-v2 with its layers stacked, so that they may share bases. Every model keeps the same
share of the encoder's matrices, in parameters of one dtype and so in bytes; the score is the mean
cosine of held-out embeddings to the dense model's. Calibration and evaluation take different files
of the standard library, and losses are measured under the statistics of both: a format that fits
the calibration's noise shows in the difference. The mixture's word table is compressed too, the
others' is not. Seeds draw the calibration texts and their probes.

    python benchmarks/formats_on_minilm.py [--keep 0.5] [--calibration 64 384] [--seeds 0 1 2]
                                           [--sensitivity] [--pairs 200]
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import machine, publish
from rich.console import Console
from rich.table import Table

import lrjax as lr
from lrjax import trees
from lrjax.calibrate import Probes
from lrjax.decompose import (
    BLAST,
    NMF,
    SVD,
    BlockSVD,
    Kronecker,
    SharedBasis,
    Spec,
    TensorTrain,
    Tucker,
)
from lrjax.demo import corpus, weights
from lrjax.demo.encode import Tokenizer, batches
from lrjax.demo.evaluate import Task
from lrjax.metrics import TwoSided, default_kind
from lrjax.plan.binding import bind
from lrjax.zoo import load, sentence_embedder
from lrjax.zoo.stack import scan_layers

KERNELS, WORDS = "encoder/**/kernel", "embeddings/word/embedding"
HEADS = Tucker(modes=(384, 12, 32), smallest=2)  # d_model, heads, head_dim

FORMATS: dict[str, Mapping[str, Spec]] = {
    "SVD": {KERNELS: SVD()},
    "Tucker": {"encoder/**/attention/*/kernel": HEADS, KERNELS: Tucker()},
    "Kronecker": {KERNELS: Kronecker(shape=(32, 2), sweeps=2)},
    "TensorTrain": {KERNELS: TensorTrain(count=2)},
    "BlockSVD": {KERNELS: BlockSVD()},
    "BLAST": {KERNELS: BLAST(sweeps=15)},
    "SharedBasis": {KERNELS: SharedBasis()},
    "semi-NMF": {KERNELS: NMF(iterations=60)},
}
SENSED = 48
"""Functions of the calibration by which sensitivities are measured."""

LOOSE: Mapping[str, Spec] = {KERNELS: SVD(metric=TwoSided(center=True))}
"""Second moments as they are, not shrunk as by default; another metric, so not a candidate."""

MIXTURE: Mapping[str, Spec] = {
    WORDS: BlockSVD(grid=(6, 1)),
    "encoder/**/query/kernel": HEADS,
    "encoder/**/key/kernel": SharedBasis(),
    "encoder/**/value/kernel": TensorTrain(count=2),
    "encoder/**/attention/output/kernel": BLAST(sweeps=15),
    "encoder/**/up/kernel": Kronecker(shape=(32, 2), sweeps=2),
    "encoder/**/down/kernel": NMF(iterations=60),
}


def candidates(names: Sequence[str]) -> Mapping[str, tuple[Spec, ...]]:
    """Every format for every kernel, SVD first: it is what stays where none helps."""
    attention = "encoder/**/attention/*/kernel"
    every = lambda glob: tuple(FORMATS[n].get(glob, FORMATS[n][KERNELS]) for n in names)
    return {attention: every(attention), KERNELS: every(KERNELS)}


class Bench:
    """The encoder, what calibration saw, and the score of a compressed one."""

    def __init__(self, pairs: int, calibration: int, seed: int) -> None:
        folder = weights.find()
        model, self.params = scan_layers(*load(folder))
        dense = sentence_embedder(model)
        self.embed = jax.jit(lr.lift(dense))
        given, held_out = corpus.split(corpus.read())
        tokenize = Tokenizer(folder)
        cut = lambda ps: tuple(
            batches(tokenize([*(p.query for p in ps), *(p.document for p in ps)]))
        )
        self.task = Task(self.embed, cut(held_out[:pairs]), pairs)
        see = lambda pairs: lr.calibrate(
            lambda params, batch: dense(params, *batch),
            self.params,
            [(b.ids, b.mask) for b in cut(pairs)],
            mask=lambda batch: batch[1],
            select=(KERNELS, WORDS),
            probes=Probes(seed=seed),
        )
        drawn = np.random.default_rng(seed).permutation(len(given))[:calibration]
        self.stats = see([given[i] for i in drawn])
        self.probe = [(b.ids, b.mask) for b in cut([given[i] for i in drawn[:SENSED]])]
        self.dense = dense
        self.others = see(held_out[:pairs])
        self.reference = self.task.embeddings(self.params)

    def run(self, name: str, rules: Any, keep: float, sensed: bool = False) -> dict[str, Any]:
        """Plan, compress and score; also what the plan predicted and the report measured."""
        start = time.perf_counter()
        sensitivity = None
        if sensed:
            sensitivity = lr.sensitivity(
                lambda params, batch: self.dense(params, *batch),
                self.params,
                rules,
                self.probe,
                self.stats,
                keep=keep,
            )
        measured = time.perf_counter()
        # Of the mixture every weight keeps the same share, so that each format has one.
        groups = rules if rules is MIXTURE else (KERNELS,)
        budget = {glob: lr.Budget(keep=keep) for glob in groups}
        chosen = lr.plan(
            self.params, rules, budget=budget, stats=self.stats, sensitivity=sensitivity
        )
        planned = time.perf_counter()
        small = jax.block_until_ready(lr.compress(self.params, chosen, self.stats))
        solved = time.perf_counter()
        found = self.task.embeddings(small)
        cosine, recall = self.task.scores(found, self.reference)
        report = lr.report(self.params, small, self.stats, chosen)
        paths, entries = [r.path for r in report.rows], chosen.entries
        return {
            "name": name,
            "cosine": cosine,
            "recall@1": recall[1],
            "keep": chosen.keep,
            "bytes": lr.cost(small).bytes,
            "predicted": sum(e.loss for e in entries) / sum(e.total for e in entries),
            "loss": self.loss(small, paths, self.stats),
            "held_out_loss": self.loss(small, paths, self.others),
            "formats": {r.path: f"{r.format} {r.ranks}" for r in report.rows},
            "reasons": {e.path: e.reason for e in chosen.entries},
            "sensitivity": sensitivity,
            "sensitivity_s": measured - start,
            "plan_s": planned - measured,
            "solve_s": solved - planned,
            "total_s": time.perf_counter() - start,
            "params": small,
            "plan": chosen,
        }

    def loss(self, small: Any, paths: Sequence[str], stats: lr.Stats) -> float:
        """What the weights lose together, as a share of dropping them, to second order."""
        before, after = (trees.flatten(tree)[0] for tree in (self.params, small))
        lost = total = 0.0
        for path in paths:
            seen, layout = stats.of(path), stats.usage[path].layout
            delta = before[path] - lr.densify(after[path])
            bound, whole = (
                bind(path, w, layout, default_kind(seen), seen) for w in (delta, before[path])
            )
            # each matrix counts by the tokens that it sees
            lost += float(jnp.sum(seen.rows.count * bound.metric.loss(bound.matrix)))
            total += float(jnp.sum(seen.rows.count * whole.metric.loss(whole.matrix)))
        return lost / total


def main() -> None:
    """Run, print, and publish."""
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    args.add_argument("--keep", type=float, default=0.5)
    args.add_argument("--pairs", type=int, default=120)
    args.add_argument("--calibration", type=int, nargs="+", default=[64, 384], help="functions")
    args.add_argument("--seeds", type=int, nargs="+", default=[0])
    args.add_argument("--sensitivity", action="store_true", help="measure it before every plan")
    args.add_argument("--only", nargs="*", help="models to run; its formats are the candidates")
    args.add_argument("--out", type=Path)
    given = args.parse_args()
    console, begin, rows = Console(width=160), time.perf_counter(), []
    for functions, seed in itertools.product(given.calibration, given.seeds):
        bench = Bench(given.pairs, functions, seed)
        seen = {"functions": functions, "seed": seed, "tokens": int(bench.stats.tokens)}
        console.print(f"calibrated on {seen}, {time.perf_counter() - begin:.0f} s")
        mine = [seen | row for row in compare(bench, given, console)]
        show(console, mine)
        rows += mine
    sizes = {"keep": given.keep, "evaluated_functions": given.pairs}
    seconds = time.perf_counter() - begin
    publish({"machine": machine(), **sizes, "rows": rows, "seconds": seconds}, given.out)


def compare(bench: Bench, given: argparse.Namespace, console: Console) -> Iterator[dict[str, Any]]:
    """The mixture, each format alone, and the choice among them."""
    only = given.only
    named = [name for name in FORMATS if not only or name in only]
    wanted: dict[str, Any] = {
        "mixture": MIXTURE,
        **FORMATS,
        "SVD, not shrunk": LOOSE,
        "chosen": candidates(named),
    }
    for name, rules in wanted.items():
        if only and name not in only:
            continue
        row = bench.run(name, rules, given.keep, given.sensitivity)
        if name == "mixture":
            row["reloads"] = reloads(bench, row)
        console.print(f"{name}: cosine {row['cosine']:.4f}, {row['total_s']:.0f} s")
        if name in ("mixture", "chosen"):
            console.print(str(row["plan"]), soft_wrap=True)
        yield {k: v for k, v in row.items() if k not in ("params", "plan")}


def reloads(bench: Bench, row: dict[str, Any]) -> bool:
    """Whether the artefact of mixed formats, read back, embeds a batch to the same bits."""
    first = bench.task.batches[0]
    with tempfile.TemporaryDirectory() as scratch:
        lr.save(Path(scratch) / "model", row["params"], plan=row["plan"])
        again = lr.load(Path(scratch) / "model")
    same = [
        np.asarray(bench.embed(p, first.ids, first.mask)) for p in (row["params"], again.params)
    ]
    return bool(np.array_equal(*same)) and again.plan == row["plan"]


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """The table: the score of every model of one calibration."""
    names = ("name", "cosine", "recall@1", "keep", "predicted", "loss", "held_out_loss", "total_s")
    table = Table(*names)
    for row in rows:
        form = lambda v: v if isinstance(v, str) else f"{v:.4g}"
        table.add_row(*(form(row[k]) for k in names))
    console.print(table)
    alone = [r["cosine"] for r in rows if r["name"] in FORMATS]
    chosen = [r["cosine"] for r in rows if r["name"] == "chosen"]
    if alone and chosen:
        console.print(f"chosen {chosen[0]:.4f}, best single format {max(alone):.4f}")


if __name__ == "__main__":
    main()
