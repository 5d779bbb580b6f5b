# %% [markdown]
# # A decoder of another shape, with a smaller cache, that writes
#
# Factored weights are one way to a smaller decoder. Another is a smaller *shape*: fewer hidden
# units, a narrower stream, keys and values that come from one short latent. `lr.restructure` does
# it by rules over the model's modules, from the same statistics, in closed form, and gives back a
# model and parameters like those that went in. So the two can be combined, and what comes out
# generates text, with a cache of fixed size. It takes about a minute on a laptop.

# %%
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrjax as lr

# %% [markdown]
# ## A small Llama that has read the standard library, byte by byte

# %%
LENGTH = 64


def pieces(modules):
    text = b"".join(module.read_bytes() for module in modules)
    return np.frombuffer(text[: len(text) // LENGTH * LENGTH], np.uint8).reshape(-1, LENGTH)


modules = sorted(Path(os.__file__).parent.glob("*.py"))
rng = np.random.default_rng(0)
rng.shuffle(modules)
train, calibration, test = (pieces(modules[a:b]) for a, b in ((0, 80), (80, 110), (110, 150)))
calibration = [jnp.asarray(rng.permutation(calibration)[:256], jnp.int32)]
test = jnp.asarray(rng.permutation(test)[:256], jnp.int32)

config = lr.zoo.LlamaConfig(
    vocab_size=256,
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=256,
)
model = lr.zoo.Llama(config)


def bits(logits, ids):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
    return losses.mean() / jnp.log(2)


def apply(params, ids):
    return model.apply({"params": params}, ids)


# %%
steps, size = 150, 16
optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, 8e-3))


def step(carry, ids):
    params, state = carry
    grads = jax.grad(lambda p: bits(apply(p, ids), ids))(params)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(params, updates), state), None


start = model.init(jax.random.key(0), test[:1])["params"]
batches = jnp.asarray(train[rng.integers(len(train), size=(steps, size))], jnp.int32)
carry = start, optimizer.init(start)
params = jax.jit(lambda carry: jax.lax.scan(step, carry, batches)[0][0])(carry)
stats = lr.calibrate(apply, params, calibration, loss=bits)

# %% [markdown]
# ## Smaller shapes
#
# A rule points at modules: every layer's MLP, every layer's attention, or the whole model `""`.
# `Units` keeps the hidden units that the others cannot stand in for, and lets the second matrix
# make up for those that go. `Width` turns the residual stream to its principal directions and drops
# the last. Both give a plain Llama, which any library loads. `LatentKV` caches one short vector a
# token in the place of all keys and values, and rebuilds or absorbs those where they are needed.

# %%
shapes = {
    "dense": {},
    "Units, keep 0.6": {"layer_*/mlp": lr.Units(keep=0.6, uniform=True)},
    "Width, keep 0.8": {"": lr.Width(keep=0.8)},
    "LatentKV, keep 0.5": {"layer_*/attention": lr.LatentKV(keep=0.5)},
    "Units and LatentKV": {
        "layer_*/mlp": lr.Units(keep=0.6, uniform=True),
        "layer_*/attention": lr.LatentKV(keep=0.5),
    },
}
print(f"{'':20}{'bits/byte':>10}{'parameters':>12}{'cache, bytes/token':>20}")
made = {}
for name, rules in shapes.items():
    small, weights = lr.restructure(model, params, rules, stats) if rules else (model, params)
    loss = float(bits(small.apply({"params": weights}, test), test))
    cached = sum(leaf.nbytes for leaf in jax.tree.leaves(small.cache(1, 64).parts)) // 64
    made[name] = small, weights, loss, cached
    print(f"{name:20}{loss:10.3f}{lr.cost(weights).params:12}{cached:20}")
assert made["LatentKV, keep 0.5"][3] == made["dense"][3] // 2
assert made["Units and LatentKV"][2] < made["dense"][2] + 0.4

# %% [markdown]
# ## Then factors
#
# What is left is a model like any other: calibrate it, and factor its matrices.

# %%
small, weights, *_ = made["Units, keep 0.6"]


def smaller(params, ids):
    return small.apply({"params": params}, ids)


seen = lr.calibrate(smaller, weights, calibration, loss=bits)
rules = {"**/attention/*/kernel": lr.SVD(), "**/mlp/*/kernel": lr.SVD()}
plan = lr.plan(weights, rules, budget=lr.Budget(keep=0.7), stats=seen)
factored = lr.compress(weights, plan, seen)
loss = float(bits(smaller(factored, test), test))
print(f"{'... and SVD, keep 0.7':20}{loss:9.3f}{lr.cost(factored).params:12}")
assert loss < made["dense"][2] + 0.4

# %% [markdown]
# ## It writes
#
# `lr.generate` reads the prompts at once and goes on token by token; both are compiled once. From
# a shell, `lrjax generate FOLDER --prompt ...` does the same for a checkpoint or an artefact.

# %%
prompt = np.frombuffer(b"    def __init__(self", np.uint8)[None].astype(np.int32)
for name in ("dense", "Units and LatentKV"):
    small, weights, *_ = made[name]
    written = lr.generate(small, weights, prompt, max_new_tokens=60)
    print(f"{name}: {bytes(prompt[0].tolist() + written.rows[0])!r}")
greedy = lr.generate(made["Units, keep 0.6"][0], factored, prompt, max_new_tokens=20)
assert greedy.tokens.shape == (1, 20)

# %% [markdown]
# ## Saved
#
# A shape that the published config can say is an ordinary checkpoint; every other model is an
# artefact. `lr.zoo.load` opens both.

# %%
with tempfile.TemporaryDirectory() as folder:
    small, weights, loss, _ = made["Width, keep 0.8"]
    lr.zoo.save(f"{folder}/published", small, weights)
    small, weights, *_ = made["Units and LatentKV"]
    lr.save(f"{folder}/artefact", weights, config=small.config.to_json())
    for name in ("published", "artefact"):
        again, loaded = lr.zoo.load(f"{folder}/{name}")
        same = {"published": "Width, keep 0.8", "artefact": "Units and LatentKV"}[name]
        assert float(bits(again.apply({"params": loaded}, test), test)) == made[same][2]
