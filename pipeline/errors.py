"""Errors that are the user's to mend: what is wrong, where, and what to do about it.

A stage prints such an error as one line from one rank and exits with code 2. Everything that is
not a `UserError` is our own bug and keeps its traceback.
"""


class UserError(Exception):
    """Base of all errors that a user can mend; the message is one line that ends in the remedy."""


class ConfigError(UserError):
    """A recipe, an override or the machine does not fit: unknown key, wrong value, missing path."""


class DataError(UserError):
    """The data is not what it should be: a damaged shard, a missing field, too many bad records."""


class CheckpointError(UserError):
    """A checkpoint or an export cannot be used: incomplete, of another recipe, of other weights."""


class OwnerError(UserError):
    """A folder is another job's: it is being written, or was taken over."""
