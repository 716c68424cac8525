import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxcnn.errors import UserError
from jaxcnn.storage.arrays import deserialize_pytree, leaf_types, serialize_pytree
from jaxcnn.storage.manifest import DamagedError
from tests.conftest import REPOSITORY


class Pair(NamedTuple):
    first: Any
    second: Any


TREE = {
    "float": jnp.array([1.5, -0.0, jnp.inf, jnp.nan]),
    "half": jnp.ones((2, 3), jnp.bfloat16),
    "whole": jnp.int32(7),
    "truth": jnp.array([True, False]),
    "empty": jnp.zeros((0, 4)),
    "key": jax.random.key(3, impl="threefry2x32"),
    "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
    "odd/name .": Pair(jnp.arange(3), (jnp.zeros(()), None, ())),
    "host": np.arange(4, dtype=np.uint32),
}
WHERE = Path("folder")


def restored(tree: Any, like: Any = None, partial: bool = False) -> Any:
    """Returns what a pytree is once it was serialized, in the structure of another one."""
    like = tree if like is None else like
    content = serialize_pytree(tree)
    return deserialize_pytree(content, like, leaf_types(tree), WHERE, partial=partial)


def assert_equal(tree: Any, other: Any) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert isinstance(one, jax.Array)
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, two = jax.random.key_data(one), jax.random.key_data(two)
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


def test_arrays_come_back_bit_identical() -> None:
    assert_equal(restored(TREE), TREE)
    assert_equal(restored(TREE, jax.eval_shape(lambda tree: tree, TREE)), TREE)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (3, 4)], ids=str)
@pytest.mark.parametrize(
    "dtype",
    "bool int4 uint4 int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float32 "
    "float64 float8_e4m3fn float8_e5m2 float8_e4m3b11fnuz float8_e3m4 float8_e8m0fnu float4_e2m1fn "
    "complex64 complex128".split(),
)
def test_every_dtype_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    with jax.enable_x64(True):
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        values = np.random.default_rng(0).integers(0, 7, shape).astype(kind)
        if shape and dtype.startswith(("float", "bfloat")):
            values.reshape(-1)[:1] = -values.reshape(-1)[:1]
        tree = {"a": jnp.asarray(values)}
        assert tree["a"].dtype == kind
        assert leaf_types(tree) == {"a": f"{dtype}{list(shape)}"}
        assert_equal(restored(tree), tree)


def test_every_float_of_sixteen_bits() -> None:
    """The payloads of NaNs included."""
    patterns = np.arange(2**16, dtype=np.uint16)
    for dtype in (np.float16, jnp.bfloat16):
        tree = {"a": jnp.asarray(patterns.view(dtype))}
        found = np.asarray(restored(tree)["a"])
        assert found.tobytes() == np.asarray(tree["a"]).tobytes() == patterns.tobytes()


def test_the_order_of_an_array_in_memory_does_not_matter() -> None:
    array = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    for other in (np.asfortranarray(array), np.ascontiguousarray(array.T).T):
        assert not other.flags.c_contiguous
        np.testing.assert_array_equal(restored({"a": other})["a"], array)
        assert serialize_pytree({"a": other}) == serialize_pytree({"a": array})
    np.testing.assert_array_equal(restored({"a": array[:, ::2, ::-1]})["a"], array[:, ::2, ::-1])


def test_other_programs_read_the_arrays_by_their_names() -> None:
    tree = {"params": {"Dense_0": {"bias": jnp.arange(3.0)}}, "step": jnp.int32(4)}
    found = safetensors.numpy.load(serialize_pytree(tree))
    assert found.keys() == {"params/Dense_0/bias", "step"} == leaf_types(tree).keys()
    np.testing.assert_array_equal(found["params/Dense_0/bias"], tree["params"]["Dense_0"]["bias"])
    assert (found["step"], found["step"].dtype) == (4, np.int32)


def test_equal_arrays_have_equal_bytes_in_every_process() -> None:
    code = (
        "import sys; from tests.storage.test_arrays import *; "
        "sys.stdout.buffer.write(serialize_pytree(TREE))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=True
    )
    assert ran.stdout == serialize_pytree(TREE) == serialize_pytree(restored(TREE))


def test_restored_arrays_run_the_same_programs() -> None:
    tree = {"a": jnp.zeros(3)}
    add = jax.jit(lambda tree: {"a": tree["a"] + 1})
    add(tree)
    add(restored(tree))
    assert add._cache_size() == 1


SHARDED = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tests.storage.test_arrays import restored

sharding = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data"))
tree = {
    "numbers": jax.device_put(np.arange(6.0, dtype=np.float32), sharding),
    "keys": jax.device_put(jax.random.split(jax.random.key(0), 4), sharding),
    "one": jax.numpy.ones(2),
}
found = restored(tree)
for name in ("numbers", "keys"):
    assert found[name].sharding.is_equivalent_to(sharding, 1), found[name].sharding
np.testing.assert_array_equal(found["numbers"], tree["numbers"])
assert (jax.random.key_data(found["keys"]) == jax.random.key_data(tree["keys"])).all()
assert len(found["one"].sharding.device_set) == 1
"""


def test_a_sharding_is_kept() -> None:
    subprocess.run([sys.executable, "-c", SHARDED], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"whole": jnp.float32(7)}, r"holds int32\[\] as whole, .* needs float32\[\]"),
        ({"half": jnp.ones((2, 3))}, r"holds bfloat16\[2, 3\] as half, .* needs float32\[2, 3\]"),
        ({"truth": jnp.array([True])}, r"holds bool\[2\] as truth, .* needs bool\[1\]"),
        ({"more": jnp.zeros(2)}, r"folder holds nothing as more"),
        ({"key": jax.random.key(3, impl="rbg")}, r"key<fry>\[\] as key, .* needs key<rbg>\[\]"),
    ],
)
def test_another_form_is_refused(change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        restored(TREE, TREE | change)
    less = {name: leaf for name, leaf in TREE.items() if name != "whole"}
    with pytest.raises(UserError, match=r"as whole, .* needs nothing"):
        restored(TREE, less)


def test_a_part_can_be_restored() -> None:
    part = {name: TREE[name] for name in ("half", "key")}
    assert_equal(restored(TREE, jax.eval_shape(lambda: part), partial=True), part)
    with pytest.raises(UserError, match="holds nothing as more"):
        restored(TREE, {"more": jnp.zeros(2)}, partial=True)


def test_content_that_is_not_what_was_serialized() -> None:
    tree = {"a": jnp.zeros(3)}
    types = leaf_types(tree)
    for content in (b"", b"no arrays", serialize_pytree(tree)[:-1]):
        with pytest.raises(DamagedError, match="the arrays are not in safetensors format"):
            deserialize_pytree(content, tree, types, WHERE)
    for other in ({"b": jnp.zeros(3)}, {"a": jnp.zeros(4)}, {"a": jnp.zeros(5, bool)}):
        with pytest.raises(DamagedError, match=re.escape("do not include float32[3] as a")):
            deserialize_pytree(serialize_pytree(other), tree, types, WHERE)


@pytest.mark.parametrize(
    "tree",
    [{"a": {"b": np.zeros(1)}, "a/b": np.zeros(1)}, {"__metadata__": np.zeros(1)}],
    ids=["one path", "reserved"],
)
def test_names_that_cannot_be_stored(tree: Any) -> None:
    with pytest.raises(UserError, match="cannot be saved, as two of them have one path or"):
        serialize_pytree(tree)
