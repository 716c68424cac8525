"""Stages: convolutions fused with the layers around them, computed by kernels on CPU.

The folder `native` beside this file has the kernels, and says what makes them fast.

BatchNorm needs sums over the whole batch. Therefore a stage takes its input before normalisation,
together with the scale and shift that normalise it, and returns the sums for the next stage's.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jaxcnn.networks.cpu import library

_Arrays = tuple[jax.Array, ...]


@dataclass(frozen=True)
class Stage:
    """A convolution with zero padding that keeps the size or halves it, and the layers around it.

    In order: scale and shift (BatchNorm's), relu, average pooling; the convolution; relu; sums
    for BatchNorm; max pooling. Everything except the convolution is optional.

    Images are float32[B, H, W, C]. Between two stages they may lie in another order in memory,
    which only stages understand and which is faster: sliced.

    Attributes:
        relu_before: relu before the convolution.
        average_before: average pooling over 2 x 2 squares before the convolution.
        relu_after: relu after the convolution.
        sums: return the sums of the values and of their squares, for BatchNorm.
        max_after: max pooling over 2 x 2 squares, last.
        sliced_in: the input comes from another stage with `sliced_out`.
        sliced_out: the output is for another stage with `sliced_in`.
        stride: of the convolution, 1 or 2; with 2 it halves the size.
        padding: number of zeros before the first row and column, fewer than the kernel has rows, or
            None for K // 2. With stride 1 it is that.
    """

    relu_before: bool = False
    average_before: bool = False
    relu_after: bool = False
    sums: bool = False
    max_after: bool = False
    sliced_in: bool = False
    sliced_out: bool = False
    stride: int = 1
    padding: int | None = None

    def __call__(
        self,
        x: jax.Array,
        kernel: jax.Array,
        bias: jax.Array,
        scale: jax.Array | None = None,
        shift: jax.Array | None = None,
        sign: jax.Array | None = None,
    ) -> tuple[jax.Array, _Arrays]:
        """Runs the stage. It has a reverse-mode derivative only.

        Args:
            x: float32[B, H, W, Cin].
            kernel: float32[K, K, Cin, Cout], K odd with stride 1.
            bias: float32[Cout].
            scale: float32[Cin] to multiply the input with, or None for no scale and shift.
            shift: float32[Cin] to add to it then.
            sign: float32[Cout] of +1 and -1, or None for +1. With -1 the pooling takes the smallest
                value of each square, which the next scale, if negative, makes the largest.

        Returns:
            The output, float32[B, H', W', Cout], where stride 2 and each pooling halve height and
            width; and with `sums` two float32[Cout]: the sums over all images and pixels of the
            values before max pooling, and of their squares.
        """
        stage = self
        if self.stride == 2 and len(kernel) == 1 and not (self.average_before or self.sliced_in):
            stage, x = replace(self, stride=1), x[:, ::2, ::2]  # nobody reads the others
        out: jax.Array
        out, sums = _run(stage, x, kernel, bias, scale, shift, sign)
        return out, sums

    def _layers(self, kernel_size: int) -> dict[str, Any]:
        """Returns the attributes as the kernels take them."""
        padding = kernel_size // 2 if self.padding is None else self.padding
        return {
            "relu_before": self.relu_before,
            "average_before": self.average_before,
            "relu_after": self.relu_after,
            "max_after": self.max_after,
            "sliced_in": self.sliced_in,
            "sliced_out": self.sliced_out,
            "stride": np.int64(self.stride),
            "padding": np.int64(padding),
        }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(stage: Stage, *arguments: Any) -> Any:
    """The stage as a function with a handwritten reverse-mode derivative, see `Stage.__call__`."""
    out, _, sums = _forward(stage, *arguments, keep=False)
    return out, sums


def _forward(stage: Stage, *arguments: Any, keep: bool) -> tuple[jax.Array, jax.Array, _Arrays]:
    """Calls the kernel of the forward pass.

    Args:
        stage: the stage.
        *arguments: those of `Stage.__call__`.
        keep: return what the backward pass needs.

    Returns:
        The output; the values before max pooling, sliced if they are not the output, or float32[0];
        and the sums.
    """
    x, kernel, bias, *optional = arguments
    batch, height, width, _ = x.shape
    features = kernel.shape[-1]
    shrink = 2 * stage.stride if stage.average_before else stage.stride
    pool = 2 if stage.max_after else 1
    before = batch, height // shrink, width // shrink, features
    after = batch, before[1] // pool, before[2] // pool, features
    keep = keep and (stage.relu_after or stage.sums or stage.max_after)
    is_output = not stage.max_after
    shapes = (
        after,
        before if keep and not is_output else (0,),
        (2, features) if stage.sums else (0,),
    )
    call = library.kernel(library.FORWARD, shapes)
    out, y, sums = call(x, kernel, bias, *map(_given, optional), **stage._layers(len(kernel)))
    return out, out if keep and is_output else y, tuple(sums) if stage.sums else ()


def _forward_with_residuals(stage: Stage, *arguments: Any) -> Any:
    """Returns the stage's outputs and what the backward pass needs.

    Args:
        stage: the stage.
        *arguments: those of `Stage.__call__`, each with `value` and `perturbed`, whether anybody
            wants its gradient.
    """
    values = [argument if argument is None else argument.value for argument in arguments]
    out, y, sums = _forward(stage, *values, keep=True)
    # None where nobody wants the gradient of the images: a tree of residuals holds arrays only.
    wanted = () if arguments[0].perturbed else None
    return (out, sums), (values, y, wanted)


def _backward(stage: Stage, residuals: Any, cotangents: Any) -> Any:
    """Calls the kernel of the backward pass: returns the cotangents of all arguments."""
    (x, kernel, bias, *affine, sign), y, wanted = residuals
    d_out, d_sums = jax.tree.map(_instantiated, cotangents, is_leaf=_is_symbolic)
    scale, shift, signs = map(_given, (*affine, sign))
    shapes = (
        (0,) if wanted is None else x.shape,
        kernel.shape,
        bias.shape,
        scale.shape,
        shift.shape,
    )
    call = library.kernel(library.BACKWARD, shapes)
    stacked = jnp.stack(d_sums) if stage.sums else _given(None)
    arguments = (x, kernel, scale, shift, signs, y, d_out, stacked)
    dx, d_kernel, d_bias, d_scale, d_shift = call(*arguments, **stage._layers(len(kernel)))
    return (
        jnp.zeros_like(x) if wanted is None else dx,
        d_kernel,
        d_bias,
        None if affine[0] is None else d_scale,
        None if affine[1] is None else d_shift,
        None if sign is None else jnp.zeros_like(sign),
    )


def _is_symbolic(cotangent: Any) -> bool:
    return isinstance(cotangent, SymbolicZero)


def _instantiated(cotangent: Any) -> jax.Array:
    """Returns a cotangent as an array, zeros where nothing depends on the output."""
    if _is_symbolic(cotangent):
        return jnp.zeros(cotangent.shape, jnp.float32)
    return cotangent


_run.defvjp(_forward_with_residuals, _backward, symbolic_zeros=True)


def _given(array: jax.Array | None) -> jax.Array:
    """Returns an optional argument as the kernels take it: float32[0] stands for none."""
    return jnp.zeros(0, jnp.float32) if array is None else array
