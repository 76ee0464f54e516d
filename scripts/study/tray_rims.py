"""How often the rim of a tray is in view, class by class, and how often the answers are right with it and without.

Each tray of the Plant Seedlings images holds one species, whose number is printed on the rim, so that what is beside a
plant may speak for its class. A rim counts as in view where more than `LEAST_SHARE` of the pixels are bright and grey,
as the rims are in the original colours.

python scripts/study/tray_rims.py --train_dir originals --predictions outputs/tray_folds
"""

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.commands import run
from seedling_hf.data.images import to_rgb
from seedling_hf.data.suspects import Predictions, read_predictions
from seedling_hf.errors import InputError
from seedling_hf.progress import follow

SIDE = 112  # pixels to which an image is resized
BRIGHT = 130  # least of the three channels, of 255
GREY = 30  # largest difference between two channels
LEAST_SHARE = 0.05


@dataclass(kw_only=True)
class RimArguments(ArgumentGroup):
    """Counts the images with the rim of a tray in view."""

    train_dir: str = option(MISSING, "class folders of images in their original colours", images=True)
    predictions: str = option(MISSING, "predictions of a model that was not trained on them: a run, or predictions.csv")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Images and predictions → a table."""
    arguments = parse_arguments(RimArguments, argv, prog="tray_rims.py")
    predictions = read_predictions(arguments.predictions)
    paths = [Path(arguments.train_dir, file) for file in predictions.files]
    if missing := [path for path in paths if not path.is_file()]:
        raise InputError(
            f"expected the images of {predictions.path} in {arguments.train_dir}, found no {missing[0]}; give "
            "the folder that they are in"
        )
    has_rim = [shows_rim(to_rgb(Image.open(path))) for path in follow(paths, "reading", unit="image")]
    print(format_table(predictions, np.array(has_rim)))


def shows_rim(image: Image.Image) -> bool:
    """Whether an RGB image has enough bright grey pixels for a rim."""
    pixels = np.asarray(image.resize((SIDE, SIDE))).astype(int)
    low, high = pixels.min(2), pixels.max(2)
    return bool(((low > BRIGHT) & (high - low < GREY)).mean() > LEAST_SHARE)


def format_table(predictions: Predictions, has_rim: np.ndarray) -> str:
    """Right answers of each class, which the folder of a file names, with a rim in view (N,) and without."""
    names = np.array(predictions.class_names)
    labels = np.array([Path(file).parent.name for file in predictions.files])
    is_right = names[predictions.probabilities.argmax(1)] == labels
    lines = ["| class | images | rim in view | right with it | right without |", "|:--|" + "--:|" * 4]
    for name in names:
        chosen = labels == name
        cells = [f"{chosen.sum():,}", f"{has_rim[chosen].mean():.0%}" if chosen.any() else ""]
        for group in (chosen & has_rim, chosen & ~has_rim):
            right, count = is_right[group].sum(), group.sum()
            cells.append(f"{right / count:.1%} of {count:,}" if count else "")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main))
