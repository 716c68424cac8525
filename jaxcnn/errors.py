"""Errors that a user can cause and mend."""


class UserError(Exception):
    """A mistake in what the user asked for or in what the machine offers.

    The message is one sentence that says what is wrong, where, and the remedy. Command lines print
    it without a traceback and end with status 2.
    """


class DataError(UserError):
    """A data set, an archive or a cache cannot be used as it is."""


class DataUnavailableError(DataError):
    """The real data cannot be had here at all: no prepared copy, no archive and no network.

    `source="auto"` answers this one, and only this one, with the synthetic stand-in: damaged or
    foreign files need their owner's attention and are never papered over.
    """


class DivergedError(UserError):
    """Training went wrong numerically: the loss is no longer finite."""
