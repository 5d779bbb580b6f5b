"""Attention over long texts: its time, and its error on a trained encoder's activations.

    python benchmarks/long_texts.py [--quick] [--case TEXT] [--error] [--out results.json]

Time: one call, 12 heads of 32, a text of 512 to 8192 tokens, exact against Nystrom and Linformer.
Error: queries, keys and values of all-MiniLM-L6-v2 on docstrings joined to texts of 512 tokens; the
share of the attention's output that is lost, a mean over its layers; and of the whole encoder the
mean cosine of text embeddings to the exact ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Contestant, compete, machine, options, publish, table

from lrjax.demo import corpus, weights
from lrjax.zoo import Bert, attention, load, long, nystrom, sentence_embedder

LENGTHS, LANDMARKS = (512, 2048, 8192), (8, 16, 32, 64, 128, 256)
HEADS, D = 12, 32


def attentions(length: int) -> list[Contestant]:
    """Every kind on the same text; the error is to exact attention."""
    shape = (1, length, HEADS, D)
    q, k, v = (jax.random.normal(jax.random.key(i), shape) for i in range(3))
    places = long.neighbours(length, 64)
    kinds = {
        "exact": lambda q, k, v: attention.attend(q, k, v, None),
        "Nystrom, 64 landmarks": lambda q, k, v: nystrom.nystrom(q, k, v, landmarks=64),
        "Linformer, 64 places": lambda q, k, v: long.linformer(q, k, v, keys=places, values=places),
        "exact, causal": lambda q, k, v: attention.attend(q, k, v, attention.causal(length, None)),
        "Nystrom, causal, chunks of 256": lambda q, k, v: nystrom.causal_nystrom(
            q, k, v, landmarks=64, chunk=256
        ),
    }
    found = []
    for name, f in kinds.items():
        run = jax.jit(f)
        call = lambda run=run: run(q, k, v)
        found.append(Contestant(name, call, lambda _: 0.0, not name.startswith("exact")))
    return found


def errors(count: int) -> list[dict[str, Any]]:
    """What few landmarks lose on real texts."""
    import tokenizers

    folder = weights.find()
    model, params = load(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pairs = corpus.split(corpus.read())[1]
    text = tokenizer.encode(" ".join(p.document for p in pairs[: 40 * count])).ids
    ids = jnp.asarray(np.array(text[1 : 1 + 511 * count]).reshape(count, 511))
    ids = jnp.pad(ids, ((0, 0), (1, 0)), constant_values=text[0])
    seen: list[Any] = []

    class Watch(long.Exact):
        """Exact, and a record of what it is given."""

        def mix(self, layer: Any, q: Any, k: Any, v: Any, visible: Any, scale: Any = None) -> Any:
            seen.append((q, k, v, scale))
            return super().mix(layer, q, k, v, visible, scale)

    Bert(model.config, pooled=model.pooled, attention=Watch()).apply({"params": params}, ids)
    embed = lambda kind: jax.jit(sentence_embedder(model.clone(attention=kind)))(
        params, ids, jnp.ones_like(ids)
    )
    want = embed(long.Exact())
    rows = []
    for landmarks in LANDMARKS:
        lost = []
        for q, k, v, scale in seen:
            exact = attention.attend(q, k, v, None, scale=scale)
            near = nystrom.nystrom(q, k, v, landmarks=landmarks, scale=scale)
            lost.append(float(jnp.linalg.norm(near - exact) / jnp.linalg.norm(exact)))
        cosine = float((embed(long.Nystrom(landmarks)) * want).sum(-1).mean())
        rows.append(
            {"landmarks": landmarks, "lost": np.mean(lost), "layers": lost, "cosine": cosine}
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Times, or errors."""
    parser = options(__doc__)
    parser.add_argument("--error", action="store_true")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.error:
        rows = errors(2 if args.quick else 8)
    else:
        for length in LENGTHS[:1] if args.quick else LENGTHS:
            if args.case in f"{length} tokens":
                # Each by itself: beside gigabytes of scores the others wait for fresh memory.
                each = (compete(f"{length} tokens", [c], seconds=args.seconds)
                        for c in attentions(length))  # fmt: skip
                found = [row for rows in each for row in rows]
                table(found, [])
                rows += [r.to_json() for r in found]
    publish({"about": "attention over long texts", **machine(), "rows": rows}, args.out)


if __name__ == "__main__":
    main()
