"""The trackers of a run, such as TensorBoard: known and installed before it starts, and given its flags once."""

import difflib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType

from seedling_hf.errors import InputError
from seedling_hf.train_arguments import TrainArguments


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that accelerate does not know, and those without their package, which it would leave out.

    Raises:
        InputError: lists those that accelerate offers, or that are installed.
    """
    known = [*LOGGER_TYPE_TO_CLASS, "all"]
    builtin, installed = LoggerType.list(), {str(name) for name in get_available_trackers()}
    here = [name for name in LOGGER_TYPE_TO_CLASS if name in installed or name not in builtin]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"expected --report_to of {', '.join(known)}, found {name}; {hint}leave it out for none")
        if name not in here and not (name == "all" and here):
            others = f"name one that is installed ({', '.join(here)})" if here else "leave the flag out"
            raise InputError(
                f"expected the package of {name} for --report_to, found it missing; install it, or {others}"
            )


def start_trackers(accelerator: Accelerator, arguments: TrainArguments) -> None:
    """Starts the trackers of a run and gives them its flags; every process must call it.

    Raises:
        InputError: for a tracker that does not start, such as one without a login.
    """
    if not arguments.report_to:
        return
    try:
        accelerator.init_trackers(
            arguments.run_name or Path(arguments.output_dir).resolve().name, config=tracked_arguments(arguments)
        )
    except Exception as error:  # each tracker raises errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"expected {', '.join(arguments.report_to)} to start for --report_to, found: {reason}; set it up, or leave "
            "the flag out"
        ) from error


def tracked_arguments(arguments: TrainArguments) -> dict[str, bool | int | float | str]:
    """The flags of a run as TensorBoard takes them: lists as words, without those that are not given."""
    values = {name: value for name, value in asdict(arguments).items() if value not in (None, [])}
    return {name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in values.items()}
