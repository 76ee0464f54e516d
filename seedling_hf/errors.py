"""Errors that a command prints without a traceback; each has the exit code of a command that it ends."""

import importlib
from collections.abc import Iterator
from typing import Any


class InputError(ValueError):
    """Bad input: one sentence with what was expected, what was found and what to do.

    A loading worker's error arrives with the traceback as its message; here it keeps its sentence only.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        if message.startswith("Caught "):
            message = message.rpartition(name)[2].rstrip()
        super().__init__(message)


class NonFiniteError(InputError):
    """A model answered NaN or infinity, and will again."""


class HubError(RuntimeError):
    """A request to the Hub failed: one sentence with the reason."""

    exit_code = 1


class WriteError(OSError):
    """A file could not be written: one sentence with its path, the reason and what to do.

    The exit code is EX_IOERR of sysexits.h.
    """

    exit_code = 74


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it: libraries keep the reason there, even with `from None`."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def without_advice(error: InputError) -> str:
    """What was expected and what was found, for other advice on what to do."""
    found, _, advice = str(error).rpartition("; ")
    return found or advice


def first_line(error: object) -> str:
    """The reason that an error of a library (or its text) gives, without a full stop; else the kind of error.

    A line that ends in a colon goes on in the next one.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    while len(lines) > 1 and lines[0].endswith(":"):
        lines[:2] = [f"{lines[0]} {lines[1]}"]
    return lines[0].rstrip(".")


def require_package(name: str, purpose: str, module: str | None = None) -> None:
    """Raises InputError if a package of the extra `all`, imported as `module` or `name`, is missing."""
    try:
        importlib.import_module(module or name)
    except ImportError as error:
        raise InputError(
            f'expected {name} for {purpose}, found none; install it with pip install "seedling-hf[all]"'
        ) from error


def require_finite(values: Any, what: str, model: Any) -> None:
    """Refuses a tensor, of any shape, that a model has computed and that holds NaN or infinity; `what` names it.

    Raises:
        NonFiniteError: names the model, where it has a `name_or_path`.
    """
    if not values.isfinite().all():
        name = getattr(model, "name_or_path", "")
        raise NonFiniteError(
            f"expected finite {what} of the model{f' {name}' if name else ''}, found NaN or infinity; its weights are "
            "too large or damaged, or overflow in half precision: try --mixed_precision no, train with a lower "
            "--learning_rate, or use another checkpoint"
        )
