# %% [markdown]
# # Vision models, made smaller by rules
#
# A ViT, a DeiT and a ResNet learn the digits of scikit-learn and are then factored: linear layers
# as SVD, the windows of convolutions as Tucker-2, to a share of their parameters. What is still
# read right is counted on digits that neither training nor calibration has seen. Nothing is
# trained after the factoring. It takes about a minute on a laptop.

# %%
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import lrjax as lr

# %% [markdown]
# ## Digits
#
# 1797 images of 8 x 8, drawn to 16 x 16: 1000 to learn from, 200 to calibrate on, 597 to judge by.

# %%
digits = load_digits()
images = np.kron(digits.images[:, None] / 16, np.ones((2, 2))).astype(np.float32)
order = np.random.default_rng(0).permutation(len(images))
train, calibration, test = np.split(order, [1000, 1200])


def batch_of(which):
    return {"image": jnp.asarray(images[which]), "label": jnp.asarray(digits.target[which])}


def loss(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


# %% [markdown]
# ## Three models and their rules
#
# The models are those of `lrjax.zoo`, in the words of their published configs. A class token is
# read by one classifier; DeiT has a second token, and a second classifier. The ResNet's batch
# norms are those of inference: `lr.zoo.fold` takes them into the convolutions, so that what
# is trained and factored here are convolutions with biases.

# %%
transformer = {
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "num_labels": 10,
}
convolutions = {
    "num_channels": 1,
    "embedding_size": 32,
    "hidden_sizes": (32, 64),
    "depths": (1, 1),
    "layer_type": "basic",
    "num_labels": 10,
}
in_blocks = {"**/attention/*/kernel": lr.SVD(), "**/mlp/*/kernel": lr.SVD()}
in_units = {"**/conv_*/conv/kernel": lr.Tucker()}

TEACHER = ("cls_classifier", "distillation_classifier")
models = {
    "vit": (lr.zoo.ViT(lr.zoo.ViTConfig(**transformer), tops=("classifier",)), in_blocks),
    "deit": (lr.zoo.ViT(lr.zoo.DeiTConfig(**transformer), tops=TEACHER), in_blocks),
    "resnet": (lr.zoo.ResNet(lr.zoo.ResNetConfig(**convolutions), folded=True), in_units),
}


# %%
def fit(apply, params, steps=150, size=64):
    optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, 3e-3))
    which = np.random.default_rng(1).choice(train, (steps, size))

    def step(carry, batch):
        params, state = carry
        grads = jax.grad(lambda p: loss(apply(p, batch), batch))(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    return jax.jit(lambda *c: jax.lax.scan(step, c, batch_of(which))[0][0])(*start)


# %% [markdown]
# ## Train, calibrate, factor, count
#
# The same budget is met twice: by the weights alone, every one to the same share; and by what
# `lr.calibrate` saw, where the plan shares the budget out between the weights.

# %%
keep = 0.3
exam = batch_of(test)
print(f"digits read right of {len(test)}; factored weights at keep {keep}")
print(f"{'':8}{'dense':>8}{'plain':>8}{'calibrated':>12}{'bytes':>12}")
for name, (model, rules) in models.items():

    def apply(params, batch, model=model):
        return model.apply({"params": params}, batch["image"])

    def accuracy(params, apply=apply):
        logits = jax.jit(apply)(params, exam)
        return float(jnp.mean(jnp.argmax(logits, -1) == exam["label"]))

    params = fit(apply, model.init(jax.random.key(0), images[:1])["params"])
    batches = [batch_of(part) for part in np.split(calibration, 4)]
    stats = lr.calibrate(apply, params, batches, loss=loss)
    uses = lr.usage(apply, params, batches[0])
    budget = lr.Budget(keep=keep)
    even = lr.plan(params, rules, budget=budget, usage=uses, allocation=lr.Uniform())
    plain = lr.compress(params, even)
    small = lr.compress(params, lr.plan(params, rules, budget=budget, stats=stats), stats)

    rows = accuracy(params), accuracy(plain), accuracy(small)
    sizes = [lr.cost(tree).bytes for tree in (params, small)]
    print(f"{name:8}{rows[0]:8.1%}{rows[1]:8.1%}{rows[2]:12.1%}{sizes[0]:>10} -> {sizes[1]}")
    assert rows[2] > rows[1] - 0.01, name
    assert rows[2] > rows[0] - 0.05, name
    with tempfile.TemporaryDirectory() as folder:
        lr.save(f"{folder}/{name}", small)
        again = lr.load(f"{folder}/{name}").params
        assert bool((apply(again, exam) == apply(small, exam)).all()), name
