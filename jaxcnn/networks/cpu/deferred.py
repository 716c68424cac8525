"""What a network does between two convolutions, left to the kernel of the second one.

BatchNorm (arXiv 1502.03167) takes sums over a convolution's output, scales and shifts it, and relu
often follows. XLA goes through the images for each. A stage does all this in passing, see
`jaxcnn.networks.cpu.stages`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxcnn.networks.cpu.stages import Stage

_PIXELS = (0, 1, 2)  # the axes of images and pixels


@dataclass
class Deferred:
    """Images, float32[B, H, W, C], that are computed only where something else wants them.

    They are `source`, perhaps multiplied with `scale`, shifted and passed through relu. Where they
    are computed, it is by the network's own operations: in another form, XLA would round members of
    an ensemble otherwise on one device than on several.

    Attributes:
        source: float32[B, H, W, C], the output of a convolution, perhaps sliced.
        variable: that the network has it in.
        seen: such variables that other operations want than stages, this one once it is.
        sliced: whether `source` is.
        operations: what computes the images of `source`, as the network does.
        scale: float32[1, 1, 1, C], or None.
        shift: float32[1, 1, 1, C], or None.
        relu: whether they went through relu.
        sums: of the values of `source` and of their squares, each float32[C], if a stage gave them.
        squared: whether they are the squares of `source` instead.
    """

    source: jax.Array
    variable: core.Var
    seen: set[core.Var]
    sliced: bool = False
    operations: tuple[Callable[[jax.Array], jax.Array], ...] = ()
    scale: jax.Array | None = None
    shift: jax.Array | None = None
    relu: bool = False
    sums: tuple[jax.Array, ...] = ()
    squared: bool = False

    @functools.cached_property
    def images(self) -> jax.Array:
        """The images themselves."""
        self.seen.add(self.variable)
        images = self.source
        for operation in self.operations:
            images = operation(images)
        return images

    def then(self, operation: Callable[[jax.Array], jax.Array], **changed: Any) -> "Deferred":
        """Returns what an operation makes of these images, deferred too."""
        operations = (*self.operations, operation)
        return replace(self, **{"operations": operations, "sums": (), **changed})


def convolve(
    stage: Stage,
    images: Any,
    kernel: jax.Array,
    out: core.Var,
    jaxpr: core.Jaxpr,
    seen: set[core.Var],
) -> Deferred:
    """Convolves images, and computes what is deferred of them with it.

    Args:
        stage: the convolution alone, see `jaxcnn.networks.cpu.convolution.stage_of`.
        images: float32[B, H, W, Cin], deferred or not.
        kernel: float32[K, K, Cin, Cout].
        out: the variable of the output.
        jaxpr: the operations among which it is.
        seen: see `Deferred`. Outputs of which all is left to stages are sliced.
    """
    affine: tuple[Any, ...] = (None, None)
    if isinstance(images, Deferred) and not images.squared:
        stage = replace(stage, relu_before=images.relu, sliced_in=images.sliced)
        images, affine = images.source, _affine(images)
    summed = any(
        e.primitive.name == "reduce_sum" and e.invars[0] is out and e.params["axes"] == _PIXELS
        for e in jaxpr.eqns
    )
    sliced = out not in seen
    stage = replace(stage, sums=summed, sliced_out=sliced)
    bias = jnp.zeros(kernel.shape[-1], jnp.float32)
    source, sums = stage(images_of(images), kernel, bias, *affine)
    return Deferred(source, out, seen, sliced, sums=sums)


def defer(
    name: str, params: Any, inputs: Sequence[Any], operation: Callable[[Sequence[Any]], list[Any]]
) -> Any:
    """Returns what an operation makes of deferred images without computing them.

    Args:
        name: of the operation.
        params: of the operation.
        inputs: which may be deferred.
        operation: as a function of its inputs.

    Returns:
        Deferred images, or an array; None where they have to be computed.
    """
    places = [i for i, x in enumerate(inputs) if isinstance(x, Deferred)]
    if len(places) != 1:
        return None
    (place,) = places
    x = inputs[place]
    if name == "reduce_sum" and x.sums and params["axes"] == _PIXELS:
        return x.sums[int(x.squared)]
    if name == "square" and x.sums and not x.squared:
        return x.then(jnp.square, squared=True, sums=x.sums)
    if x.relu or x.squared:
        return None
    if name == "custom_jvp_call" and len(inputs) == 1:
        is_relu = _is_relu(lambda images: operation([images])[0], x.source)
        return x.then(jax.nn.relu, relu=True) if is_relu else None
    if len(inputs) != 2 or name not in ("add", "sub", "mul"):
        return None
    other = inputs[1 - place]
    if jnp.shape(other) != (1, 1, 1, x.source.shape[-1]) or (name == "sub" and place == 1):
        return None
    if name == "mul":
        shift = None if x.shift is None else x.shift * other
        scale = other if x.scale is None else x.scale * other
        return x.then(lambda images: images * other, scale=scale, shift=shift)
    if name == "sub":
        other = -other
    shift = other if x.shift is None else x.shift + other
    return x.then(lambda images: images + other, shift=shift)


def images_of(value: Any) -> Any:
    """Returns a value, computed if it is deferred."""
    return value.images if isinstance(value, Deferred) else value


def _affine(x: Deferred) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns scale and shift as a stage takes them: both, or none."""
    if x.scale is None and x.shift is None:
        return None, None
    channels = x.source.shape[-1]
    return (
        jnp.ones(channels, jnp.float32) if x.scale is None else x.scale.reshape(-1),
        jnp.zeros(channels, jnp.float32) if x.shift is None else x.shift.reshape(-1),
    )


def _is_relu(operation: Callable[[jax.Array], jax.Array], images: jax.Array) -> bool:
    """Returns whether an operation is `jax.nn.relu`, its derivative, too.

    A network may have another one of the same name and value, with a derivative of its own.
    """
    given = jax.ShapeDtypeStruct(images.shape, images.dtype)

    def program(function: Callable[[jax.Array], jax.Array]) -> str:
        return str(jax.make_jaxpr(lambda x, dx: jax.jvp(function, (x,), (dx,)))(given, given))

    return program(operation) == program(jax.nn.relu)
