import shutil

import pytest

from tests import failing


@pytest.mark.slow
def test_writes_that_fail_end_in_a_sentence_and_the_same_command_completes_the_run() -> None:
    """From the arrays of the first checkpoint on, and from the first figure of the report on."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler (cc)")
    found = failing.torment((18, 40), jobs=1)
    assert found.defects == []
    assert found.failed == found.completed == 2
