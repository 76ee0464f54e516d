"""`probe`: a model and labelled images go in, what the model relies on and what it bears comes out."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from seedling_hf.arguments import ArgumentGroup, check_range, option, parse_arguments
from seedling_hf.files import check_writable_folder, write_text
from seedling_hf.inference.classifier import InferenceArguments, list_classes

EXAMPLES_ON_THE_SHEET = 6


@dataclass(kw_only=True)
class ProbeOptions(ArgumentGroup):
    _argument_group_name = "Probes"

    test_dir: str = option(MISSING, "folder of class folders")
    output_dir: str = option(MISSING, "folder for probes.json, probes.md, probes.png and examples.png")
    max_samples: int | None = option(None, "use at most so many images, evenly from all")
    seed: int = option(0, "seed of the order of patches and of what covers plants")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "max_samples", least=1)
        check_range(self, "seed", least=0)
        check_writable_folder(Path(self.output_dir), "--output_dir")


@dataclass(kw_only=True)
class ProbeArguments(InferenceArguments, ProbeOptions):
    """All flags of `probe`."""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model and images → images altered one way at a time → accuracy of each."""
    arguments = parse_arguments(
        ProbeArguments, argv, prog="probe", description="Measures what a model relies on and what it bears."
    )

    from seedling_hf.data.folders import load_folder
    from seedling_hf.data.images import choose_evenly
    from seedling_hf.evaluation import probing
    from seedling_hf.inference.prediction import build_accelerator
    from seedling_hf.plots import plot_contact_sheet, plot_probes

    accelerator = build_accelerator(arguments.mixed_precision)
    model, image_processor = arguments.load()
    class_names = list_classes(model.config)
    dataset = load_folder(arguments.test_dir, class_names=class_names, skip_bad_images=arguments.skip_bad_images)
    dataset = dataset.select(choose_evenly(range(len(dataset)), arguments.max_samples))
    result = probing.probe(
        model,
        image_processor,
        dataset,
        accelerator,
        batch_size=arguments.per_device_eval_batch_size,
        num_workers=arguments.dataloader_num_workers,
        seed=arguments.seed,
    )
    if accelerator.is_main_process:
        result = {"model": arguments.model_name_or_path, "data": arguments.test_dir, **result}
        folder = Path(arguments.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        table = probing.format_probes(result)
        write_text(folder / "probes.json", json.dumps(result, indent=2) + "\n")
        write_text(folder / "probes.md", probing.markdown_probes(result))
        plot_probes(result["probes"], folder / "probes.png", guess=result["guess"])
        examples = dataset.select(choose_evenly(range(len(dataset)), EXAMPLES_ON_THE_SHEET))
        plot_contact_sheet(
            probing.example_images(examples, image_processor, arguments.seed),
            folder / "examples.png",
            title="What the model was shown",
            columns=[class_names[label] for label in examples["label"]],
            rows=[each.title for each in probing.PROBES],
        )
        print(table)
        print(f"\nThe figures are in {folder}: read {folder / 'probes.md'}.")
    accelerator.end_training()
