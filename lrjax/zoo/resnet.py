"""ResNet, convolutions with residual sums (arXiv:1512.03385), as published.

Batch norms are those of inference: running statistics, which are parameters here; :func:`fold`
takes them into the convolutions. Images are ``[batch, channels, height, width]``, as the reference
library takes them; inside, channels come last.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from lrjax import ops, trees
from lrjax.errors import CheckpointError, ShapeError, message
from lrjax.zoo import heads, names
from lrjax.zoo.config import Config, one_of, refuse
from lrjax.zoo.layers import ACTIVATIONS, Conv, Dense
from lrjax.zoo.names import Tensor

EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(Config):
    """The shape of a ResNet, in the words of its ``config.json``; the defaults are ResNet-50."""

    model_type: ClassVar[str] = "resnet"
    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    num_labels: int | None = None
    id2label: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Refuses what this model does not know."""
        one_of("layer_type", self.layer_type, ("basic", "bottleneck"))
        one_of("hidden_act", self.hidden_act, ACTIVATIONS)
        if len(self.depths) != len(self.hidden_sizes):
            refuse("depths", f"{len(self.depths)} stages", f"{len(self.hidden_sizes)}, as widths")

    @property
    def labels(self) -> int:
        """The number of classes; two unless told."""
        return heads.labels(self.num_labels, self.id2label)

    def units(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Every residual unit: its stage, its index there, channels in and out, stride."""
        channels = self.embedding_size
        for stage, (width, depth) in enumerate(zip(self.hidden_sizes, self.depths, strict=True)):
            for i in range(depth):
                halved = i == 0 and (stage > 0 or self.downsample_in_first_stage)
                yield stage, i, channels, width, 2 if halved else 1
                channels = width

    def convolutions(self, width: int, stride: int) -> list[tuple[int, int, int]]:
        """The convolutions of a unit: channels out, kernel, stride."""
        if self.layer_type == "basic":
            return [(width, 3, stride), (width, 3, 1)]
        first, second = (stride, 1) if self.downsample_in_bottleneck else (1, stride)
        return [(width // 4, 1, first), (width // 4, 3, second), (width, 1, 1)]


class ResNet(nn.Module):
    """Images -> the last feature maps, or the logits of the classes.

    ``tracked`` is what a published file says of the batches that each norm has seen.
    """

    config: ResNetConfig
    classifies: bool = True
    folded: bool = False
    tracked: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "batch channels height width"]
    ) -> Float[Array, "batch *out"]:
        """The feature maps ``[batch, c, h, w]``, or the logits ``[batch, labels]``."""
        c, act = self.config, ACTIVATIONS[self.config.hidden_act]
        if pixel_values.shape[1] != c.num_channels:
            raise ShapeError(
                message(
                    path="pixel_values",
                    got=f"shape {pixel_values.shape}",
                    expected=f"[batch, {c.num_channels}, height, width]",
                    todo="Channels come first.",
                )
            )
        x = pixel_values.transpose(0, 2, 3, 1)
        x = act(ConvNorm(c.embedding_size, 7, 2, self.folded, name="stem")(x))
        x = max_pool(x)
        for stage, i, _, width, stride in c.units():
            x = Unit(c, width, stride, self.folded, name=f"stage_{stage}_{i}")(x)
        if not self.classifies:
            return x.transpose(0, 3, 1, 2)
        return Dense(c.labels, name="classifier")(x.mean((1, 2)))

    @property
    def architecture(self) -> str:
        """The name of this model's class in the reference library."""
        return ARCHITECTURES[self.classifies]

    @nn.nowrap
    def constants(self) -> dict[str, np.ndarray]:
        """What the published file holds beside parameters."""
        norms = [name for name, _, _ in convolutions(self.config)]
        counts = self.tracked or (0,) * len(norms)
        prefix = "resnet." if self.classifies else ""
        return {
            f"{prefix}{name}.normalization.num_batches_tracked": np.array(count, np.int64)
            for name, count in zip(norms, counts, strict=True)
        }

    @nn.nowrap
    def layout(self) -> Iterator[Tensor]:
        """The published checkpoint, tensor by tensor.

        Raises:
            CheckpointError: the batch norms are folded, which no published layout knows.
        """
        if self.folded:
            got, todo = "a ResNet with folded batch norms", "Save it before folding."
            raise CheckpointError(message(got=got, expected="one with its norms", todo=todo))
        prefix = "resnet." if self.classifies else ""
        for name, path, _ in convolutions(self.config):
            yield from names.conv(f"{prefix}{name}.convolution", f"{path}/conv", bias=False)
            norm = f"{prefix}{name}.normalization"
            yield from names.norm(norm, f"{path}/norm")
            yield Tensor(f"{norm}.running_mean", f"{path}/norm/mean")
            yield Tensor(f"{norm}.running_var", f"{path}/norm/var")
        if self.classifies:
            yield from names.dense("classifier.1", "classifier")

    @nn.nowrap
    def example(self) -> tuple[Any, ...]:
        """Inputs of the least size, from which the parameters' shapes follow."""
        return (jnp.zeros((1, self.config.num_channels, 32, 32)),)


class Unit(nn.Module):
    """act(shortcut(x) + convolutions(x)); the shortcut is a convolution where the shape changes."""

    config: ResNetConfig
    width: int
    stride: int
    folded: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width c_in"]) -> Float[Array, "batch h w c"]:
        c, y = self.config, x
        parts = c.convolutions(self.width, self.stride)
        for k, (width, kernel, stride) in enumerate(parts):
            y = ConvNorm(width, kernel, stride, self.folded, name=f"conv_{k}")(y)
            y = y if k == len(parts) - 1 else jax.nn.relu(y)
        if x.shape[-1] != self.width or self.stride != 1:
            x = ConvNorm(self.width, 1, self.stride, self.folded, name="shortcut")(x)
        return ACTIVATIONS[c.hidden_act](x + y)


class ConvNorm(nn.Module):
    """A convolution and its batch norm, or the two folded into one."""

    features: int
    kernel: int
    stride: int
    folded: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width c_in"]) -> Float[Array, "batch h w c"]:
        size, step = (self.kernel, self.kernel), (self.stride, self.stride)
        conv = Conv(self.features, size, step, self.kernel // 2, self.folded, name="conv")
        return conv(x) if self.folded else Statistics(name="norm")(conv(x))


class Statistics(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias, with running moments (arXiv:1502.03167)."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        one, zero, shape = nn.initializers.ones, nn.initializers.zeros, (x.shape[-1],)
        scale, var = self.param("scale", one, shape), self.param("var", one, shape)
        bias, mean = self.param("bias", zero, shape), self.param("mean", zero, shape)
        return (x - mean) * (jax.lax.rsqrt(var + EPSILON) * scale) + bias


def max_pool(x: Float[Array, "batch height width c"]) -> Float[Array, "batch h w c"]:
    """The largest of every 3 x 3 window, at every second place."""
    around = [(0, 0), (1, 1), (1, 1), (0, 0)]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)


def convolutions(c: ResNetConfig) -> Iterator[tuple[str, str, int]]:
    """Every convolution: its published name, its path, its channels out."""
    yield "embedder.embedder", "stem", c.embedding_size
    for stage, i, channels, width, stride in c.units():
        theirs, ours = f"encoder.stages.{stage}.layers.{i}", f"stage_{stage}_{i}"
        for k, (out, _, _) in enumerate(c.convolutions(width, stride)):
            yield f"{theirs}.layer.{k}", f"{ours}/conv_{k}", out
        if channels != width or stride != 1:
            yield f"{theirs}.shortcut", f"{ours}/shortcut", width


def fold(model: ResNet, params: Any) -> tuple[ResNet, dict[str, Any]]:
    """The same model with every batch norm taken into its convolution: W <- W s, b <- b - mean s.

    Here s = scale / sqrt(var + eps), by output channel.
    """
    leaves, folded = trees.flatten(params)[0], {}
    for path, leaf in leaves.items():
        head, _, tail = path.rpartition("/norm/")
        if not head and not path.endswith("/conv/kernel"):
            folded[path] = leaf
        if tail == "scale":
            bias, mean, var = (leaves[f"{head}/norm/{name}"] for name in ("bias", "mean", "var"))
            by = leaf * jax.lax.rsqrt(var + EPSILON)
            folded[f"{head}/conv/kernel"] = ops.densify(leaves[f"{head}/conv/kernel"]) * by
            folded[f"{head}/conv/bias"] = bias - mean * by
    return model.clone(folded=True), unflatten_dict(folded, sep="/")


ARCHITECTURES = {True: "ResNetForImageClassification", False: "ResNetModel"}


def read(config: Mapping[str, Any], tensors: Collection[str]) -> ResNet:
    """The model that a published ``config.json`` and its file describe.

    Raises:
        CheckpointError: the config asks for what this file does not model.
    """
    parsed = ResNetConfig.from_json(config)
    named = parsed.architectures or [ARCHITECTURES[False]]
    one_of("architectures", named, ([name] for name in ARCHITECTURES.values()))
    model = ResNet(parsed, named[0] == ARCHITECTURES[True])
    counters = list(model.constants())
    if isinstance(tensors, Mapping) and all(name in tensors for name in counters):
        model = replace(model, tracked=tuple(int(tensors[name]) for name in counters))
    return model
