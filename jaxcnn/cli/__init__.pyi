from .console import ending_on_errors as ending_on_errors
from .flags import parse_flags as parse_flags
from .session import Session as Session, open_session as open_session
