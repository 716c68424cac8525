"""Records as a data frame of pandas, which is an optional dependency."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxcnn.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame


def make_frame(columns: Mapping[str, Any]) -> "DataFrame":
    """Returns a data frame.

    Args:
        columns: lists or arrays by name, all of one length.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UserError(
            "a data frame needs pandas, which is not installed: pip install 'jaxcnn[notebook]'"
        ) from None
    return pandas.DataFrame(columns)
