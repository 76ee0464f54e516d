"""The commands: each module has one `main(argv=None)` that tells the story; the arithmetic lies in other folders."""

import gc
import hashlib
import importlib
import io
import os
import platform
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version

from seedling_hf import __version__
from seedling_hf.allocator import keep_freed_memory
from seedling_hf.errors import HubError, InputError, WriteError
from seedling_hf.escaping import one_line, visible_output
from seedling_hf.files import ONLY_OF_WRITING, write_error, write_failure, writing
from seedling_hf.locks import release_locks
from seedling_hf.machine_code import bound_machine_code
from seedling_hf.progress import heartbeat
from seedling_hf.signals import EndSignal, Terminated, ending_with_launcher
from seedling_hf.verbosity import is_verbose, set_verbosity

TRACEBACK_VARIABLE = "SEEDLING_HF_TRACEBACK"
FLAGS_OF_ALL = ("--traceback", "--verbose")
REPORTED_VERSIONS = ("torch", "transformers", "datasets", "accelerate", "timm", "pillow")

GROUPS = {
    "Data": {
        "describe_dataset": "count and measure images: classes, sizes, channel mean and std",
        "inspect_dataset": "find corrupt, duplicate and unusual images, and labels that look wrong",
        "make_split": "copy class folders into train/ and val/",
        "preview_augmentation": "show what the training transforms do to images",
    },
    "Training": {
        "train": "train a RepLKNet on class folders or a Hub dataset",
        "estimate_memory": "estimate the GPU memory of a training run, without a GPU",
    },
    "Evaluation": {
        "evaluate": "report accuracy, F1 and the confusion matrix on labelled images",
        "compare": "compare models on the same labelled images, with McNemar's test",
        "probe": "measure what a model relies on: shape or texture, plant or background",
    },
    "Inference": {
        "predict": "classify images, or each plant of a tray, and write CSV or JSON lines",
        "embed": "write image features as Parquet, and find similar images",
        "demo": "classify images in the browser",
    },
    "Interpretation": {
        "saliency": "show what in an image speaks for an answer",
        "visualize_erf": "draw and measure effective receptive fields",
    },
    "Sharing": {
        "push_to_hub": "push a model folder, or a pending push, to the Hub",
        "push_space": "publish the demo as a Space on the Hub",
        "push_dataset": "publish class folders and their split as a Hub dataset",
    },
    "Export": {
        "export": "write a model as ONNX (float32 and int8), torch.export or float16",
        "convert_checkpoint": "convert published .pth weights for from_pretrained",
    },
    "Speed": {"benchmark": "time the large-kernel convolution, whole models and image loading"},
}
# As shells report Ctrl-C, a reader that has left, and SIGTERM.
INTERRUPTED_EXIT_CODE, BROKEN_PIPE_EXIT_CODE, TERMINATED_EXIT_CODE = 130, 141, 143
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a command's `main`; an error becomes one sentence on stderr, and the exit code.

    `--traceback`, or the environment variable SEEDLING_HF_TRACEBACK, shows where an error came from. `--verbose`, or
    SEEDLING_HF_VERBOSE, shows all that other libraries say. Without `argv` the program is to end with the command.
    """
    code = _run(main, list(sys.argv[1:] if argv is None else argv))
    if argv is None:
        _end_quickly()
    return code


@visible_output()
def _run(main: Callable[[Sequence[str] | None], int | None], argv: list[str]) -> int:
    wants_traceback = bool(os.environ.get(TRACEBACK_VARIABLE)) or "--traceback" in argv
    words = [word for word in argv if word not in FLAGS_OF_ALL]
    _tolerate_encodings()
    keep_freed_memory()
    bound_machine_code(words[0] if main is _dispatch and words else main.__module__.rpartition(".")[2])
    set_verbosity(verbose=is_verbose() or "--verbose" in argv)
    former_hook = threading.excepthook
    if not wants_traceback:
        threading.excepthook = _report_thread
    with EndSignal() as end, heartbeat():
        try:
            with end.raising(), ending_with_launcher():
                code = main(words) or 0
                with writing("standard output"):
                    sys.stdout.flush()
            return code
        except BrokenPipeError:  # `… | head` has read enough
            return BROKEN_PIPE_EXIT_CODE
        except Terminated:
            print("terminated", file=sys.stderr)
            return TERMINATED_EXIT_CODE
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED_EXIT_CODE
        except Exception as error:
            if wants_traceback:
                traceback.print_exc()
            return _report(error)
        finally:
            threading.excepthook = former_hook
            release_locks()
            _drop_refused_output()


def _drop_refused_output() -> None:
    """What standard output did not take would be written again when Python ends, with a complaint."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: Exception) -> int:
    """Prints an error and returns the exit code."""
    if not isinstance(error, (HubError, InputError, WriteError)):
        unforeseen, error = error, _in_our_words(error)
    text = one_line(_last_line(unforeseen) if error is None else error)
    if _is_first(text):
        print(f"error: {text}", file=sys.stderr)
    if error is None and _is_first("how to report"):
        print(_how_to_report(), file=sys.stderr)
    return 1 if error is None else error.exit_code


def _is_first(text: str) -> bool:
    """Whether no other process of the same launch has printed a text; True where they cannot tell each other."""
    if int(os.environ.get("WORLD_SIZE") or 1) < 2:
        return True
    from torch import distributed

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = f"seedling_hf/printed/{attempt}/{hashlib.sha256(text.encode(errors='replace')).hexdigest()}"
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # the launcher's, which outlives the processes
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = distributed.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        elif distributed.is_initialized():
            store = distributed.distributed_c10d._get_default_store()
        else:
            return True
        return store.add(key, 1) == 1
    except (RuntimeError, ValueError, KeyError):  # the store has gone with its process
        return True


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    """Says that a thread of a library failed, such as a tracker's; what depends on it fails by itself."""
    if failure.exc_type is not SystemExit:
        found = one_line(_last_line(failure.exc_value or failure.exc_type()))
        print(f"warning: a thread failed in the background ({found}); --traceback shows where", file=sys.stderr)


def _in_our_words(error: Exception) -> InputError | WriteError | None:
    """The sentence for an error of the system; None for one that nobody foresaw."""
    failure = write_failure(error, ONLY_OF_WRITING)
    if failure:
        number, file = failure
        return write_error(file or f"a temporary file in {tempfile.gettempdir()}, or a cache", number)
    if isinstance(error, OSError) and error.filename and error.strerror:
        return InputError(
            f"expected to use {os.fsdecode(error.filename)}, found {error.strerror}; look at it and at its permissions"
        )
    return None


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _how_to_report() -> str:
    found = []
    for name in REPORTED_VERSIONS:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    versions = ", ".join([f"seedling-hf {__version__}", f"Python {platform.python_version()}", *found])
    return (
        "This is a mistake of seedling-hf or of a library that it uses. Please report it in the project's issues, with "
        f"the command, what it prints with --traceback, and these versions: {versions}."
    )


def _tolerate_encodings() -> None:
    """Lets a terminal that lacks a character show its code instead: no output may end a run."""
    for stream in (getattr(stream, "stream", stream) for stream in (sys.stdout, sys.stderr)):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> int:
    """`seedling-hf COMMAND …`."""
    return run(_dispatch, argv)


def _end_quickly() -> None:
    """What Python does at its end, a walk through all objects that takes a second, cannot be interrupted in silence."""
    gc.freeze()
    with suppress(ValueError):  # a thread, which takes no signals
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _dispatch(argv: Sequence[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    name = argv[0].replace("-", "_")
    if name not in COMMANDS:
        raise InputError(f"expected one of {', '.join(COMMANDS)}, found {argv[0]!r}; see --help")
    return importlib.import_module(f"seedling_hf.commands.{name}").main(argv[1:])


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: seedling-hf COMMAND [flags]", ""]
    for group, commands in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:{width}}  {text}" for name, text in commands.items())]
    lines += [
        "",
        "seedling-hf COMMAND --help lists the flags of a command; --traceback shows where an error came from, and",
        "--verbose all that other libraries say.",
    ]
    return "\n".join(lines)
