from pathlib import Path

import pytest

from jaxcnn.errors import UserError
from jaxcnn.study.shards import Shard


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_optimizer_is_in_one_shard(count: int) -> None:
    names = ["sgd", "adamw", "muon", "lion", "adam"]
    shards = [Shard(number, count).optimizers(names) for number in range(1, count + 1)]
    assert sorted(name for shard in shards for name in shard) == sorted(names)
    assert all(shards)
    assert shards == [Shard(k, count).optimizers(names[::-1]) for k in range(1, count + 1)]


def test_more_shards_than_optimizers_are_refused() -> None:
    with pytest.raises(UserError, match=r"--shard 1/3: .* at most 2"):
        Shard(1, 3).optimizers(["sgd", "adamw"])


def test_parse() -> None:
    shard = Shard.parse("2/12")
    assert (shard, str(shard)) == (Shard(2, 12), "2/12")
    assert (Shard.parse("3/3"), Shard.parse("1/1")) == (Shard(3, 3), Shard(1, 1))
    assert shard.folder(Path("run")) == Path("run/shard-2-of-12")


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", "1/ 3"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UserError, match=r"--shard takes K/N"):
        Shard.parse(text)
