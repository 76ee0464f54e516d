"""`saliency`: a model and images go in, what speaks for its answers comes out, as overlays."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from seedling_hf.arguments import option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.escaping import format_count
from seedling_hf.files import fitting
from seedling_hf.inference.classifier import list_classes
from seedling_hf.inference.classifier_arguments import InferenceArguments
from seedling_hf.origin import check_outputs
from seedling_hf.progress import Progress, follow
from seedling_hf.spelling import find_near

MOST_ON_THE_SHEET, SHEET_COLUMNS = 24, 6
LONGEST_PLACE = 80  # columns of a folder and a file in a figure


@dataclass(kw_only=True)
class SaliencyArguments(InferenceArguments):
    """Show by integrated gradients what in an image speaks for a model's answer.

    Examples:
        seedling-hf saliency --images seedlings/Maize --output_dir outputs/saliency
    """

    _argument_group_name = "Saliency"

    images: list[str] = option(MISSING, "images, or folders that are searched for images", images=True)
    output_dir: str = option(
        MISSING,
        "folder for a PNG of each image and saliency.png with the first 24",
        writable=True,
        files=("saliency.png",),
    )
    target: str | None = option(None, "class to explain instead of the predicted one")
    max_samples: int | None = option(None, "largest number of images, evenly chosen", least=1)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model and images → predictions → integrated gradients → overlays."""
    arguments = parse_arguments(SaliencyArguments, argv, prog="saliency")

    from seedling_hf.data.images import a_few, select_images
    from seedling_hf.inference.batch_memory import EVAL_ADVICE, check_memory, image_side
    from seedling_hf.inference.prediction import build_accelerator, on_main_process
    from seedling_hf.plots.fonts import draw_names
    from seedling_hf.plots.images import plot_saliency

    accelerator = build_accelerator("no")
    on_main_process(accelerator, arguments.lock_outputs)
    files = select_images(arguments.images, arguments.max_samples, skip_bad_images=arguments.skip_bad_images)
    folder, names, sheet, undecided = Path(arguments.output_dir), file_names(files), [], 0
    check_outputs(folder, names.values(), "--output_dir")
    model, image_processor = arguments.load()
    model.to(accelerator.device)
    class_names = list_classes(model.config)
    if arguments.target is not None and arguments.target not in class_names:
        near = find_near(arguments.target, class_names)
        raise InputError(
            f"expected --target of {a_few(class_names, 12)}, found {arguments.target}"
            + (f"; did you mean {near}?" if near else "")
        )

    images = min(arguments.per_device_eval_batch_size, len(files))
    check_memory(model, images, image_side(image_processor), EVAL_ADVICE, trains=True)
    labels = dict(zip(class_names, draw_names(class_names), strict=True))
    folders, places = letter_files(files, labels)
    size = arguments.per_device_eval_batch_size
    batches = [files[start : start + size] for start in range(0, len(files), size)]
    answers = (each for batch in batches for each in _explain(arguments, model, image_processor, batch, labels))
    with closing(follow(answers, "explaining", len(files))) as explanations:
        for file, explained, title, remark in explanations:
            undecided += not explained.decisive
            plot_saliency(*explained[:3], folder / names[file], title=title, subtitle=places[file] + remark)
            if len(sheet) < MOST_ON_THE_SHEET:
                small = (image.resize((256, 256)) for image in (explained.seen, explained.overlay))
                sheet.append((*small, title, folders[file]))
    with Progress("drawing the sheet"):
        _draw_sheet(sheet, folder / "saliency.png")
    count = format_count(len(files), "image")
    print(f"overlays of {count} are in {folder}, the first {len(sheet)} in {folder / 'saliency.png'}")
    if undecided:
        print(f"of {undecided} no region decides, so nothing lies over them")


def letter_files(files: Sequence[Path], labels: Mapping[str, str]) -> tuple[dict[Path, str], dict[Path, str]]:
    """Folder, and folder with name, of each file as figures show them; `labels` are those of folders that are classes.

    Where no font holds a name, it is the number of the image.
    """
    from seedling_hf.plots.fonts import draw_names

    folders = [labels.get(file.parent.name, file.parent.name) for file in files]
    places = [f"{name}/{file.name}" for name, file in zip(folders, files, strict=True)]
    drawn = draw_names(folders, "image"), draw_names(places, "image", longest=LONGEST_PLACE)
    folders, places = (dict(zip(files, names, strict=True)) for names in drawn)
    return folders, places


def _explain(
    arguments: SaliencyArguments, model: Any, image_processor: Any, files: list[Path], labels: Mapping[str, str]
) -> Iterator[tuple]:
    """Each file with its `Explanation`, the predicted class as a title, and a remark on another target."""
    import torch

    from seedling_hf.data.images import read_image, to_rgb
    from seedling_hf.data.transforms import EvalTransform
    from seedling_hf.inference.prediction import forward
    from seedling_hf.interpretation.saliency import explain_images

    class_names, transform = list_classes(model.config), EvalTransform(image_processor)
    images = [to_rgb(read_image(file)) for file in files]
    logits = forward(model, torch.stack([transform(image) for image in images])).logits.float().cpu()
    probabilities, predicted = logits.double().softmax(-1), logits.argmax(-1)
    target = arguments.target and class_names.index(arguments.target)
    targets = predicted if target is None else torch.full_like(predicted, target)
    explanations = explain_images(model, image_processor, images, targets)
    for file, explained, chances, number in zip(files, explanations, probabilities, predicted, strict=True):
        remark = "" if target is None else f"; what speaks for {labels[arguments.target]} ({chances[target]:.1%})"
        remark += "" if explained.decisive else "; no region decides"
        yield file, explained, f"{labels[class_names[number]]}, {chances[number]:.1%}", remark


def file_names(files: Sequence[Path]) -> dict[Path, str]:
    """A name for the PNG of each image: folder and file, with a number where two would be equal."""
    names, seen = {}, {"saliency": 1}
    for file in files:
        name = f"{file.parent.name}_{file.stem}" if file.parent.name else file.stem
        seen[name] = seen.get(name, 0) + 1
        names[file] = fitting(name, ".png" if seen[name] == 1 else f"_{seen[name]}.png")
    return names


def _draw_sheet(sheet: list[tuple], path: Path) -> None:
    """Rows of images, each above a row of their overlays, with the predictions below."""
    from seedling_hf.plots.images import plot_contact_sheet

    rows, captions = [], []
    for start in range(0, len(sheet), SHEET_COLUMNS):
        part = sheet[start : start + SHEET_COLUMNS]
        blank = [[255] * 3]
        missing = min(len(sheet), SHEET_COLUMNS) - len(part)
        rows += [[p[0] for p in part] + [[blank]] * missing, [p[1] for p in part] + [[blank]] * missing]
        captions += [[p[3] for p in part] + [""] * missing, [p[2] for p in part] + [""] * missing]
    plot_contact_sheet(rows, path, title="What speaks for the predictions", captions=captions)
