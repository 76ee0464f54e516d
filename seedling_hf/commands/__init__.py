"""The commands: each module has one `main(argv=None)` that tells the story; the arithmetic lies in other folders."""

import importlib
import sys
from collections.abc import Callable, Sequence

from seedling_hf import __version__
from seedling_hf.errors import HubError, InputError
from seedling_hf.escaping import one_line, visible_output
from seedling_hf.locks import release_locks

GROUPS = {
    "Data": {
        "describe_dataset": "count and measure images: classes, sizes, channel mean and std",
        "inspect_dataset": "find corrupt, duplicate and unusual images",
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
        "saliency": "show with Grad-CAM where a model looks",
        "visualize_erf": "draw and measure effective receptive fields",
    },
    "Sharing": {
        "push_to_hub": "push a model folder, or a pending push, to the Hub",
        "push_space": "publish the demo as a Space on the Hub",
        "push_dataset": "publish class folders and their split as a Hub dataset",
    },
    "Export": {
        "export": "write a model as ONNX (float32 and int8), torch.export or float16",
        "convert_checkpoint": "convert the authors' .pth weights for from_pretrained",
    },
    "Speed": {"benchmark": "time the large-kernel convolution, whole models and image loading"},
}
INTERRUPTED_EXIT_CODE = 130  # as shells report Ctrl-C
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}


@visible_output()
def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a command's `main`; an error of ours becomes one sentence on stderr and the exit code."""
    try:
        return main(argv) or 0
    except (HubError, InputError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    finally:
        release_locks()


def main(argv: Sequence[str] | None = None) -> int:
    """`seedling-hf COMMAND …`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    name = argv[0].replace("-", "_")
    if name not in COMMANDS:
        print(f"error: expected one of {', '.join(COMMANDS)}, found {argv[0]!r}; see --help", file=sys.stderr)
        return 2
    return run(importlib.import_module(f"seedling_hf.commands.{name}").main, argv[1:])


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: seedling-hf COMMAND [flags]", ""]
    for group, commands in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:{width}}  {text}" for name, text in commands.items())]
    return "\n".join([*lines, "", "seedling-hf COMMAND --help lists the flags of a command."])
