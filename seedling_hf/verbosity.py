"""What the libraries below us say: only what somebody can act on; `--verbose` lets everything through."""

import logging
import os
import re
import sys
import warnings

VERBOSE_VARIABLE = "SEEDLING_HF_VERBOSE"  # workers and further processes see it too

# Of loggers that say useful things as well, what is dropped, and why.
DROPPED_RECORDS = {
    # Weights that are missing or do not fit: our own sentence names them, and ends the command where they matter.
    "transformers.modeling_utils": r"LOAD REPORT",
    # Fewer processes than asked for, because there is one shard: a choice of `datasets`, which changes no result.
    "datasets.arrow_dataset": r"Setting num_proc",
    "datasets.builder": r"Setting num_proc",
    "datasets.iterable_dataset": r"Setting num_proc",
    # Of a machine that has CUDA's compiler and no GPU, where none is needed.
    "torch.utils.cpp_extension": r"No CUDA runtime is found",
}
DROPPED_WARNINGS = (
    # Of tags that count as none.
    {"category": UserWarning, "module": r"PIL\.TiffImagePlugin"},
    # Of gradients of kernels (C, 1, K, K) and (C, D, 1, 1): their strides differ only where a dimension has length 1,
    # so that the memory is the same. PyTorch's own convolution gives them so.
    {
        "category": UserWarning,
        "message": r"(?s)Grad strides do not match .*grad\.sizes\(\) = \[\d+, (1, \d+, \d+|\d+, 1, 1)\]",
    },
)


def is_verbose() -> bool:
    """Whether libraries may say what they like, and show their own progress bars."""
    return bool(os.environ.get(VERBOSE_VARIABLE))


def set_verbosity(*, verbose: bool) -> None:
    """Shows our messages on stderr, of the first process only, and of libraries warnings, or everything if `verbose`.

    A command calls it once, before libraries are imported.
    """
    if verbose:
        os.environ[VERBOSE_VARIABLE] = "1"
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info")
        os.environ.setdefault("DATASETS_VERBOSITY", "info")
    elif not _on_terminal():
        # They redraw themselves in a log file too, where `progress` writes lines.
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    is_first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("seedling_hf").setLevel(logging.INFO if is_first else logging.ERROR)
    if verbose:
        return
    for name, pattern in DROPPED_RECORDS.items():
        logging.getLogger(name).addFilter(_Dropping(pattern))
    for warning in DROPPED_WARNINGS:
        warnings.filterwarnings("ignore", **warning)


def hide_library_bars() -> None:
    """Draws no bars of transformers and huggingface_hub for the rest of a command, unless it is verbose."""
    from transformers.utils.logging import disable_progress_bar

    if not is_verbose():
        disable_progress_bar()


class _Dropping(logging.Filter):
    """Drops records whose message has a pattern in it."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self.pattern = re.compile(pattern)

    def __eq__(self, other: object) -> bool:  # so that a logger takes it once
        return isinstance(other, _Dropping) and other.pattern == self.pattern

    def __hash__(self) -> int:
        return hash(self.pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.pattern.search(record.getMessage())


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
