import shutil

import pytest

from tests import failing


@pytest.mark.slow
def test_writes_that_fail_end_in_a_sentence_and_the_same_command_completes_the_run() -> None:
    """The fifteenth and the fortieth write below the workdir, and all after it."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler (cc)")
    found = failing.torment((15, 40), jobs=1)
    assert found.defects == []
    assert found.failed == found.completed == 2
