"""`probe`: a model and labelled images → what the model relies on and what it is robust to."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path

from seedling_hf.arguments import LARGEST_SEED, option, parse_arguments
from seedling_hf.files import write_text
from seedling_hf.inference.compiled_batches import CompiledInferenceArguments
from seedling_hf.train_arguments import LABEL_MAP, TREE

EXAMPLES_ON_THE_SHEET = 6


@dataclass(kw_only=True)
class ProbeArguments(CompiledInferenceArguments):
    """Measures what a model relies on and what it is robust to.

    Examples:
        seedling-hf probe --test_dir seedlings --output_dir outputs/probes
    """

    _argument_group_name = "Probes"

    test_dir: str = option(MISSING, TREE, images=True)
    label_map: str | None = option(None, LABEL_MAP, path=True)
    output_dir: str = option(
        MISSING,
        "folder for probes.json, probes.md, probes.png and examples.png",
        writable=True,
        files=("probes.json", "probes.md", "probes.png", "examples.png"),
    )
    max_samples: int | None = option(None, "use at most this many images, evenly spaced", least=1)
    seed: int = option(0, "seed of the order of patches and of what covers plants", least=0, most=LARGEST_SEED)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model and images → images altered one way at a time → accuracy of each."""
    arguments = parse_arguments(ProbeArguments, argv, prog="probe")

    from seedling_hf.data.dataset import load_folder
    from seedling_hf.data.images import choose_evenly
    from seedling_hf.evaluation.evaluator import load_evaluator
    from seedling_hf.evaluation.probes import list_probes
    from seedling_hf.evaluation.probing import example_images, format_probes, probe
    from seedling_hf.evaluation.rendering import render_page
    from seedling_hf.inference.prediction import on_main_process
    from seedling_hf.plots.fonts import draw_names
    from seedling_hf.plots.images import plot_contact_sheet
    from seedling_hf.plots.quality import plot_probes

    evaluator = load_evaluator(arguments)
    on_main_process(evaluator.accelerator, arguments.lock_outputs)
    class_names = evaluator.class_names
    dataset = load_folder(
        arguments.test_dir,
        class_names=class_names,
        label_map=arguments.label_map,
        skip_bad_images=arguments.skip_bad_images,
    )
    dataset = dataset.select(choose_evenly(range(len(dataset)), arguments.max_samples))
    probing = probe(evaluator, dataset, seed=arguments.seed)
    if evaluator.accelerator.is_main_process:
        folder, origin = Path(arguments.output_dir), {"model": arguments.model_name_or_path, "data": arguments.test_dir}
        write_text(folder / "probes.json", json.dumps(origin | asdict(probing), indent=2) + "\n")
        write_text(folder / "probes.md", render_page("probes.md", probing=probing, **origin))
        plot_probes(probing.probes, folder / "probes.png", chance=probing.guess)
        labels = draw_names(class_names)
        examples = dataset.select(choose_evenly(range(len(dataset)), EXAMPLES_ON_THE_SHEET))
        plot_contact_sheet(
            example_images(examples, evaluator.image_processor, arguments.seed),
            folder / "examples.png",
            title="What the model was shown",
            columns=[labels[label] for label in examples["label"]],
            rows=[each.title for each in list_probes()],
        )
        print(format_probes(probing))
        print(f"\nThe figures are in {folder}: read {folder / 'probes.md'}.")
    evaluator.accelerator.end_training()
