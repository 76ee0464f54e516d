"""`compare`: two or more models and labelled images → which one is better."""

import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from seedling_hf.arguments import LARGEST_SEED, MOST_WORKERS, ArgumentGroup, option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.progress import Progress
from seedling_hf.train_arguments import LABEL_MAP, TREE


@dataclass(kw_only=True)
class CompareArguments(ArgumentGroup):
    """Compares models on the same labelled images.

    Examples:
        seedling-hf compare --models outputs/first outputs/second --data_dir seedlings --output_dir outputs/comparison
    """

    _argument_group_name = "Comparison"

    models: list[str] = option(MISSING, "two or more model folders, or repositories on the Hub", path=True)
    data_dir: str = option(MISSING, TREE, images=True)
    label_map: str | None = option(None, LABEL_MAP, path=True)
    output_dir: str = option(
        MISSING,
        "folder for comparison.html, comparison.md, comparison.json and predictions.csv",
        writable=True,
        files=("comparison.html", "comparison.md", "comparison.json", "predictions.csv"),
    )
    trust_remote_code: bool = option(False, "run the Python code of the repositories; a RepLKNet needs none")
    per_device_eval_batch_size: int = option(64, "images in a batch, per process", least=1)
    dataloader_num_workers: int = option(0, "processes that load images, per process", least=0, most=MOST_WORKERS)
    mixed_precision: str | None = option(None, "precision of the forward pass", choices=["no", "fp16", "bf16"])
    skip_bad_images: bool = option(False, "skip images that cannot be decoded instead of refusing them")
    seed: int = option(42, "seed of the bootstrap", least=0, most=LARGEST_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.models) < 2:
            raise InputError(f"expected two or more --models, found {len(self.models)}; add another folder")
        if len({os.path.realpath(model) for model in self.models}) < len(self.models):
            raise InputError(f"expected --models that differ, found one twice: {', '.join(self.models)}")


def short_names(models: Sequence[str]) -> list[str]:
    """The last part of each path; the whole paths if two of those are equal."""
    names = [Path(model).name for model in models]
    return names if len(set(names)) == len(names) else [str(Path(model)) for model in models]


def main(argv: Sequence[str] | None = None) -> int | None:
    """Models and images → predictions of each → comparison."""
    arguments = parse_arguments(CompareArguments, argv, prog="compare")

    from seedling_hf.data.dataset import load_folder
    from seedling_hf.evaluation.comparison import compare_models
    from seedling_hf.evaluation.evaluator import Evaluator
    from seedling_hf.evaluation.report import evaluate_model
    from seedling_hf.evaluation.report_files import format_comparison, write_comparison
    from seedling_hf.evaluation.training_data import recognise
    from seedling_hf.inference.classifier import Pretrained, load_classifier
    from seedling_hf.inference.prediction import build_accelerator, on_main_process

    accelerator = build_accelerator(arguments.mixed_precision)
    on_main_process(accelerator, arguments.lock_outputs)
    loading = arguments.per_device_eval_batch_size, arguments.dataloader_num_workers
    evaluators = [
        Evaluator(*load_classifier(name, trust_remote_code=arguments.trust_remote_code), accelerator, *loading)
        for name in arguments.models
    ]
    expected = evaluators[0].class_names
    for name, evaluator in zip(arguments.models, evaluators, strict=True):
        if different := set(evaluator.class_names) ^ set(expected):
            raise InputError(
                f"expected models of the same classes, found {name} to differ from {arguments.models[0]} in "
                f"{', '.join(sorted(different))}; compare models of the same classes"
            )
    reports, training_images = [], None
    for number, evaluator in enumerate(evaluators):
        dataset = load_folder(
            arguments.data_dir,
            class_names=evaluator.class_names,
            label_map=arguments.label_map,
            skip_bad_images=arguments.skip_bad_images,
        )
        if training_images is None:  # the same images for each model
            training_images = recognise(dataset, [Pretrained(name).find("split.csv") for name in arguments.models])
        report = evaluate_model(
            evaluator,
            dataset,
            data_name=arguments.data_dir,
            training_images=training_images[number],
            seed=arguments.seed,
        )
        reports.append(report)
    if accelerator.is_main_process:
        comparison = compare_models(short_names(arguments.models), reports, arguments.data_dir)
        with Progress("writing the comparison"):
            write_comparison(comparison, dataset, arguments.output_dir)
        print(format_comparison(comparison))
        print(f"\nThe comparison is in {arguments.output_dir}: open {Path(arguments.output_dir) / 'comparison.html'}.")
    accelerator.end_training()
