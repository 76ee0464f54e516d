"""The commands: each is a module with one `main(argv=None)` that tells its story; the arithmetic lies below."""

import importlib
import sys
from collections.abc import Callable, Sequence

from seedling_hf import __version__
from seedling_hf.errors import InputError

COMMANDS = {
    "train": "train a RepLKNet on a folder of seedlings or a Hub data set",
    "evaluate": "report accuracy, F1 and confusions of a model on labelled images",
    "compare": "compare models on the same labelled images, with McNemar's test",
    "predict": "name the species of images, listed or watched, as CSV or JSON lines",
    "demo": "open a page that names the images dropped on it",
    "saliency": "show by Grad-CAM where a model looks",
    "visualize_erf": "draw and measure the effective receptive fields of models",
    "probe": "measure what a model relies on: shape or texture, plant or background, and what it bears",
    "export": "write a model as ONNX, in float32 and int8, or as a program of torch.export",
    "embed": "write the features of images as Parquet, and find the images nearest to one",
    "convert_checkpoint": "turn the authors' .pth weights into a folder for from_pretrained",
    "describe_dataset": "count and measure images: classes, sizes, channel mean and std",
    "inspect_dataset": "find corrupt, doubled and odd images, as an HTML page and JSON",
    "make_split": "copy a class tree into train/ and val/ folders",
    "preview_augmentation": "draw what the training transforms do to the images",
    "push_to_hub": "send a model folder, or pushes that are waiting, to the Hub",
    "push_space": "publish that page as a Space on the Hub",
    "push_dataset": "publish a folder of seedlings with its split as a Hub data set",
    "benchmark": "time the large-kernel convolution and whole models",
    "estimate_memory": "tell the memory that training will take on a GPU, without one",
}


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a command's `main` and turns a user's mistake into one sentence on stderr and exit code 2."""
    try:
        return main(argv) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def main(argv: Sequence[str] | None = None) -> int:
    """`seedling-hf COMMAND …` is `python scripts/COMMAND.py …`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, COMMANDS))
    usage = "usage: seedling-hf COMMAND [flags]\n\n" + "\n".join(f"  {k:{width}}  {v}" for k, v in COMMANDS.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(usage + "\n\nseedling-hf COMMAND --help lists the flags of one.")
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    name = argv[0].replace("-", "_")
    if name not in COMMANDS:
        print(f"error: unknown command {argv[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return run(importlib.import_module(f"seedling_hf.commands.{name}").main, argv[1:])
