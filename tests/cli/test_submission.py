import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from jaxcnn.cli import submission

submitit = pytest.importorskip("submitit")

# Stands for experiments/optimizers.py: leaves its arguments, and fails for one shard.
SCRIPT = """
import json, pathlib, sys
argv = sys.argv[1:]
folder = pathlib.Path(argv[argv.index("--workdir") + 1])
folder.mkdir(parents=True, exist_ok=True)
shard = argv[-1].replace("/", "-")
(folder / f"{shard}.json").write_text(json.dumps(argv))
if shard == "2-2" and "fail" in str(folder):
    sys.exit("no such luck")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "optimizers.py"
    path.write_text(SCRIPT)
    return path


def submit(script: Path, argv: str) -> None:
    submission.main(script, argv.split())


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_every_shard_is_started(
    cluster: str, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    study = f"--optimizers sgd adamw lion --epochs 1 --workdir {workdir}"
    submit(script, f"--cluster {cluster} --shards 2 {study} --resources timeout_min=600")
    for shard in ("1/2", "2/2"):
        argv = json.loads((workdir / f"{shard.replace('/', '-')}.json").read_text())
        assert argv == [*study.split(), "--shard", shard]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("shard 1/2: job ")
    merge = f"{Path(sys.executable).name} {script} --merge {workdir}"
    assert lines[-1] == f"all have ended well; join them by: {merge}"


def test_a_failed_shard_is_named(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        submit(script, f"--cluster local --optimizers sgd adamw --workdir {tmp_path / 'fail'}")
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "of 2 shards 2/2 failed: see the logs in" in line
    logs = (tmp_path / "fail" / "jobs").glob("*.err")
    assert sum("no such luck" in log.read_text() for log in logs) == 1


def test_on_slurm_it_is_one_array(
    script: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stand-ins for SLURM's commands take the job and do nothing."""
    for name in ("sbatch", "srun", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\necho Submitted batch job 42\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    workdir = tmp_path / "run"
    submit(script, f"--optimizers sgd adamw lion --workdir {workdir} --resources slurm_partition=p")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[0] for line in lines[:3]] == [
        f"shard {number + 1}/3: job 42_{number}" for number in range(3)
    ]
    assert lines[3].startswith("once all have ended well, join them by: ")
    (file,) = (workdir / "jobs").glob("42*.sh")
    asked = file.read_text()
    assert "#SBATCH --array=0-2" in asked
    assert "#SBATCH --partition=p" in asked
    assert "#SBATCH --job-name=study" in asked
    assert "#SBATCH --time=720" in asked


def test_slurm_can_be_waited_for(
    script: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many shards as optimizers are the most; a job that was killed cannot tell."""

    class Job:
        job_id = "7"
        paths = types.SimpleNamespace(stderr="7.err")

        def exception(self) -> None:
            raise submitit.core.utils.UncompletedJobError("killed")

    started: list[Any] = []

    def start(cluster: str, folder: Path, *rest: Any) -> list[Job]:
        started.append((cluster, folder, *rest))
        return [Job(), Job()]

    monkeypatch.setattr("jaxcnn.cli.submission._start", start)
    argv = f"--optimizers sgd adamw --workdir {tmp_path / 'run'}"
    with pytest.raises(SystemExit):
        submit(script, f"--wait --shards 2 {argv}")
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"shard {shard}: job 7, log 7.err" for shard in ("1/2", "2/2")]
    assert "of 2 shards 1/2, 2/2 failed" in err
    ((cluster, folder, resources, commands),) = started
    assert (cluster, folder) == ("slurm", tmp_path / "run" / "jobs")
    assert resources == {"name": "study", "timeout_min": 720}
    assert commands[1] == [sys.executable, str(script), *argv.split(), "--shard", "2/2"]


@pytest.mark.parametrize(
    ("argv", "named"), [("--cluster moon", "'moon'"), ("--clutser local", "--clutser")]
)
def test_a_malformed_command_line_gets_tyro_s_message(
    argv: str, named: str, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        submit(script, argv)
    assert caught.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ("--shards 5", "--shards takes a whole number from 1 to that of the optimizers, 4"),
        ("--shards -1", "got -1"),
        ("--shard 1/2", "--shard and --merge are for optimizers.py"),
        ("--merge here", "--shard and --merge are for optimizers.py"),
        ("--seeds 0", "--seeds takes a whole number"),
        ("--cluster local --resources time", "--resources takes key=value pairs"),
        ("--cluster local --resources banana=3", "'banana' need to be prefixed"),
        ("--cluster local --resources nodes=many", "expected type"),
        ("--cluster slurm", 'Could not detect "srun"'),
    ],
)
def test_a_mistake_is_one_sentence(
    argv: str,
    named: str,
    script: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM there
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        submit(script, argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert named in line


def test_without_submitit(
    script: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SystemExit):
        submit(script, f"--workdir {tmp_path / 'run'}")
    (line,) = capsys.readouterr().err.splitlines()
    assert "submit_study.py needs submitit: pip install 'jaxcnn[cluster]'" in line
    assert not (tmp_path / "run").exists()
