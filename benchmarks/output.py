"""The JSON files of the benchmarks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxcnn.devices import environment


def write_json(path: Path, content: Mapping[str, Any], **packages: str) -> None:
    """Writes results, with the device and the versions of all packages.

    Args:
        path: of the file; its folder is created if necessary.
        content: JSON values.
        **packages: versions of further packages, by name.
    """
    versions = {**environment.versions(), **packages}
    whole = {**content, "versions": versions, "device": environment.device()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")
