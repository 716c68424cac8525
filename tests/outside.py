"""Starts commands as a shell would, with impossible flags, variables and streams.

    python -m tests.outside --processes 3000

A process is a defect if it prints a traceback, ends with another status than its case allows,
reports a mistake neither in one sentence nor in a message of tyro's, leaves a file behind although
it was refused, or does not end. `tests.fuzzing` does the same within one process.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from jaxcnn.data.dataset import Dataset
from tests import saved
from tests.official import CIFAR_NAMES
from tests.stripes import striped_split

REPOSITORY = Path(__file__).parent.parent
HANG = 300
TRAIN = ("experiments/mnist.py", "experiments/cifar10.py")
STUDY = ("experiments/optimizers.py",)
TOOLS = ("evaluate", "report", "landscape", "predict", "export", "demo")
ARENA = ("arena", "arena add", "arena merge", "arena verify")

# Flags whose values are paths, and the others. No case trains: each has a mistake or --help.
PATHS = {
    **dict.fromkeys(TRAIN, ("--workdir", "--data-dir", "--archive-dir", "--recipe")),
    **dict.fromkeys(STUDY, ("--workdir", "--data-dir", "--archive-dir", "--join")),
    "evaluate": ("", "--data-dir", "--archive-dir"),
    "report": ("", "--out", "--data-dir", "--archive-dir"),
    "landscape": ("", "--out", "--data-dir", "--archive-dir"),
    "predict": ("", "--prepared", "image"),
    "export": ("", "--out"),
    "demo": ("", "--out", "--data-dir", "--archive-dir"),
    "arena": ("--workdir", "--data-dir", "--archive-dir"),
    "arena add": ("--space", "--workdir", "--data-dir", "--archive-dir"),
    "arena merge": ("", "--workdir"),
    "arena verify": ("", "--data-dir", "--archive-dir"),
}
VALUES = {
    **dict.fromkeys(
        TRAIN,
        (
            *"--epochs --batch-size --optimizer --learning-rate --optimizer-args".split(),
            *"--weight-decay --schedule --warmup --clip --ema --seed --data --keep".split(),
            *"--resume --report --feed --devices --mesh --processes --process-id".split(),
            "--checkpoint-every",
        ),
    ),
    **dict.fromkeys(
        STUDY,
        (
            *"--optimizers --learning-rates --seeds --tune-seeds --network --recipe".split(),
            *"--epochs --batch-size --validation --target --chunk --devices --mesh".split(),
            *"--processes --process-id --data".split(),
        ),
    ),
    "evaluate": ("--checkpoint",),
    "report": ("--checkpoint",),
    "landscape": ("--checkpoint", "--images", "--eigenvalues"),
    "predict": ("--checkpoint",),
    "export": ("--checkpoint", "--format"),
    "demo": ("--checkpoint",),
    "arena": (
        *"--optimizers --variants --trials --seeds --validation --chunk --devices --mesh".split(),
        *"--processes --process-id".split(),
    ),
    "arena add": ("--tracks", "--variants", "--trials", "--seeds", "--validation", "--chunk"),
    "arena merge": ("--workdir",),
    "arena verify": ("--runs", "--seed", "--optimizer"),
}
WRONG = [
    *("", " ", "-", "--", "nan", "-1", "1e400", "0x1", "9" * 40, "\u0663", "None", "[]", "a=b"),
    *("x" * 5000, "\n", "\x1b[31m", "\U0001f600", "../..", "~", "{}", "1,2", "data=", "=", ":"),
    *(
        "a:b",
        "os:_exit",
        "subprocess:run",
        "json:loads",
        "no.module:make",
        "1:2",
        "module:",
        "\x7f",
    ),
]
# Titles of tyro's messages.
TYRO = (
    "Unrecognized options",
    "Value error",
    "Invalid choice",
    "Missing argument",
    "Required options",
    "Missing subcommand",
)
VARIABLES = ("JAXCNN_CACHE_DIR", "JAXCNN_ARCHIVE_DIR", "TFDS_DATA_DIR", "HOME", "XDG_CACHE_HOME")
STREAMS: dict[str, dict[str, str]] = {
    "as usual": {},
    "output full": {"1": ">/dev/full"},
    "output closed": {"1": ">&-"},
    "errors full": {"2": "2>/dev/full"},
    "errors closed": {"2": "2>&-"},
    "both full": {"1": ">/dev/full", "2": "2>/dev/full"},
    "both closed": {"1": ">&-", "2": "2>&-"},
    "input closed": {"0": "<&-"},
    "read by nobody": {"1": "| true"},
}
ENCODINGS: tuple[dict[str, str], ...] = (
    {},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A process to start.

    Attributes:
        command: a script, or a subcommand of jaxcnn.
        argv: its arguments.
        variables: of its environment.
        streams: a key of `STREAMS`.
        statuses: exit statuses that are allowed.
    """

    command: str
    argv: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    streams: str = "as usual"
    statuses: tuple[int, ...] = (2,)


def world(folder: Path) -> None:
    """Creates what the cases name: a run, an image, and paths at which no file can be."""
    splits = (striped_split((28, 28, 1), count, count) for count in (330, 70))
    dataset = Dataset("mnist", "tiny", *splits, tuple(CIFAR_NAMES))
    saved.save(folder / "run", dataset, saves=saved.EPOCHS)
    (folder / "file").write_text("a file")
    (folder / "space.toml").write_text('[space]\nlearning_rate = [1e-3, 1.0, "log"]\n')
    (folder / "loop").symlink_to(folder / "loop")
    from PIL import Image

    Image.new("L", (28, 28), 255).save(folder / "p\u0457ctur\u00e9.png")


def impossible(folder: Path) -> list[str]:
    """Returns paths that no command can read or write."""
    return [
        "~nosuchuser/x",
        "~nosuchuser",
        str(folder / ("n" * 300)),
        str(folder.joinpath(*1200 * ["deep"])),
        str(folder / "file" / "below"),
        str(folder / "file" / "below" / "more"),
        str(folder / "loop" / "x"),
        "/proc/jaxcnn/x",
        "/sys/jaxcnn",
        "/dev/null/x",
        "/dev/full/x",
    ]


def random_case(generator: random.Random, folder: Path) -> Case:
    """Returns a random case."""
    command = generator.choice([*TRAIN, *STUDY, *TOOLS, *ARENA])
    streams = generator.choice([*STREAMS, *4 * ["as usual"]])
    variables = dict(generator.choice(ENCODINGS))
    kind = generator.choice(["path", "path", "value", "value", "variable", "help", "names"])
    base = needed(command, folder)
    statuses: tuple[int, ...] = (2,)
    if kind == "path":
        flag = generator.choice(PATHS[command])
        base = given(base, flag, generator.choice(impossible(folder)))
        if command in (*TRAIN, *STUDY):
            base += ["--data", "real"] if command in STUDY else ["--data", data_of(command)]
    elif kind == "value":
        flag, wrong = generator.choice(VALUES[command]), generator.choice(WRONG)
        base += [flag, wrong] if generator.random() < 0.7 else [f"{flag}={wrong}"]
        # Some values are valid; the data that the command then looks for is missing.
        if command in (*TRAIN, *STUDY):
            base += ["--archive-dir", str(folder / "nowhere")]
            base += ["--data", "real"] if command in STUDY else ["--data", data_of(command)]
    elif kind == "variable":
        variables[generator.choice(VARIABLES)] = generator.choice(impossible(folder))
        if command in (*TRAIN, *STUDY):
            base += ["--data", "real"] if command in STUDY else ["--data", data_of(command)]
        else:  # which may not need it
            statuses = (0, 2)
    elif kind == "help":
        base, statuses = ["--help"], (0,)
    else:
        base = given(base, generator.choice(["", "image"]), str(folder / "p\u0457ctur\u00e9.png"))
        if command in (*TRAIN, *STUDY):
            base = ["--workdir", str(folder / "p\u0457ctur\u00e9.png" / "x")]
            base += ["--data", "real"] if command in STUDY else ["--data", data_of(command)]
        elif command == "predict":
            statuses = (0, 2)
    if statuses != (2,) and STREAMS[streams].get("1"):
        statuses = (0, 2)
    return Case(command, tuple(base), tuple(variables.items()), streams, statuses)


def data_of(command: str) -> str:
    """Returns the value of --data that stands for the real data of an experiment."""
    return Path(command).stem


def needed(command: str, folder: Path) -> list[str]:
    """Returns the arguments that a command requires."""
    run = str(folder / "run")
    return {
        "predict": [run, str(folder / "p\u0457ctur\u00e9.png")],
        "export": [run, "--format", "safetensors", "--out", "x.safetensors"],
        "demo": [run, "--no-open"],
        "arena": ["--archive-dir", str(folder / "nowhere")],
        "arena add": ["json:loads", "--space", str(folder / "space.toml")],
        "arena merge": [run],
        "arena verify": [str(folder / "file")],
    }.get(command, [run] if command in TOOLS else [])


def given(base: list[str], flag: str, value: str) -> list[str]:
    """Returns arguments with one of them replaced: the first one, an image, or a flag's."""
    if flag == "image":
        return [*base[:1], value] if base else base
    if flag == "":
        return [value, *base[1:]]
    if flag in base:
        place = base.index(flag)
        return [*base[: place + 1], value, *base[place + 2 :]]
    return [*base, flag, value]


def attempt(case: Case, folder: Path) -> str:
    """Runs a case in a folder of its own; returns what is wrong with how it ended, or ""."""
    program = (
        [str(REPOSITORY / case.command)]
        if case.command.endswith(".py")
        else ["-m", "jaxcnn", case.command]
    )
    with tempfile.TemporaryDirectory() as name:
        own = Path(name)
        home = own / "home"
        (own / "cwd").mkdir()
        home.mkdir()
        redirections = " ".join(STREAMS[case.streams].values())
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("JAXCNN_", "TFDS_"))},
            "PYTHONPATH": str(REPOSITORY),
            "JAX_PLATFORMS": "cpu",
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            **dict(case.variables),
        }
        quoted = f'timeout -k 10 {HANG} "$@" {redirections}'
        if redirections.startswith("|"):
            quoted = f"set -o pipefail; {quoted}"
        argv = ["bash", "-c", quoted, "bash", sys.executable, *program, *case.argv]
        try:
            ended = subprocess.run(
                argv, cwd=own / "cwd", env=environment, capture_output=True, check=False
            )
        except ValueError:  # a byte 0 cannot be an argument
            return ""
        status = ended.returncode
        said = ended.stderr.decode(errors="replace")
        left = sorted(str(path.relative_to(own)) for path in own.rglob("*") if path.is_file())
        left = [path for path in left if not path.startswith("home/cache")]
    if "Traceback" in said or b"Traceback" in ended.stdout:
        return f"traceback: {said.strip().splitlines()[-1]}"
    if "Exception ignored" in said:
        return "an exception that Python ignored"
    if status not in case.statuses:
        return f"status {status}"
    sentences = sum("error:" in line for line in said.splitlines())
    tyro = any(title in said for title in TYRO)
    if status == 2 and not STREAMS[case.streams].get("2") and sentences + tyro != 1:
        return f"no message: {said[:300]!r}"
    if status == 2 and left and case.statuses == (2,):
        return f"left behind: {left}"
    return ""


def main() -> None:
    """Prints the defects and the number of processes; status 1 if there are defects."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--processes", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    generator = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world(folder)
        cases = [random_case(generator, folder) for _ in range(asked.processes)]
        found: Counter[str] = Counter()
        with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
            for case, wrong in zip(
                cases, pool.map(lambda case: attempt(case, folder), cases), strict=True
            ):
                found["defects" if wrong else "sound"] += 1
                if wrong:
                    variables = " ".join(f"{key}={value!r}" for key, value in case.variables)
                    argv = " ".join(f"{argument[:60]!r}" for argument in case.argv)
                    sys.stdout.write(
                        f"{wrong}\n  {variables} {case.command} {argv} ({case.streams})\n"
                    )
                    sys.stdout.flush()
    sys.stdout.write(f"{json.dumps({'processes': len(cases), **found})}\n")
    sys.exit(found["defects"] > 0)


if __name__ == "__main__":
    main()
