"""`export`: writes a model as one file that runs without this package, checked on real images."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from seedling_hf.arguments import option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.export import SUFFIXES
from seedling_hf.files import check_new_folder
from seedling_hf.inference.classifier_arguments import ClassifierArguments
from seedling_hf.origin import check_ours
from seedling_hf.train_arguments import LABEL_MAP, TREE

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2", "onnx_folder": "", "half": ""}  # the suffixes; none is a folder


@dataclass(kw_only=True)
class ExportArguments(ClassifierArguments):
    """Export a model to ONNX, torch.export or float16.

    Examples:
        seedling-hf export --output_file seedlings.onnx --images seedlings
        seedling-hf export --output_file seedlings.onnx --int8 --train_dir seedlings --images seedlings
        seedling-hf export --output_file seedlings-onnx --format onnx_folder --train_dir seedlings
    """

    _takes_several = True

    output_file: str = option(MISSING, "file to write, .onnx or .pt2; for onnx_folder and half a folder", writable=True)
    format: str = option(
        "onnx",
        "ONNX, a program for torch.export.load, a folder for transformers.js and optimum with ONNX in float32, float16 "
        "and int8, or a model folder in float16, half the size",
        choices=[*FORMATS],
    )
    include_preprocessing: bool = option(False, "take uint8 (N, height, width, 3) and normalize inside the file")
    images: list[str] = option(
        list, "images or folders to check the file on (default: --eval_dir or --train_dir)", images=True
    )
    max_check_samples: int = option(200, "check on at most this many of them", least=1)
    tolerance: float = option(1e-4, "largest allowed difference from PyTorch's outputs", above=0)
    float16: bool = option(False, "also write the ONNX model in float16, half the size")
    int8: bool = option(False, "also write the ONNX model in int8, calibrated on images of --train_dir")
    train_dir: str | None = option(None, "folder of training images, for int8", images=True)
    max_calibration_samples: int = option(256, "calibrate int8 on at most this many of them", least=1)
    eval_dir: str | None = option(None, f"{TREE}, for the accuracy of PyTorch and of each file", images=True)
    label_map: str | None = option(None, LABEL_MAP, path=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        suffix = FORMATS[self.format]
        if suffix and (Path(self.output_file).suffix != suffix or Path(self.output_file).is_dir()):
            raise InputError(f"expected --output_file to be a file NAME{suffix}, found {self.output_file}")
        self._check_forms()
        if self.format != "half" and not (self.images or self.eval_dir or self.train_dir):
            raise InputError("expected images to check the file on, found none; give --images or --eval_dir")
        if self.format == "half" and len(self.members) > 1:
            raise InputError(
                f"expected one model for --format half, found {len(self.members)}; use onnx or torch_export"
            )
        if not suffix:
            check_new_folder(Path(self.output_file), "--output_file")
            return
        check_ours(self.output_file, "--output_file")
        for form, of_form in SUFFIXES.items():
            if getattr(self, form):
                check_ours(Path(self.output_file).with_suffix(of_form), "--output_file")

    def _check_forms(self) -> None:
        """Refuses what does not go with the smaller forms of the model."""
        if self.format == "onnx_folder":
            if self.include_preprocessing:
                raise InputError(
                    "expected no --include_preprocessing with --format onnx_folder, found it; transformers.js and "
                    "optimum normalize by preprocessor_config.json"
                )
            if self.train_dir is None:
                raise InputError(
                    "expected --train_dir for --format onnx_folder, found none; its int8 file is calibrated on images "
                    "of the training"
                )
            self.float16 = self.int8 = True
            return
        if self.float16 and self.format != "onnx":
            raise InputError(f"expected --format onnx for --float16, found --format {self.format}")
        if self.int8 and (self.format != "onnx" or self.train_dir is None):
            found = f"--format {self.format}" if self.format != "onnx" else "none"
            raise InputError(f"expected --train_dir and --format onnx for --int8, found {found}")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model → file → comparison on real images → table."""
    arguments = parse_arguments(ExportArguments, argv, prog="export")
    arguments.lock_outputs()
    from seedling_hf.data.dataset import load_folder
    from seedling_hf.data.images import select_images
    from seedling_hf.export.half_precision import export_half
    from seedling_hf.export.onnx_folder import export_folder
    from seedling_hf.export.onnx_program import check_packages
    from seedling_hf.export.programs import export_classifier, format_rows
    from seedling_hf.inference.classifier import list_classes
    from seedling_hf.inference.familiarity import find_familiarity
    from seedling_hf.inference.judgement import add_familiarity
    from seedling_hf.verbosity import hide_library_bars

    hide_library_bars()
    if arguments.format in ("onnx", "onnx_folder"):
        check_packages()
    model, image_processor = arguments.load(merge=arguments.format != "half")
    if arguments.format == "half":
        folder, card = Path(arguments.output_file), Path(arguments.members[0], "README.md")
        familiarity = find_familiarity(arguments.source, model.config)
        size = export_half(model, image_processor, card if card.is_file() else None, folder, familiarity)
        print(f"{folder}: {size / 1e6:.1f} MB of weights in float16; measure their accuracy with seedling-hf evaluate")
        return
    model = add_familiarity(model, arguments.source)
    labelled = calibration_files = None
    if arguments.eval_dir:
        labelled = load_folder(
            arguments.eval_dir, class_names=list_classes(model.config), label_map=arguments.label_map
        )
    if arguments.int8:
        calibration_files = select_images([arguments.train_dir], arguments.max_calibration_samples)
    images = arguments.images or [arguments.eval_dir or arguments.train_dir]
    write = export_folder if arguments.format == "onnx_folder" else export_classifier
    rows = write(
        model,
        image_processor,
        Path(arguments.output_file),
        check_files=select_images(images, arguments.max_check_samples),
        calibration_files=calibration_files,
        float16=arguments.float16,
        labelled=labelled,
        include_preprocessing=arguments.include_preprocessing,
        tolerance=arguments.tolerance,
    )
    print(format_rows(rows))
    for row in rows:
        if row["file"]:
            print(f"{row['name']}: {row['file']}")
