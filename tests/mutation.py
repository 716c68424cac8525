"""Plants faults in the package, one at a time, and looks whether its quick tests notice.

    python -m tests.mutation --faults 200 --jobs 2

Each fault is a change of one place in a copy of the repository: another operator or number, a
condition turned round, a statement left out. The quick tests of the faulty module run there, see
`tests_of`; a fault is caught if they fail or do not end. What survives is printed: a place to
look at, since some changes make no difference (a larger buffer, say).

The operators are the usual ones, as in Jia and Harman, An analysis and survey of the development of
mutation testing, 2011.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import copy
import dataclasses
import difflib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent

# Modules whose quick tests are not those of the file that bears their name, or not those alone.
TESTS = {
    "jaxcnn/__main__.py": ["tests/cli/test_tools.py"],
    "jaxcnn/arena/description.py": ["tests/arena/test_entry.py"],
    "jaxcnn/cli/tools.py": ["tests/cli/test_tools.py", "tests/train/test_doctor.py"],
    "jaxcnn/deploy/card.py": ["tests/deploy/test_export.py"],
    "jaxcnn/devices/keys.py": ["tests/devices/test_mesh.py", "tests/storage/test_arrays.py"],
    "jaxcnn/devices/mesh.py": ["tests/devices/test_mesh.py", "tests/devices/test_processes.py"],
    "jaxcnn/networks/cnn.py": ["tests/networks/test_cnn.py", "tests/networks/test_pytorch.py"],
    "jaxcnn/networks/inspect.py": ["tests/networks/test_cnn.py"],
    "jaxcnn/storage/shared.py": ["tests/devices/test_processes.py"],
    "jaxcnn/study/runs.py": ["tests/study/test_runs.py", "tests/study/test_study.py"],
    "jaxcnn/train/evaluate.py": ["tests/train/test_fit.py"],
    "jaxcnn/train/identity.py": ["tests/train/test_fit.py"],
    "jaxcnn/train/result.py": ["tests/train/test_fit.py"],
    "jaxcnn/train/ensemble_program.py": ["tests/train/test_ensemble.py"],
    "jaxcnn/train/member.py": ["tests/train/test_ensemble.py"],
    "jaxcnn/train/members.py": ["tests/train/test_members.py"],
    "jaxcnn/train/run_monitor.py": ["tests/train/test_fit.py"],
    "jaxcnn/train/run_program.py": ["tests/train/test_fit.py"],
    "jaxcnn/train/setup.py": ["tests/train/test_setup.py", "tests/train/test_fit.py"],
}

_SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.USub: ast.UAdd,
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum"}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A change of one place.

    Attributes:
        module: path from the repository.
        line: of the place, from 1.
        before: the line as it is.
        after: as it is with the fault; where several lines change, those that differ.
        source: the whole module with the fault.
    """

    module: str
    line: int
    before: str
    after: str
    source: str = dataclasses.field(repr=False)


def tests_of(module: str) -> list[str]:
    """Returns the test files of a module: by its name, or as `TESTS` says."""
    path = Path(module)
    mirror = Path("tests", *path.parts[1:-1], f"test_{path.name}")
    return TESTS.get(module, [str(mirror)])


def modules() -> list[str]:
    """Returns the package's modules that hold code."""
    paths = sorted((REPOSITORY / "jaxcnn").rglob("*.py"))
    return [str(path.relative_to(REPOSITORY)) for path in paths if path.name != "__init__.py"]


def faults(module: str) -> list[Fault]:
    """Returns every fault that can be planted in a module."""
    source = (REPOSITORY / module).read_text()
    lines = source.splitlines(keepends=True)
    found = []
    for node in _places(ast.parse(source)):
        for place, changed in _changes(node):
            text = _replaced(lines, place, changed)
            diff = [
                line
                for line in difflib.ndiff(source.splitlines(), text.splitlines())
                if line.startswith(("- ", "+ "))
            ]
            before, after = (
                " ".join(line[2:].strip() for line in diff if line[0] == sign) for sign in "-+"
            )
            if before != after:
                found.append(Fault(module, place.lineno, before, after, text))
    return found


def _places(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Walks over what decides behaviour: neither annotations nor docstrings nor texts."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.BinOp) and "Annotated[" in ast.unparse(node):
        return  # a union of types
    if isinstance(node, ast.expr | ast.stmt):
        yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _places(child)


def _changes(node: ast.expr | ast.stmt) -> Iterator[tuple[ast.expr | ast.stmt, ast.AST]]:
    """Yields what may stand elsewhere, and the place: a node or a part of it."""
    other = copy.deepcopy(node)
    match other:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.UnaryOp(op=op) if type(op) in _SWAPS:
            if not any(map(_is_text, (getattr(other, side, None) for side in ("left", "right")))):
                other.op = _SWAPS[type(op)]()
                yield node, other
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield node, operand
        case ast.Compare(ops=[op]) if type(op) in _SWAPS:
            other.ops = [_SWAPS[type(op)]()]
            yield node, other
        case ast.Constant(value=bool() as value):
            yield node, ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield node, ast.Constant(value + 1)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield node.test, ast.UnaryOp(ast.Not(), test)  # type: ignore[union-attr]
        case ast.Call(func=ast.Name(id=name) as function) if name in _NAMES:
            yield node.func, ast.Name(_NAMES[function.id])  # type: ignore[union-attr]
        case ast.Call(func=ast.Attribute(attr=name) as function) if name in _NAMES:
            function.attr = _NAMES[name]
            yield node.func, function  # type: ignore[union-attr]
        case ast.Expr(value=ast.Call() | ast.Yield()) | ast.AugAssign() | ast.Raise():
            yield node, ast.Pass()
        case ast.Return(value=ast.expr()):
            yield node, ast.Return(ast.Constant(None))
        case ast.Break() | ast.Continue():
            yield node, ast.Pass()


def _is_text(node: ast.AST | None) -> bool:
    """Whether it is a string, which is formatted or added to: no arithmetic."""
    value = node.value if isinstance(node, ast.Constant) else ""
    return isinstance(node, ast.Constant | ast.JoinedStr) and isinstance(value, str)


def _replaced(lines: list[str], node: ast.expr | ast.stmt, changed: ast.AST) -> str:
    """Returns the source with one node replaced, and the rest as it was written."""
    text = ast.unparse(changed)
    if isinstance(node, ast.expr):
        text = f"({text})"
    else:
        indent = " " * node.col_offset
        text = text.replace("\n", f"\n{indent}")
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    head = lines[first].encode()[: node.col_offset].decode()
    tail = lines[last].encode()[node.end_col_offset :].decode()
    return "".join([*lines[:first], head, text, tail, *lines[last + 1 :]])


def choose(count: int, seed: int, only: list[str]) -> list[Fault]:
    """Draws faults, as many of each module as can be."""
    generator = random.Random(seed)
    drawn = {module: faults(module) for module in only}
    for found in drawn.values():
        generator.shuffle(found)
    chosen: list[Fault] = []
    while len(chosen) < count and any(drawn.values()):
        for found in drawn.values():
            if found and len(chosen) < count:
                chosen.append(found.pop())
    return chosen


class Copy:
    """A copy of the repository, in which one fault after the other is tried."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in listed.stdout.splitlines():
            if (REPOSITORY / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, folder / name)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "JAXCNN_TEST_PROGRAMS": str(programs),
        }

    def passes(self, tests: list[str], seconds: float | None = None) -> bool:
        """Whether tests pass in time."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
        running = subprocess.Popen(
            [*command, *tests],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return running.wait(timeout=seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):  # what failed tests leave behind, too
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()

    def survives(self, fault: Fault, seconds: float) -> bool:
        """Whether the tests of a fault's module pass with it."""
        path = self.folder / fault.module
        sound = path.read_bytes()
        path.write_text(fault.source)
        try:
            return self.passes(tests_of(fault.module), seconds)
        finally:
            path.write_bytes(sound)


def main() -> None:
    """Prints what survived and how many were caught; ends with status 1 if under nine in ten."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--faults", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--modules", nargs="*", default=modules(), help="paths; default: all")
    asked = parser.parse_args()
    chosen = choose(asked.faults, asked.seed, asked.modules)
    with tempfile.TemporaryDirectory() as name:
        copies: queue.Queue[Copy] = queue.Queue()
        for number in range(asked.jobs):
            copies.put(Copy(Path(name) / str(number), Path(name) / "programs"))
        seconds: dict[str, float] = {}

        def unharmed(module: str) -> None:
            mine = copies.get()
            began = time.perf_counter()
            if not mine.passes(tests_of(module)):
                sys.exit(f"{module}: {' '.join(tests_of(module))} fail without a fault")
            seconds[module] = 60 + 5 * (time.perf_counter() - began)
            copies.put(mine)

        def attempt(fault: Fault) -> bool:
            mine = copies.get()
            alive = mine.survives(fault, seconds[fault.module])
            copies.put(mine)
            return alive

        with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
            list(pool.map(unharmed, dict.fromkeys(fault.module for fault in chosen)))
            survivors = []
            for fault, alive in zip(chosen, pool.map(attempt, chosen), strict=True):
                if alive:
                    survivors.append(fault)
                    place = f"{fault.module}:{fault.line}"
                    sys.stdout.write(f"{place}\n  - {fault.before}\n  + {fault.after}\n")
                    sys.stdout.flush()
    caught = 1 - len(survivors) / len(chosen)
    found = {"faults": len(chosen), "survivors": len(survivors), "caught": round(caught, 3)}
    sys.stdout.write(f"{json.dumps(found)}\n")
    sys.exit(caught < 0.9)


if __name__ == "__main__":
    main()
