import json
import os
import subprocess
import sys
from typing import Any

import jax
import pytest

from jaxcnn import parallel
from jaxcnn.errors import UserError
from tests.conftest import REPOSITORY

# What README and docs/parallel.md promise.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What runs on eight simulated devices came to, see `tests.meshes`."""
    simulated = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.meshes", tmp_path_factory.mktemp("meshes")],
        cwd=REPOSITORY,
        env={**os.environ, **simulated, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_eight_devices_do_what_one_does(found: dict[str, Any]) -> None:
    run = found["cifar10"]
    for name in ("eight", "streamed", "resumed"):
        for part in ("params", "batch_stats"):
            assert run[f"{name} {part}"] < TOLERANCE
    assert run["feeds"] == 0
    assert run["stopped"]
    assert run["totals"] == [70] * 4
    for loss in run["losses"].values():
        assert loss == pytest.approx(run["losses"]["one"], rel=TOLERANCE)


def test_only_sums_move_between_devices(found: dict[str, Any]) -> None:
    assert [list(counts) for counts in found["collectives"]] == [["all-reduce"]] * 2


def test_ensembles_on_meshes(found: dict[str, Any]) -> None:
    assert found["ensembles"]["mesh ensemble=2"] == 0  # no device has to do with another
    assert found["ensembles"]["mesh ensemble=4,data=2"] < TOLERANCE


def test_flags() -> None:
    both = ("ensemble", "data")
    assert parallel.parse_mesh(0, "", both) is None
    assert parallel.parse_mesh(4, "", both) == {"ensemble": 4}
    assert parallel.parse_mesh(0, "data=4,ensemble=2", both) == {"data": 4, "ensemble": 2}
    for values, named in (
        ((-1, "", both), "--devices takes a number of devices from 1"),
        ((2, "data=2", both), "got 2 and data=2"),
        ((0, "data=0", both), "--mesh takes sizes of axes as in ensemble=2,data=2, got 'data=0'"),
        ((0, "data=2,data=2", both), "--mesh takes sizes"),
        ((0, "model=2", both), "--mesh takes sizes"),
        ((0, "ensemble=2", ("data",)), "as in data=2, got 'ensemble=2' .one run has no ensemble"),
    ):
        with pytest.raises(UserError, match=named):
            parallel.parse_mesh(*values)


def test_sizes_that_cannot_be() -> None:
    devices = jax.device_count()
    with pytest.raises(UserError, match=f"takes {devices + 1} devices and there are {devices}"):
        parallel.make_mesh({"data": devices + 1})
    mesh = jax.sharding.AbstractMesh((1, 8), ("ensemble", "data"))
    with pytest.raises(UserError, match="--batch-size 50 does not divide over 8 devices: take 48"):
        parallel.Placement(mesh).check_batch(50)
