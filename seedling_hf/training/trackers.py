"""The trackers of a run, such as TensorBoard: known and installed before it starts, and given its flags once.

metrics.jsonl is the record of a run, and trackers show it: one that fails is reported, and training goes on.
"""

import difflib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType

from seedling_hf.errors import InputError
from seedling_hf.escaping import one_line
from seedling_hf.train_arguments import TrainArguments

# In a row: one that waits for a server each time would slow the run down.
MOST_FAILURES = 3

logger = logging.getLogger(__name__)


class Trackers:
    """The trackers that `start_trackers` has started; other processes than the main one have none."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.num_entries = 0
        self.missing: Counter[str] = Counter()  # entries, by tracker
        self.in_a_row: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Gives each tracker an entry; the first failure of one is a warning, and after three in a row it gets none."""
        self.num_entries += 1
        for tracker in self.accelerator.trackers:
            name = tracker.name
            self.missing[name] += 1
            if self.in_a_row[name] == MOST_FAILURES:
                continue
            self.in_a_row[name] += 1
            with self._tolerating(name, f"the entry of step {step}"):
                tracker.log(dict(values), step=step)
                self.missing[name] -= 1
                self.in_a_row[name] = 0

    def finish(self) -> None:
        """Closes the trackers, and says again which of them lack entries."""
        for tracker in self.accelerator.trackers:
            with self._tolerating(tracker.name, "the end of the run"):
                tracker.finish()
        self.accelerator.trackers.clear()
        for name, reason in self.reasons.items():
            logger.warning(
                "%s failed during this run, and lacks %d or more of its %d entries (%s); metrics.jsonl has all of them",
                name, self.missing[name], self.num_entries, reason,
            )  # fmt: skip

    @contextmanager
    def _tolerating(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each tracker raises errors of its own
            if name not in self.reasons:
                self.reasons[name] = _reason(error)
                logger.warning(
                    "expected %s to take %s, found: %s; the run continues, and metrics.jsonl has every entry",
                    name, what, self.reasons[name],
                )  # fmt: skip


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
        raise InputError(
            f"expected {', '.join(arguments.report_to)} to start for --report_to, found: {_reason(error)}; set it up, "
            "or leave the flag out"
        ) from error


def tracked_arguments(arguments: TrainArguments) -> dict[str, bool | int | float | str]:
    """The flags of a run as TensorBoard takes them: lists as words, without those that are not given."""
    values = {name: value for name, value in asdict(arguments).items() if value not in (None, [])}
    return {name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in values.items()}


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return one_line(" ".join(text.split())) or type(error).__name__
