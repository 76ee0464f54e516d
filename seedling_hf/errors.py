"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """Bad input: its message is one sentence with what was expected, what was found and what to do.

    A command prints the message without a traceback and exits with code 2.
    """
