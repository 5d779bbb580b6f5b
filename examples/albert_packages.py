# %% [markdown]
# # ALBERT: one block for all layers, and it is factored once
#
# An ALBERT has one copy of its block, which every layer uses, and a narrow word table. It learns to
# tell from 32 words of source code which package of Python's standard library they are from. Then
# its table and its block are factored by rules. A weight that several layers share is one weight:
# it is calibrated on what all of them see, factored once and counted once. It takes about half a
# minute on a laptop.

# %%
import collections
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrjax as lr

# %% [markdown]
# ## Words from five packages
#
# Modules are shuffled; most are for learning, some for calibration, some for judging.

# %%
PACKAGES = ("asyncio", "email", "multiprocessing", "unittest", "xml")
LENGTH, WORDS = 32, 2000
rng = np.random.default_rng(0)
files = [
    (k, f) for k, p in enumerate(PACKAGES) for f in (Path(os.__file__).parent / p).rglob("*.py")
]
files = sorted(f for f in files if "test" not in f[1].parts)
rng.shuffle(files)
words = [re.findall(r"\w+", file.read_text(errors="ignore")) for _, file in files]
counts = collections.Counter(word for text in words for word in text)
index = {word: k + 1 for k, (word, _) in enumerate(counts.most_common(WORDS - 1))}


def pieces(part):
    ids, labels = [], []
    for (label, _), text in zip(files[part], words[part], strict=True):
        row = np.array([index.get(word, 0) for word in text[: len(text) // LENGTH * LENGTH]], int)
        ids.extend(row.reshape(-1, LENGTH))
        labels.extend([int(label)] * (len(row) // LENGTH))
    order = rng.permutation(len(ids))
    return {"ids": jnp.asarray(ids)[order], "label": jnp.asarray(labels)[order]}


n = len(files)
train, calibration, test = (
    pieces(slice(int(a * n), int(b * n))) for a, b in ((0, 0.7), (0.7, 0.8), (0.8, 1))
)
calibration = jax.tree.map(lambda x: x[:256], calibration)

# %% [markdown]
# ## The model, and a classifier of our own on top
#
# `lr` factors any tree of parameters: here an encoder of `lrjax.zoo` beside a matrix of ours.

# %%
config = lr.zoo.AlbertConfig(
    vocab_size=WORDS,
    embedding_size=64,
    hidden_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=LENGTH,
)
albert = lr.zoo.Albert(config, pooled=False)


def apply(params, batch):
    hidden = albert.apply({"params": params["albert"]}, batch["ids"])
    return hidden.mean(1) @ params["head"]


def loss(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


# %%
steps, size = 150, 64
which = rng.integers(len(train["ids"]), size=(steps, size))
optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, 2e-3))


def step(carry, chosen):
    params, state = carry
    batch = jax.tree.map(lambda x: x[chosen], train)
    grads = jax.grad(lambda p: loss(apply(p, batch), batch))(params)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(params, updates), state), None


start = {
    "albert": albert.init(jax.random.key(0), train["ids"][:1])["params"],
    "head": jnp.zeros((config.hidden_size, len(PACKAGES))),
}
carry = start, optimizer.init(start)
params = jax.jit(lambda carry: jax.lax.scan(step, carry, which)[0][0])(carry)

# %% [markdown]
# ## Factor the table and the block
#
# Words that calibration saw often weigh more in the table; the block is weighed by what its
# inputs are and by what the loss feels of its outputs.

# %%
rules = {"albert/**/word/embedding": lr.SVD(), "albert/**/group_*/**/kernel": lr.SVD()}
batches = [jax.tree.map(lambda x, k=k: x[k : k + 64], calibration) for k in range(0, 256, 64)]
stats = lr.calibrate(apply, params, batches, loss=loss)


def accuracy(params):
    logits = jax.jit(lr.lift(apply))(params, test)
    return float(jnp.mean(jnp.argmax(logits, -1) == test["label"]))


right = accuracy(params)
print(f"dense: {right:.1%} of {len(test['ids'])} pieces, {lr.cost(params).bytes} bytes")
for keep in (0.5, 0.3):
    budget = lr.Budget(keep=keep)
    plain = lr.compress(params, lr.plan(params, rules, budget=budget, allocation=lr.Uniform()))
    small = lr.compress(params, lr.plan(params, rules, budget=budget, stats=stats), stats)
    rows = accuracy(plain), accuracy(small)
    used = lr.cost(small).bytes
    print(f"keep {keep}: plain {rows[0]:.1%}, calibrated {rows[1]:.1%}, {used} bytes")
    assert rows[1] > right - 0.05
