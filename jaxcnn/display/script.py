"""Scripts, styles and data within a page."""

import base64
import hashlib


def source_expression(text: str) -> str:
    """Returns what a content security policy allows a script or style by: its SHA-256.

    Args:
        text: of the script or style.
    """
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def within_script(json_text: str) -> str:
    """Returns JSON in a form that cannot end the script element that it is in.

    Args:
        json_text: as `json.dumps` returns it.
    """
    return json_text.replace("<", "\\u003c")
