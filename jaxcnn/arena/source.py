"""The code that computes entries, as a digest."""

import functools
import hashlib
from pathlib import Path

import jaxcnn

# What decides the numbers of a run, and which runs there are; no more, so that entries stay
# comparable while other code changes. The catalog of optimizers and the search spaces are in the
# entries.
_LAYERS = ("convolution", "features", "library", "pooling", "stages")
_TRAIN = (
    "ensemble", "ensemble_program", "evaluate", "feed", "loop", "losses", "member", "members",
    "setup", "state", "step_log", "steps",
)  # fmt: skip
_FILES = (
    "arena/entry.py",
    "arena/phases.py",
    "arena/track.py",
    "arena/trials.py",
    "data/augment.py",
    "networks/cnn.py",
    *(f"networks/cpu/{name}.py" for name in _LAYERS),
    "networks/cpu/native/*",
    "optim/*.py",
    *(f"train/{name}.py" for name in _TRAIN),
)


@functools.cache
def source_digest() -> str:
    """Returns the SHA-256 of the source of what computes entries, its first 12 digits."""
    package = Path(jaxcnn.__file__).parent
    total = hashlib.sha256()
    for pattern in _FILES:
        for path in sorted(package.glob(pattern)):
            if path.is_file():
                total.update(path.relative_to(package).as_posix().encode() + b"\0")
                total.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return total.hexdigest()[:12]
