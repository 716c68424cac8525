import random
from pathlib import Path

import pytest

from tests import outside


@pytest.mark.slow
def test_commands_accept_or_refuse_whatever_a_shell_can_give_them(tmp_path: Path) -> None:
    outside.world(tmp_path)
    generator = random.Random(0)
    for _ in range(25):
        case = outside.random_case(generator, tmp_path)
        assert outside.attempt(case, tmp_path) == "", case
