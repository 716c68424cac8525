import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxcnn.devices.mesh import ONE_DEVICE, Placement, describe_mesh, make_mesh, parse_mesh
from jaxcnn.errors import UserError
from jaxcnn.networks.cnn import MnistCNN
from tests.conformance import SmallCNN
from tests.conftest import REPOSITORY

# Starts `tests.meshes` with float64 wherever flax and jaxcnn have float32.
DOUBLE = (
    "import jax, runpy; jax.numpy.float32 = jax.numpy.float64; "
    "runpy.run_module('tests.meshes', run_name='__main__')"
)
# How far apart rounding may bring two runs in ten steps, as a share of how far they have moved.
# Whatever else devices did differently (statistics or dropout of a part of a batch, a gradient that
# is lost) shows in the first digits. In float64 no relu and no pool turns the other way, but by a
# chance of one in millions, and 1e-16 would have to grow a million times. In float32 about one in a
# million of them does, those within 1e-6 of the threshold: that changes a gradient by the root of
# it, 1e-3 of its norm.
TOLERANCES = {"float64": 1e-10, "float32": 1e-2}


def abstract(ensemble: int, data: int) -> AbstractMesh:
    """A mesh of no devices, with the axes of `make_mesh`."""
    auto = (jax.sharding.AxisType.Auto,) * 2  # in jax 0.12 an abstract mesh has others by default
    return AbstractMesh((ensemble, data), ("ensemble", "data"), auto)


EIGHT = abstract(1, 8)


def runs(folder: Path, which: str, precision: str) -> dict[str, Any]:
    """What runs on eight simulated devices came to, see `tests.meshes`."""
    simulated = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    start = ["-m", "tests.meshes"]
    if precision == "float64":
        simulated |= {"JAX_ENABLE_X64": "1", "JAXCNN_KERNELS": "xla"}  # they have float32 only
        start = ["-c", DOUBLE]
    run = subprocess.run(
        [sys.executable, *start, folder, which],
        cwd=REPOSITORY,
        env={**os.environ, **simulated, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["run"]["dtypes"] == [precision]
    return found


@pytest.fixture(
    scope="module",
    params=[
        ("small", "float64"),
        pytest.param(
            ("networks", "float64"), marks=[pytest.mark.slow, pytest.mark.lightly_compiled]
        ),
        pytest.param(("networks", "float32"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What small networks, and those that users train, came to."""
    which, precision = request.param
    found = runs(tmp_path_factory.mktemp("meshes"), which, precision)
    return {**found, "tolerance": TOLERANCES[precision]}


def test_eight_devices_do_what_one_does(found: dict[str, Any]) -> None:
    run = found["run"]
    for name in ("eight", "streamed", "resumed"):
        for part in ("params", "batch_stats"):
            assert run[f"{name} {part}"] < found["tolerance"]
    assert run["feeds"] == 0
    assert run["stopped"]
    assert run["totals"] == [70] * 4
    for loss in run["losses"].values():
        assert loss == pytest.approx(run["losses"]["one"], rel=found["tolerance"])


def test_only_sums_move_between_devices(found: dict[str, Any]) -> None:
    assert found["collectives"]
    assert all(list(counts) == ["all-reduce"] for counts in found["collectives"])


def test_ensembles_on_meshes(found: dict[str, Any]) -> None:
    assert found["ensembles"].pop("mesh ensemble=4") == 0  # no device has to do with another
    for distance in found["ensembles"].values():
        assert distance < found["tolerance"]


def test_flags() -> None:
    both = ("ensemble", "data")
    assert parse_mesh(0, "", both) is None
    assert parse_mesh(4, "", both) == {"ensemble": 4}
    assert parse_mesh(1, "", ("data",)) == {"data": 1}
    assert parse_mesh(0, "data=4,ensemble=2", both) == {"data": 4, "ensemble": 2}
    for values, named in (
        ((-1, "", both), "--devices takes a number of devices from 1"),
        ((2, "data=2", both), "got 2 and data=2"),
        ((0, "data=0", both), "--mesh takes sizes of axes as in ensemble=2,data=2, got 'data=0'$"),
        ((0, "data=2,data=2", both), "--mesh takes sizes"),
        ((0, "nonsense", both), "--mesh takes sizes"),
        ((0, "model=2", both), "--mesh takes sizes.*got 'model=2'$"),
        ((0, "ensemble=2", ("data",)), "as in data=2, got 'ensemble=2' .one run has no ensemble"),
    ):
        with pytest.raises(UserError, match=named):
            parse_mesh(*values)


def test_sizes_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = jax.device_count()
    hint = "or XLA_FLAGS=--xla_force_host_platform_device_count"
    with pytest.raises(
        UserError,
        match=f"a mesh of data={devices + 1} takes {devices + 1} devices and there are {devices}:"
        f".*{hint}={devices + 1} to simulate",
    ):
        make_mesh({"data": devices + 1})
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=r"or --devices$"):
        make_mesh({"ensemble": devices + 1})
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(UserError, match="takes 1 of the 3 devices that 2 processes have"):
        make_mesh({"data": 1})
    placement = Placement(EIGHT)
    placement.check_batch(48)
    ONE_DEVICE.check_batch(50)
    with pytest.raises(UserError, match=r"50 does not divide over 8 devices: take 48 or 56, or an"):
        placement.check_batch(50)
    with pytest.raises(UserError, match=r"--batch-size 5 does not divide .* take 8, or another"):
        placement.check_batch(5)


def test_a_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = make_mesh({"data": 1})
    assert dict(mesh.shape) == {"ensemble": 1, "data": 1}
    assert describe_mesh(mesh) == "mesh data=1"
    assert describe_mesh(EIGHT) == "mesh data=8"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert dict(make_mesh({"data": jax.device_count()}).shape)["data"] > 0
    many = abstract(2, 4)
    assert describe_mesh(many) == "mesh ensemble=2,data=4 of 2 processes"


def test_shardings() -> None:
    """What divides is split; an epoch's last batch that does not is replicated."""
    placement = Placement(EIGHT)
    assert placement.batches(16) == NamedSharding(EIGHT, PartitionSpec(None, "data"))
    assert placement.batches(12) == placement.replicated == NamedSharding(EIGHT, PartitionSpec())
    assert placement.members == NamedSharding(EIGHT, PartitionSpec("ensemble"))
    one = ONE_DEVICE
    assert (one.batches(16), one.replicated, one.members) == (None, None, None)
    assert one.rows(12) == slice(0, 12)
    assert (one.size("data"), placement.size("data"), placement.size("ensemble")) == (1, 8, 1)


def test_the_images_of_a_batch_are_sharded() -> None:
    for size, sharded in ((16, True), (12, False)):
        with jax.sharding.use_abstract_mesh(EIGHT):
            traced = jax.make_jaxpr(Placement(EIGHT).shard_batch)(np.arange(size))
        assert ("sharding_constraint" in str(traced)) == sharded
    assert not jax.make_jaxpr(ONE_DEVICE.shard_batch)(np.arange(16)).eqns


def test_only_a_sharded_batch_trains_layer_by_layer() -> None:
    network, small = MnistCNN(), SmallCNN()
    spread = Placement(abstract(8, 1))
    for placement, staged in (
        (ONE_DEVICE, True),
        (spread, True),
        (Placement(EIGHT), False),
    ):
        assert placement.model(network).staged == staged
        assert placement.model(small) is small  # a user's network has no stages


def test_pytrees_come_back_as_they_went() -> None:
    tree = {"key": jax.random.key(3), "numbers": np.arange(6.0, dtype=np.float32).reshape(2, 3)}
    for placement in (ONE_DEVICE, Placement(make_mesh({}))):
        back = placement.fetch(placement.replicate(tree))
        assert jax.random.key_data(back["key"]).tolist() == [0, 3]
        np.testing.assert_array_equal(back["numbers"], tree["numbers"])
        np.testing.assert_array_equal(
            placement.gather_members(placement.shard_members(tree["numbers"])), tree["numbers"]
        )
        sent = placement.send({"image": tree["numbers"]}, 3)
        np.testing.assert_array_equal(sent["image"], tree["numbers"])
