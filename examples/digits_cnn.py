# %% [markdown]
# # Convolutions: Tucker-2, CP or SVD?
#
# A kernel of a convolution has four dimensions, and there is more than one way to make it small.
# Cut into a matrix, it is an SVD: a convolution to a few channels, and a 1x1 convolution back.
# Tucker-2 compresses both channel dimensions and leaves the window alone: 1x1, then the window on
# few channels, then 1x1. CP pulls the window apart too: 1x1, depthwise, 1x1.
#
# This page trains a small network on the digits of scikit-learn, factors its kernels each way
# to the same size, and counts what is still read right. Nothing is trained afterwards. It takes
# about two minutes on a laptop.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import lrjax as lr

# %% [markdown]
# ## A network, as anybody would write it

# %%
digits = load_digits()
images = (digits.images[..., None] / 16).astype(np.float32)
labels = digits.target
order = np.random.default_rng(0).permutation(len(labels))
train, calibration, test = np.split(order, [1000, 1200])


class Network(nn.Module):
    """Three convolutions and a linear layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(48, (3, 3))(x))
        x = nn.relu(nn.Conv(64, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(96, (3, 3))(x))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


network = Network()


def apply(params, batch):
    return network.apply({"params": params}, batch["image"])


def loss(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def batch_of(which):
    return {"image": jnp.asarray(images[which]), "label": jnp.asarray(labels[which])}


# %%
def fit(seed, steps=400, size=64):
    rng = np.random.default_rng(seed)
    params = network.init(jax.random.key(seed), images[:1])["params"]
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(lambda p: loss(apply(p, batch), batch))(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state, batch_of(rng.choice(train, size)))
    return params


exam = batch_of(test)


def accuracy(params):
    logits = jax.jit(lr.lift(apply))(params, exam)
    return float(jnp.mean(jnp.argmax(logits, -1) == exam["label"]))


params = fit(0)
dense = accuracy(params)
print(f"dense: {dense:.1%} of {len(test)} digits that training never saw")

# %% [markdown]
# ## What each kernel sees
#
# A quarter of a second of calibration, on digits that neither training nor the exam use: the
# second moments of every kernel's inputs and output gradients. Any format can be fitted to them.

# %%
batches = [batch_of(part) for part in np.split(calibration, 4)]
stats = lr.calibrate(apply, params, batches, loss=loss)

# %% [markdown]
# ## Three formats, one size
#
# The plan finds the ranks: every format gets the same share of the kernel's parameters.

# %%
kernels = ("Conv_2/kernel",)  # the largest one: more than half of all parameters
uses = lr.usage(apply, params, batches[0])  # which dimensions are inputs, without statistics too
formats = {"SVD": lr.SVD(), "Tucker-2": lr.Tucker(), "CP": lr.CP(starts=2, sweeps=60)}
small = {}
print(f"{'keep':>5}  {'metric':12}{'format':10}{'kernel bytes':>14}{'accuracy':>10}")
for keep, known in ((0.3, stats), (0.1, stats), (0.1, None)):
    for name, spec in formats.items():
        plan = lr.plan(
            params,
            dict.fromkeys(kernels, spec),
            budget=lr.Budget(keep=keep),
            stats=known,
            usage=uses,
            allocation=lr.Uniform(),
        )
        factored = lr.compress(params, plan, known)
        used = sum(lr.cost(lr.trees.get(factored, path)).bytes for path in kernels)
        metric = "calibrated" if known else "plain"
        small[name, keep, metric] = factored
        print(f"{keep:>5}  {metric:12}{name:10}{used:>14,}{accuracy(factored):>10.1%}")

# %% [markdown]
# Without statistics a format only sees the kernel itself, and that hurts the SVD most.
# The factored network is a tree of parameters like the dense one, so it may go on learning:

# %%
start = small["SVD", 0.1, "plain"]
tuned, optimizer = start, optax.adam(1e-3)
state = optimizer.init(tuned)
value_and_grad = jax.jit(jax.value_and_grad(lambda p, batch: loss(lr.lift(apply)(p, batch), batch)))
rng = np.random.default_rng(1)
for _ in range(60):
    _, grads = value_and_grad(tuned, batch_of(rng.choice(train, 64)))
    updates, state = optimizer.update(grads, state)
    tuned = optax.apply_updates(tuned, updates)
print(f"plain SVD at keep 0.1: {accuracy(start):.1%}")
print(f"after 60 steps of training: {accuracy(tuned):.1%}")
assert accuracy(tuned) > dense - 0.05
assert min(accuracy(small[name, 0.3, "calibrated"]) for name in formats) > dense - 0.1
