# %% [markdown]
# # Five language models, one way to make each of them smaller
#
# A Llama, a mixture of experts, a GPT-2, an LSTM and a GRU are trained on the source of Python's
# standard library, byte by byte, and then factored by rules: which weights, in which form, to
# which size. What is lost is read off text that neither training nor calibration has seen, in bits
# per byte. Nothing is trained after the factoring. It takes about three minutes on a laptop.

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
# ## Text that every machine has
#
# Modules of the standard library, cut into pieces of 64 bytes: most to learn from, some to
# calibrate on, some to judge by. No module is in two of the three.

# %%
LENGTH = 64


def pieces(modules):
    text = b"".join(module.read_bytes() for module in modules)
    return np.frombuffer(text[: len(text) // LENGTH * LENGTH], np.uint8).reshape(-1, LENGTH)


modules = sorted(Path(os.__file__).parent.glob("*.py"))
rng = np.random.default_rng(0)
rng.shuffle(modules)
train, calibration, test = (pieces(modules[a:b]) for a, b in ((0, 80), (80, 110), (110, 150)))
calibration = [
    jnp.asarray(b, jnp.int32) for b in rng.permutation(calibration)[:256].reshape(4, 64, -1)
]
test = [jnp.asarray(b, jnp.int32) for b in rng.permutation(test)[:256].reshape(1, 256, -1)]


def bits(logits, ids):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
    return losses.mean() / jnp.log(2)


# %% [markdown]
# ## Five models
#
# Each is an ordinary Flax module of `lrjax.zoo`, made from the fields of its published config.
# Each has its rules: globs over the paths of its parameters, and what to do with what they match.
# The experts of a layer lie in one leaf `[experts, in, out]`, the gates of a recurrent cell in one
# leaf `[gates, in, out]`; their slices are factored one by one, in one batched solve.

# %%
decoder = {
    "vocab_size": 256,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
}
experts = {"intermediate_size": 128, "num_local_experts": 4}
recurrent = {"vocab_size": 256, "embedding_size": 96, "hidden_size": 192}
gpt2 = {"vocab_size": 256, "n_embd": 96, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}

in_blocks = {"**/attention/*/kernel": lr.SVD(), "**/mlp/*/kernel": lr.SVD()}
in_experts = {"**/attention/*/kernel": lr.SVD(), "**/router/*": None, "**/experts/*/*": lr.SVD()}
in_cells = {"**/input/kernel": lr.SVD(), "**/recurrent/kernel": lr.SVD()}

models = {
    "llama": (lr.zoo.Llama(lr.zoo.LlamaConfig(**decoder)), in_blocks),
    "mixtral": (lr.zoo.Llama(lr.zoo.MixtralConfig(**decoder | experts)), in_experts),
    "gpt2": (lr.zoo.GPT2(lr.zoo.GPT2Config(**gpt2)), in_blocks),
    "lstm": (lr.zoo.Recurrent(lr.zoo.LSTMConfig(**recurrent)), in_cells),
    "gru": (lr.zoo.Recurrent(lr.zoo.GRUConfig(**recurrent)), in_cells),
}


# %%
def fit(apply, params, steps=150, size=16):
    optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, 8e-3))

    def step(carry, ids):
        params, state = carry
        grads = jax.grad(lambda p: bits(apply(p, ids), ids))(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    which = np.random.default_rng(1).integers(len(train), size=(steps, size))
    batches = jnp.asarray(train[which], jnp.int32)
    return jax.jit(lambda *c: jax.lax.scan(step, c, batches)[0][0])(params, optimizer.init(params))


# %% [markdown]
# ## Train, calibrate, factor, judge
#
# `lr.calibrate` sees what flows into each weight and what of it the loss feels. The same budget is
# then met twice: by the weights alone, and by what the calibration saw.

# %%
keep = 0.4
print(f"bits per byte, held out; factored weights at keep {keep}")
print(f"{'':10}{'dense':>8}{'plain':>8}{'calibrated':>12}{'bytes':>14}")
for name, (model, rules) in models.items():

    def apply(params, ids, model=model):
        return model.apply({"params": params}, ids)

    def judge(params, apply=apply):
        one = jax.jit(lambda p, ids: bits(apply(p, ids), ids))
        return float(np.mean([one(params, ids) for ids in test]))

    params = fit(apply, model.init(jax.random.key(0), calibration[0][:1])["params"])
    stats = lr.calibrate(apply, params, calibration, loss=bits)
    budget = lr.Budget(keep=keep)
    plain = lr.compress(params, lr.plan(params, rules, budget=budget, allocation=lr.Uniform()))
    small = lr.compress(params, lr.plan(params, rules, budget=budget, stats=stats), stats)

    rows = judge(params), judge(plain), judge(small)
    sizes = [lr.cost(tree).bytes for tree in (params, small)]
    print(f"{name:10}{rows[0]:8.3f}{rows[1]:8.3f}{rows[2]:12.3f}{sizes[0]:>8} -> {sizes[1]}")
    assert rows[2] < rows[1], name
    assert rows[2] < rows[0] + 0.25, name

    # What was factored is saved with its model, and is the same model when it comes back.
    with tempfile.TemporaryDirectory() as folder:
        lr.save(f"{folder}/{name}", small, config=model.config.to_json())
        again, loaded = lr.zoo.load(f"{folder}/{name}")
        same = again.apply({"params": loaded}, test[0]) == apply(small, test[0])
        assert bool(same.all()), name
