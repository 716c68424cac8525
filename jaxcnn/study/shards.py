"""Shards: parts of a study that machines without a shared program can do, each by itself."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxcnn.errors import UserError

_FORM = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class Shard:
    """All runs of some of a study's optimizers.

    An optimizer's final runs need its tuning only, and what fits one program of an ensemble may
    depend on how many runs there are: so whole optimizers, and the runs are those of the whole.

    Attributes:
        number: of the shard, 1 to `count`.
        count: shards of the study.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Reads "K/N".

        Raises:
            UserError: it is nothing of that form, or K is larger than N.
        """
        match = _FORM.fullmatch(text)
        if not match or int(match[1]) > int(match[2]):
            raise UserError(
                f"--shard takes K/N, the K-th of N shards, with K from 1 to N, got {text!r}"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def optimizers(self, names: Iterable[str]) -> list[str]:
        """Returns which of a study's optimizers are this shard's, whatever order they come in.

        Raises:
            UserError: there are fewer optimizers than shards.
        """
        names = sorted(names)
        if len(names) < self.count:
            raise UserError(
                f"--shard {self}: a shard has whole optimizers, so the shards of this study are "
                f"at most {len(names)}"
            )
        return names[self.number - 1 :: self.count]

    def folder(self, workdir: Path) -> Path:
        """Returns where in a study's workdir the shard has its own, so that none waits."""
        return workdir / f"shard-{self.number}-of-{self.count}"
