"""The word table of a trained sentence encoder by one basis, or by bands of frequency.

all-MiniLM-L6-v2, table 30522 x 384, blocks untouched. Words are counted in the calibration texts;
the loss is weighed by the counts of these, and of held-out texts; the score is the mean cosine of
held-out embeddings to the dense model's. Every form keeps the same share of the table's parameters,
the order of the words included.

    python benchmarks/embeddings.py [--keep 0.5 0.25] [--calibration 1024] [--out results.json]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from harness import machine, publish
from rich.console import Console
from rich.table import Table

import lrjax as lr
from lrjax.decompose import SVD, Banded
from lrjax.demo import corpus, weights
from lrjax.demo.encode import Tokenizer, batches
from lrjax.demo.evaluate import Task
from lrjax.metrics import Frobenius, Input
from lrjax.zoo import load, sentence_embedder

WORDS = "embeddings/word/embedding"

FORMS: dict[str, Any] = {
    "SVD": (SVD(), Frobenius()),
    "SVD by frequency": (SVD(), Input()),
    **{
        f"{count} bands, 1:{ratio}, floor {floor}": (
            Banded(count=count, ratio=ratio, floor=floor),
            Input(),
        )
        for count, ratio, floor in (
            (1, 1, 0.1),
            (2, 4, 0.1),
            (2, 8, 0.1),
            (3, 8, 0.1),
            (6, 3, 0.1),
            (4, 4, 0.01),
            (4, 4, 0.1),
            (4, 4, 0.3),
            (4, 4, 1.0),
        )
    },
}
"""One band is one basis for all: an SVD by frequency, with a floor."""


def counted(table: Any, texts: list[list[int]]) -> lr.Stats:
    """How often each word is looked up."""
    ids = np.concatenate([np.asarray(t, np.int32) for t in texts])
    return lr.calibrate(lambda p, ids: p["embedding"][ids], {"embedding": table}, [ids])


def lost(table: Any, small: Any, stats: lr.Stats) -> float:
    """The squared error weighed by frequency, as a share of the whole."""
    weight = np.asarray(stats.of("embedding").rows.second, np.float64)
    dense = np.asarray(table, np.float64)
    missed = np.asarray(lr.densify(small), np.float64) - dense
    return float((missed**2).sum(1) @ weight / ((dense**2).sum(1) @ weight))


def main() -> None:
    """Every form at every keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--calibration", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=150)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = weights.find()
    model, params = load(folder)
    table = lr.trees.get(params, WORDS)
    given, held_out = corpus.split(corpus.read())
    tokenize = Tokenizer(folder)
    texts = lambda pairs: tokenize([*(p.query for p in pairs), *(p.document for p in pairs)])
    stats, others = (counted(table, texts(p[: args.calibration])) for p in (given, held_out))
    embed = jax.jit(sentence_embedder(model))
    cut = tuple(batches(texts(held_out[: args.pairs])))
    task = Task(embed, cut, args.pairs)
    reference = task.embeddings(params)
    rows = []
    for keep in args.keep:
        for name, (spec, kind) in FORMS.items():
            start = time.perf_counter()
            own = {"embedding": table}
            plan = lr.plan(own, {"**": spec}, budget=lr.Budget(keep=keep), stats=stats, metric=kind)
            small = jax.block_until_ready(lr.compress(own, plan, stats)["embedding"])
            seconds = time.perf_counter() - start
            found = task.embeddings(lr.trees.replace(params, {WORDS: small}))
            cosine, recall = task.scores(found, reference)
            rows.append({
                "keep": keep,
                "form": name,
                "rank": small.rank,
                "params": lr.cost(small).params,
                "calibration": lost(table, small, stats),
                "held_out": lost(table, small, others),
                "cosine": cosine,
                "recall": recall[1],
                "seconds": seconds,
            })  # fmt: skip
            print(rows[-1], flush=True)
    view = Table()
    for column in ("keep", "form", "loss", "held-out loss", "cosine", "recall@1", "seconds"):
        view.add_column(column)
    for r in rows:
        numbers = (r["calibration"], r["held_out"], r["cosine"], r["recall"])
        view.add_row(
            f"{r['keep']}", r["form"], *(f"{x:.4f}" for x in numbers), f"{r['seconds']:.1f}"
        )
    Console(stderr=True).print(view)
    publish({"about": "banded word table", **machine(), "rows": rows}, args.out)


if __name__ == "__main__":
    main()
