"""Errors that a command prints without a traceback."""


class InputError(ValueError):
    """Bad input: one sentence with what was expected, what was found and what to do. Exit code 2."""


class HubError(RuntimeError):
    """A request to the Hub failed: one sentence with the reason. Exit code 1."""
