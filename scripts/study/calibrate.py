"""A model that was not calibrated → the same with calibrated probabilities, and what is familiar to it.

Does at once, for images in several forms (such as the original colours, and copies stretched from 0 to 255), what
`train` does at its end: fits the temperature and both thresholds on the validation images of the model's split.csv, in
all forms together, and the distances on its training images, as they are and augmented. Writes a new model folder.

python scripts/study/calibrate.py --model_name_or_path MODEL --forms seedlings originals --output_dir outputs/calibrated
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

import numpy as np

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.commands import run
from seedling_hf.data.dataset import load_splits
from seedling_hf.data.transforms import ExampleTransform, build_train_transform
from seedling_hf.evaluation.calibration import calibrate, fit_temperature, scale_probabilities, sure_threshold
from seedling_hf.evaluation.evaluator import Evaluator
from seedling_hf.files import check_new_folder
from seedling_hf.inference.batch_memory import image_side
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.inference.familiarity import Familiarity, stage_sizes
from seedling_hf.inference.prediction import build_accelerator
from seedling_hf.train_arguments import AugmentationArguments, SplitArguments
from seedling_hf.training.certainty import scale_logits

AUGMENTATION = {"min_crop_scale": 0.5, "color_jitter": 0.3, "jpeg_prob": 0.3, "levels_prob": 0.6}


@dataclass(kw_only=True)
class CalibrateArguments(ArgumentGroup):
    """Calibrates a RepLKNet that was trained without a temperature, on images in several forms."""

    model_name_or_path: str = option(MISSING, "model folder with its split.csv", path=True)
    forms: list[str] = option(list, "folders of class folders with the same images, each in another form")
    output_dir: str = option(MISSING, "new folder for the calibrated model", writable=True)
    seed: int = option(42, "seed of the augmentation and of the halves", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_new_folder(Path(self.output_dir), "--output_dir")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model and images → temperature, thresholds, distances → model folder."""
    arguments = parse_arguments(CalibrateArguments, argv, prog="calibrate.py")
    source, output_dir = Path(arguments.model_name_or_path), Path(arguments.output_dir)
    model, image_processor = load_classifier(str(source), merge=False)
    evaluator = Evaluator(model, image_processor, build_accelerator())
    changed = ExampleTransform(
        build_train_transform(AugmentationArguments(**AUGMENTATION), image_processor), seed=arguments.seed
    )
    splits = [
        load_splits(SplitArguments(train_dir=folder, split_file=str(source / "split.csv")))
        for folder in arguments.forms
    ]
    known = [evaluator.measure(each["train"], transform) for each in splits for transform in (None, changed)]
    familiarity = Familiarity.fit(
        np.concatenate([features.numpy() for _, features in known]),
        np.concatenate([found.labels for found, _ in known]),
        stage_sizes(model.config),
    )
    unseen = [evaluator.measure(each["validation"]) for each in splits]
    distances = [familiarity(features).numpy() for _, features in unseen]
    familiarity.set_threshold(*distances)
    for folder, (found, _) in zip(arguments.forms, unseen, strict=True):
        figures = calibrate(found.probabilities, found.labels, seed=arguments.seed, fitted_on="")
        before, after = (each.expected_calibration_error for each in (figures.before, figures.after))
        print(f"{folder}: {found.correct.sum():,} of {len(found.labels):,} right, calibration error {before:.3f}, with "
              f"each half by the temperature of the other {after:.3f}")  # fmt: skip

    probabilities = np.concatenate([found.probabilities for found, _ in unseen])
    labels = np.concatenate([found.labels for found, _ in unseen])
    temperature = fit_temperature(probabilities, labels)
    scaled = scale_probabilities(probabilities, temperature)
    familiar = np.concatenate(distances) <= float(familiarity.threshold)
    threshold = sure_threshold(scaled.max(1), scaled.argmax(1) == labels, familiar)
    assert scale_logits(model, temperature, image_side(image_processor))
    model.config.calibration_temperature, model.config.confidence_threshold = temperature, threshold
    model.save_pretrained(output_dir)
    image_processor.save_pretrained(output_dir)
    familiarity.save(output_dir)
    shutil.copy(source / "split.csv", output_dir)
    print(f"temperature {temperature:.3f}, sure from {threshold:.3f} on; the model is in {output_dir}")


if __name__ == "__main__":
    sys.exit(run(main))
