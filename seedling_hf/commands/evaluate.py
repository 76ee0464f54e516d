"""`evaluate`: a model and labelled images → a report."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, replace
from functools import partial
from pathlib import Path

from seedling_hf.arguments import LARGEST_SEED, option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.inference.compiled_batches import CompiledInferenceArguments
from seedling_hf.origin import REPORT_FILES, check_outputs
from seedling_hf.progress import Progress
from seedling_hf.train_arguments import LABEL_MAP, TREE


@dataclass(kw_only=True)
class EvaluateArguments(CompiledInferenceArguments):
    """Reports how well a model classifies labelled images.

    Examples:
        seedling-hf evaluate --test_dir seedlings --output_dir outputs/report --saliency
    """

    _argument_group_name = "Evaluation"
    _takes_several = True

    test_dir: str = option(MISSING, TREE, images=True)
    output_dir: str = option(
        MISSING,
        "folder for report.html, report.md, report.json and their figures",
        writable=True,
        files=("report.json", *REPORT_FILES),
    )
    calibration_dir: str | None = option(
        None,
        "such a folder to fit the temperature on (default: either half of test_dir for the other)",
        images=True,
    )
    label_map: str | None = option(None, LABEL_MAP, path=True)
    not_sure_accuracy: float = option(
        0.95, "accuracy of the predictions that the threshold for 'not sure' keeps", above=0, most=1
    )
    threshold: float | None = option(
        None,
        "probability below which a prediction counts as not sure (default: the confidence_threshold of the model)",
        least=0,
        most=1,
    )
    test_time_augmentation: bool = option(
        False, "also predict the mean over the eight symmetries of the square, and report gain and cost"
    )
    exclude_training: bool = option(
        False, "leave out the images that the model was trained on, as its split.csv lists them"
    )
    saliency: bool = option(False, "show what in the image spoke for the worst mistakes (needs captum)")
    probes: bool = option(False, "also measure the accuracy on altered images, as the command probe does")
    seed: int = option(42, "seed of the bootstrap, the halves and the probes", least=0, most=LARGEST_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration_dir is not None and Path(self.calibration_dir).resolve() == Path(self.test_dir).resolve():
            raise InputError(
                f"expected --calibration_dir with other images than --test_dir, found {self.calibration_dir} for both; "
                "leave it out to fit either half on the other"
            )
        if self.probes:
            check_outputs(self.output_dir, ["probes.png"], "--output_dir")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model and images → predictions → report."""
    arguments = parse_arguments(EvaluateArguments, argv, prog="evaluate")

    from seedling_hf.data.dataset import load_folder
    from seedling_hf.evaluation.evaluator import load_evaluator
    from seedling_hf.evaluation.probing import probe
    from seedling_hf.evaluation.report import evaluate_model
    from seedling_hf.evaluation.report_files import format_report, write_report
    from seedling_hf.evaluation.training_data import leave_out, recognise_together
    from seedling_hf.inference.judgement import explained_network
    from seedling_hf.inference.prediction import on_main_process
    from seedling_hf.interpretation.saliency import check_captum, overlay_classes

    if arguments.saliency:
        check_captum()
    evaluator = load_evaluator(arguments, arguments.threshold)
    on_main_process(evaluator.accelerator, arguments.lock_outputs)
    dataset, *others = (
        load_folder(
            folder,
            class_names=evaluator.class_names,
            label_map=arguments.label_map,
            skip_bad_images=arguments.skip_bad_images,
        )
        for folder in (arguments.test_dir, arguments.calibration_dir)
        if folder
    )
    split_files = [source.find("split.csv") for source in arguments.sources]
    training_images = recognise_together(dataset, split_files)
    if arguments.exclude_training:
        name = arguments.model_name
        dataset = leave_out(dataset, training_images, name)
        others = [leave_out(other, recognise_together(other, split_files), name) for other in others]
    report = evaluate_model(
        evaluator,
        dataset,
        data_name=arguments.test_dir,
        calibration=(others[0], arguments.calibration_dir) if others else None,
        target_accuracy=arguments.not_sure_accuracy,
        test_time_augmentation=arguments.test_time_augmentation,
        training_images=training_images,
        excluded=arguments.exclude_training,
        seed=arguments.seed,
    )
    if arguments.probes:
        report = replace(report, probing=probe(evaluator, dataset, seed=arguments.seed))
    if evaluator.accelerator.is_main_process:
        saliency = (
            partial(overlay_classes, explained_network(evaluator.model), evaluator.image_processor)
            if arguments.saliency
            else None
        )
        with Progress("writing the report"):
            write_report(report, arguments.output_dir, dataset, saliency)
        print(format_report(report))
        print(f"\nThe report is in {arguments.output_dir}: open {Path(arguments.output_dir) / 'report.html'}.")
    evaluator.accelerator.end_training()
