"""Frozen parameters: an optimizer that sees the trainable parameters alone."""

import fnmatch
from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxcnn.errors import UserError
from jaxcnn.optim.extra_args import Normalized, normalize


class FrozenState(flax.struct.PyTreeNode):
    """The state of `frozen`.

    Attributes:
        inner: the state of the optimizer itself, in which frozen parameters are absent.
        paths: of the frozen parameters; part of the structure, not an array.
    """

    inner: Any
    paths: tuple[str, ...] = flax.struct.field(pytree_node=False)


def frozen_paths(globs: Iterable[str], params: Any) -> tuple[str, ...]:
    """Returns the paths of the parameters that match one of some patterns, "params/conv1/kernel".

    Args:
        globs: patterns of `fnmatch` for whole paths, in which * matches slashes too.
        params: of the network; only the structure matters.

    Raises:
        UserError: a pattern matches nothing, nothing is left to train, or `globs` is one text.
    """
    if isinstance(globs, str):
        raise UserError(f"freeze takes a list of patterns: give [{globs!r}]")
    paths = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    found: set[str] = set()
    for glob in globs:
        matching = [path for path in paths if fnmatch.fnmatchcase(path, glob)]
        if not matching:
            raise UserError(
                f"--freeze {glob!r} matches no parameter: give a pattern for some of "
                f"{', '.join(paths)}"
            )
        found.update(matching)
    if len(found) == len(paths):
        raise UserError("--freeze leaves no parameter to train: give patterns that match fewer")
    return tuple(sorted(found))


def frozen(tx: optax.GradientTransformation, paths: tuple[str, ...]) -> Normalized:
    """Returns an optimizer that leaves some parameters as they are, bit for bit.

    The optimizer itself sees pytrees in which these are `optax.MaskedNode`, which has no leaves:
    neither norms nor averages nor weight decay count them.

    Args:
        tx: the optimizer.
        paths: of the frozen parameters, see `frozen_paths`.
    """
    tx = normalize(tx)

    def init(params: Any) -> FrozenState:
        return FrozenState(tx.init(trainable(params, paths)), paths)

    def update(
        updates: Any, state: FrozenState, params: Any = None, **extra: Any
    ) -> tuple[Any, FrozenState]:
        for name in ("value_fn", "obj_fn"):
            if name in extra:
                extra[name] = lambda part, fn=extra[name]: fn(merged(part, params))
        if "grad_fn" in extra:
            extra["grad_fn"] = lambda part, *others, fn=extra["grad_fn"]: trainable(
                fn(merged(part, params), *others), paths
            )
        if "grad" in extra:
            extra["grad"] = trainable(extra["grad"], paths)
        updates, inner = tx.update(
            trainable(updates, paths), state.inner, trainable(params, paths), **extra
        )
        # Adding +0.0 would change a parameter that is -0.0.
        zeros = jax.tree.map(lambda leaf: jnp.full_like(leaf, -0.0), params)
        return merged(updates, zeros), FrozenState(inner, paths)

    return Normalized(init, update)


def trainable(params: Any, paths: tuple[str, ...]) -> Any:
    """Returns a pytree like `params` without the leaves of the frozen parameters.

    Args:
        params: of the network, or a pytree of the same structure.
        paths: of the frozen parameters, see `frozen_paths`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: optax.MaskedNode() if _name(path) in paths else leaf, params
    )


def merged(part: Any, params: Any) -> Any:
    """Returns the pytree of `trainable` with the leaves that it lacks.

    Args:
        part: a pytree as `trainable` returns it.
        params: of the network; its leaves are taken where `part` has none.
    """

    def absent(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    return jax.tree.map(
        lambda leaf, other: other if absent(leaf) else leaf, part, params, is_leaf=absent
    )


def _name(path: Any) -> str:
    return "params/" + jax.tree_util.keystr(path, simple=True, separator="/")
