"""Any network as CPU computes it fast: its convolutions and poolings replaced.

The network is traced to a jaxpr, JAX's list of operations, whatever library it is written with. The
jaxpr is then evaluated with other functions for a few of the operations, see JAX's guide
https://docs.jax.dev/en/latest/notebooks/Writing_custom_interpreters_in_Jax.html.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from jaxcnn.networks.cpu import library
from jaxcnn.networks.cpu.convolution import conv_general_dilated, stage_of
from jaxcnn.networks.cpu.deferred import Deferred, convolve, defer, images_of
from jaxcnn.networks.cpu.group_norm import by_kernel
from jaxcnn.networks.cpu.pooling import max_pool
from jaxcnn.networks.cpu.stages import Stage

_SHORT = 64  # values of an axis that vectors do not pay for
_CONVOLUTION = (
    "window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers",
    "feature_group_count", "batch_group_count", "precision", "preferred_element_type",
)  # fmt: skip
_SLOW_IN_LOOPS = ("conv_general_dilated", "reduce_window", "select_and_scatter")


@dataclass(frozen=True)
class Substituted:
    """A network with the same parameters whose `apply` is faster on CPU, up to rounding the same.

    Attributes:
        model: the network as it is written.
        staged: replace operations. Derivatives are then in reverse mode only.
    """

    model: nn.Module
    staged: bool = True

    def clone(self, *, staged: bool) -> Any:
        """Returns the network with another value of `staged`."""
        return replace(self, staged=staged)

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Initializes the variables, see `flax.linen.Module.init`."""
        return self.model.init(*args, **kwargs)

    def apply(self, variables: Any, *args: Any, rngs: Any = None, **kwargs: Any) -> Any:
        """Computes the network, see `flax.linen.Module.apply`."""
        if not self.staged:
            return self.model.apply(variables, *args, rngs=rngs, **kwargs)

        def call(variables: Any, args: Any, rngs: Any) -> Any:
            with nn.intercept_methods(by_kernel):
                return self.model.apply(variables, *args, rngs=rngs, **kwargs)

        return substitute(call)(variables, args, rngs)


def fastest(model: nn.Module) -> Any:
    """Returns a network in the form that is fastest here.

    On CPU with kernels it is `Substituted`, but for networks that have stages of their own.

    Args:
        model: the network.
    """
    if hasattr(model, "staged") or not library.in_use():
        return model
    return Substituted(model)


def slow_in_loops(model: Any, image_shape: Sequence[int]) -> bool:
    """Returns whether a network trains faster a step at a time than many steps in one program.

    So it does on CPU if any of XLA's convolutions and poolings is left in it, which are slow in a
    loop there (https://github.com/jax-ml/jax/issues/12868).

    Args:
        model: the network in the form that is trained, see `fastest`.
        image_shape: (H, W, C).
    """
    staged = hasattr(model, "staged") and not isinstance(model, Substituted)
    if jax.default_backend() != "cpu" or staged:
        return False
    key = jax.random.key(0)
    images = jnp.zeros((2, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, key, images)
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    closed = jax.make_jaxpr(apply)(variables, images, rngs={"dropout": key})
    return any(name.startswith(_SLOW_IN_LOOPS) for name in _operations(closed.jaxpr))


def _operations(jaxpr: core.Jaxpr) -> Iterator[str]:
    """Yields the name of each operation that CPU may run, also of those within others."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        params = equation.params
        inner = list(core.jaxprs_in_params(params))
        if platforms := params.get("branches_platforms"):  # None stands for all others
            chosen = next(i for i, names in enumerate(platforms) if not names or "cpu" in names)
            inner = [params["branches"][chosen].jaxpr]
        for one in inner:
            yield from _operations(one)


def substitute(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function with the fast form of each operation that has one.

    They are convolutions that `conv_general_dilated` knows, with BatchNorm and relu between two of
    them, max pooling over 2 x 2 squares, and sums over short last axes.
    Operations within loops, branches and rematerialization stay as they are.

    Args:
        function: of pytrees of arrays to a pytree of arrays.
    """

    @functools.wraps(function)
    def substituted(*args: Any) -> Any:
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        seen: set[core.Var] = set()

        def evaluate(leaves: Sequence[Any]) -> list[Any]:
            return [images_of(value) for value in _evaluate(closed, leaves, seen)]

        leaves = jax.tree.leaves(args)
        jax.eval_shape(evaluate, leaves)  # for what is seen
        return jax.tree.unflatten(jax.tree.structure(out), evaluate(leaves))

    return substituted


def _evaluate(closed: core.ClosedJaxpr, args: Sequence[Any], seen: set[core.Var]) -> list[Any]:
    """Evaluates a jaxpr with the fast form of each operation.

    Args:
        closed: the jaxpr.
        args: its inputs, perhaps deferred.
        seen: of convolutions, the outputs that other operations want, too. To it are added those
            that are seen in this evaluation; the others may be sliced in the next one.

    Returns:
        The outputs, perhaps deferred.
    """
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        name, params = equation.primitive.name, equation.params
        one = functools.partial(_evaluate_one, jaxpr, equation)
        if name in ("jit", "pjit"):
            outputs = _evaluate(params["jaxpr"], inputs, seen)
        elif (output := defer(name, params, inputs, one)) is not None:
            outputs = [output]
        elif name == "conv_general_dilated" and (stage := _stage(params, *inputs)):
            images, kernel = inputs
            outputs = [convolve(stage, images, kernel, equation.outvars[0], jaxpr, seen)]
        else:
            inputs = [images_of(value) for value in inputs]
            fast = _FAST.get(name)
            output = fast(params, *inputs) if fast else None
            outputs = one(inputs) if output is None else [output]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _evaluate_one(jaxpr: Any, equation: Any, inputs: Sequence[Any]) -> list[Any]:
    """Evaluates one operation as it is, as a jaxpr of its own."""
    pairs = zip(equation.invars, inputs, strict=True)
    given = {v: x for v, x in pairs if not isinstance(v, core.Literal)}  # each once
    alone = jaxpr.replace(
        constvars=[], invars=list(given), outvars=list(equation.outvars), eqns=[equation]
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*given.values())


def _stage(params: Any, images: Any, kernel: Any) -> Stage | None:
    """Returns the stage that computes a convolution, or None."""
    if isinstance(kernel, Deferred):
        return None
    shaped = images.source if isinstance(images, Deferred) else images
    return stage_of(shaped, kernel, *(params[name] for name in _CONVOLUTION))


def _convolution(params: Any, images: Any, kernel: Any) -> Any:
    """Returns the convolution where no stage computes it."""
    return conv_general_dilated(images, kernel, *(params[name] for name in _CONVOLUTION))


def _max_pool(params: Any, images: Any) -> Any:
    """Returns the pooled images, or None where these are no squares of 2 x 2 pixels."""
    square = (1, 2, 2, 1)
    fits = (
        params["window_dimensions"] == params["window_strides"] == square
        and all(tuple(pair) == (0, 0) for pair in params["padding"])
        and all(n == 1 for n in (*params["base_dilation"], *params["window_dilation"]))
        and images.shape[1] % 2 == images.shape[2] % 2 == 0
    )
    return max_pool(images) if fits else None


def _sum(params: Any, values: Any) -> Any:
    """Returns the sum, or None where it is not over the last axis, a short one, and others.

    Normalizations have such sums, of the channels of a group. XLA does not use vectors for them and
    takes about fifteen times as long as for the sum over the other axes, which comes first here.
    """
    axes, last = params["axes"], values.ndim - 1
    short = values.dtype == jnp.float32 and last in axes and values.shape[last] <= _SHORT
    if not short or len(axes) == 1:
        return None
    return values.sum(tuple(axis for axis in axes if axis != last)).sum(-1)


_FAST: dict[str, Callable[..., Any]] = {
    "conv_general_dilated": _convolution,
    "reduce_window_max": _max_pool,
    "reduce_sum": _sum,
}
