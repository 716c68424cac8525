"""The command line that has submitit start the shards of a study."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro import conf

from jaxcnn.cli.console import ending_on_errors
from jaxcnn.cli.study import parse_study_flags, study_workdir
from jaxcnn.cli.values import parse_pairs
from jaxcnn.errors import WORKDIR_REMEDY, UserError, writing
from jaxcnn.study.shards import Shard

if TYPE_CHECKING:
    import submitit


@dataclass(frozen=True)
class SubmissionFlags:
    """Starts the shards of a study as jobs and says how to join them.

    All other flags are those of experiments/optimizers.py, whose --help lists them. The same
    command goes on with shards that were stopped. Logs lie in the workdir, in jobs/.
    """

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """Where: SLURM, processes of this machine all at once, or one after the other."""
    shards: int = 0
    """Parts of the study; 0 for one for every optimizer."""
    resources: Annotated[
        tuple[str, ...],
        conf.arg(
            metavar="KEY=VALUE ...", help_behavior_hint="(default: name=study timeout_min=720)"
        ),
    ] = ()
    """Of each job, by submitit's names: timeout_min=60 gpus_per_node=1 slurm_partition=gpu, say."""
    wait: bool = False
    """Wait for the jobs on SLURM too."""


def main(script: Path, argv: Sequence[str] | None = None) -> None:
    """Submits a study from a command line and ends the process on an error.

    Args:
        script: experiments/optimizers.py.
        argv: the arguments; those of the process if None.

    Raises:
        SystemExit: with status 2 after a mistake of the user's, 130 after Ctrl-C.
    """
    with ending_on_errors("submit_study"):
        argv = sys.argv[1:] if argv is None else argv
        flags, rest = tyro.cli(SubmissionFlags, args=argv, return_unknown_args=True)
        submit(script, flags, rest)


def submit(script: Path, flags: SubmissionFlags, argv: Sequence[str]) -> None:
    """Submits the shards of a study.

    Args:
        script: experiments/optimizers.py.
        flags: how.
        argv: the flags of the study.

    Raises:
        UserError: submitit or the cluster is not there, a value cannot be used, or a shard that was
            waited for has failed.
    """
    study = parse_study_flags(argv)  # mistakes show before any job
    if study.shard or study.merge:
        raise UserError("--shard and --merge are for optimizers.py: leave them away here")
    most = len(study.optimizers)
    if not 0 <= flags.shards <= most:
        raise UserError(
            f"--shards takes a whole number from 1 to that of the optimizers, {most}, or 0 for "
            f"that, got {flags.shards}"
        )
    count = flags.shards or most
    shards = [Shard.parse(f"{number}/{count}") for number in range(1, count + 1)]
    resources = {"name": "study", "timeout_min": 720}
    resources |= parse_pairs("--resources", flags.resources)
    workdir = study_workdir(study)
    python = [sys.executable, str(script)]
    commands = [[*python, *argv, "--shard", str(shard)] for shard in shards]
    jobs = _start(flags.cluster, workdir / "jobs", resources, commands)
    for shard, job in zip(shards, jobs, strict=True):
        _say(f"shard {shard}: job {job.job_id}, log {job.paths.stderr}")
    merge = shlex.join([Path(sys.executable).name, str(script), "--merge", str(workdir)])
    if flags.cluster == "slurm" and not flags.wait:
        _say(f"once all have ended well, join them by: {merge}")
        return
    failed = [shard for shard, job in zip(shards, jobs, strict=True) if not _ends_well(job)]
    if failed:
        raise UserError(
            f"of {count} shards {', '.join(map(str, failed))} failed: see the logs in "
            f"{workdir / 'jobs'}; the same command goes on with them"
        )
    _say(f"all have ended well; join them by: {merge}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _start(
    cluster: str, folder: Path, resources: dict[str, Any], commands: list[list[str]]
) -> "list[submitit.Job[str]]":
    """Has each command run as a job; on SLURM they are one array."""
    try:
        import submitit
    except ImportError:
        raise UserError(
            "submit_study.py needs submitit: pip install 'jaxcnn[cluster]', or use "
            "experiments/study.slurm"
        ) from None
    try:
        with writing(folder, WORKDIR_REMEDY):
            executor = submitit.AutoExecutor(folder, cluster=cluster)
            executor.update_parameters(**resources)
            with executor.batch():
                return [
                    executor.submit(submitit.helpers.CommandFunction(command))
                    for command in commands
                ]
    except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:
        # One sentence of what submitit or sbatch says in several lines.
        said = " ".join(str(error).split())
        raise UserError(
            f"--cluster {cluster} with --resources {resources} is refused: {said}"
        ) from None


def _ends_well(job: "submitit.Job[str]") -> bool:
    """Waits for a job, and says whether its command succeeded."""
    import submitit

    try:
        return job.exception() is None
    except submitit.core.utils.UncompletedJobError:  # killed before it could tell
        return False
