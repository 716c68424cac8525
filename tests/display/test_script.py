import base64
import hashlib
import json

from jaxcnn.display.script import source_expression, within_script


def test_a_script_is_allowed_by_its_hash() -> None:
    digest = base64.b64encode(hashlib.sha256(b"alert('\xc3\xa9')").digest()).decode()
    assert source_expression("alert('é')") == f"'sha256-{digest}'"


def test_data_cannot_end_its_element() -> None:
    data = {"name": "</script><!--"}
    text = within_script(json.dumps(data))
    assert "<" not in text
    assert json.loads(text) == data
