"""`visualize_erf`: models and images go in, maps of effective receptive fields and their area ratios come out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from seedling_hf.arguments import LARGEST_SEED, ArgumentGroup, option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.escaping import one_line, pad, width_of
from seedling_hf.files import write_arrays, write_csv
from seedling_hf.progress import Progress, follow

IMAGES_THAT_SETTLE = 8


@dataclass(kw_only=True)
class ErfArguments(ArgumentGroup):
    """Draw and measure effective receptive fields (arXiv 2203.06717, section 5).

    Examples:
        seedling-hf visualize_erf --images seedlings/Maize --output_dir outputs/erf
    """

    images: list[str] = option(MISSING, "images, or folders that are searched for images", images=True)
    output_dir: str = option(
        MISSING, "folder for erf.png, erf.csv and erf.npz", writable=True, files=("erf.png", "erf.csv", "erf.npz")
    )
    model_name_or_path: list[str] = option(list, "model folders or Hub repositories to compare")
    untrained: list[str] = option(
        list, "RepLKNets with random weights: nano, or with other kernels nano:3 or nano:7,7,7,5"
    )
    trust_remote_code: bool = option(False, "run the Python code of those repositories; a RepLKNet needs none")
    image_size: int = option(1024, "side to which images are squeezed, in pixels, as in the paper", least=32)
    max_samples: int = option(50, "largest number of images, evenly chosen; as in the paper", least=1)
    seed: int = option(0, "seed of random weights", least=0, most=LARGEST_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model_name_or_path and not self.untrained:
            raise InputError("expected --model_name_or_path or --untrained, found neither; name at least one model")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Models and images → gradients of the centre → maps and ratios."""
    arguments = parse_arguments(ErfArguments, argv, prog="visualize_erf")

    from seedling_hf.data.images import select_images
    from seedling_hf.inference.batch_memory import check_memory
    from seedling_hf.inference.classifier import load_classifier
    from seedling_hf.inference.prediction import build_accelerator, on_main_process
    from seedling_hf.interpretation.erf import (
        area_ratios,
        build_untrained,
        load_squares,
        measure_erf,
        settle_batch_norms,
    )
    from seedling_hf.plots.receptive_fields import plot_erf

    accelerator = build_accelerator("no")
    on_main_process(accelerator, arguments.lock_outputs)
    files = select_images(arguments.images, arguments.max_samples)
    models = {
        title: load_classifier(name, trust_remote_code=arguments.trust_remote_code)
        for name, title in short_names(arguments.model_name_or_path).items()
    }
    untrained = {f"{name}, untrained": build_untrained(name, arguments.seed) for name in arguments.untrained}

    scores, rows = {}, []
    for title, (model, image_processor) in (models | untrained).items():
        model.to(accelerator.device)
        check_memory(model, 1, arguments.image_size, "lower --image_size", trains=True)
        images = (image.to(accelerator.device) for image in load_squares(files, image_processor, arguments.image_size))
        if title in untrained:
            few = load_squares(files[:IMAGES_THAT_SETTLE], image_processor, arguments.image_size)
            few = (image.to(accelerator.device) for image in few)
            settle_batch_norms(model, follow(few, f"settling {title}", min(IMAGES_THAT_SETTLE, len(files))))
        scores[title] = measure_erf(model, follow(images, f"measuring {title}", len(files)))
        rows += [
            {"model": title, "image_size": arguments.image_size, "num_images": len(files), **row}
            for row in area_ratios(scores[title])
        ]
        model.cpu()

    folder = Path(arguments.output_dir)
    write_csv(folder / "erf.csv", list(rows[0]), (row.values() for row in rows))
    write_arrays(folder / "erf.npz", scores)
    with Progress("drawing the figure"):
        plot_erf(scores, rows, folder / "erf.png")
    print(format_ratios(rows))
    print(f"\nThe maps are in {folder}; the figure is {folder / 'erf.png'}.")


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each path, or the whole path where two end alike."""
    counts = Counter(Path(name).name for name in names)
    return {name: Path(name).name if counts[Path(name).name] == 1 else name for name in names}


def format_ratios(rows: Sequence[dict]) -> str:
    """The table of area ratios for a terminal: a row for each model, a column for each threshold."""
    thresholds = sorted({row["threshold"] for row in rows})
    names = [*dict.fromkeys(row["model"] for row in rows)]
    heading = "smallest area that contributes"
    width = max(width_of(one_line(name)) for name in [*names, heading])
    lines = [pad(heading, width) + "".join(f"{f'{t:.0%}':>10}" for t in thresholds)]
    for name in names:
        ratios = {row["threshold"]: row["area_ratio"] for row in rows if row["model"] == name}
        lines.append(pad(one_line(name), width) + "".join(f"{ratios[t]:>10.1%}" for t in thresholds))
    return "\n".join(lines)
