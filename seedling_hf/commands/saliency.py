"""`saliency`: a model and images go in, where the model looked comes out, as overlays."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path

from seedling_hf.arguments import ArgumentGroup, check_range, option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.files import check_writable_folder
from seedling_hf.inference.classifier import InferenceArguments, list_classes

MOST_ON_THE_SHEET, SHEET_COLUMNS = 24, 6


@dataclass(kw_only=True)
class SaliencyOptions(ArgumentGroup):
    _argument_group_name = "Saliency"

    images: list[str] = field(metadata={"help": "images, or folders that are searched for images"})
    output_dir: str = option(MISSING, "folder for a PNG of each image and saliency.png with all of them")
    target: str | None = option(None, "class to explain instead of the predicted one")
    stage: int | None = option(
        None, "whose maps: -1 the last, -2 the one before, finer and less sure (default: the last of 4×4 or more)"
    )
    max_samples: int | None = option(None, "use at most so many images, evenly from all")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "max_samples", least=1)
        check_range(self, "stage", most=-1)
        check_writable_folder(Path(self.output_dir), "--output_dir")


@dataclass(kw_only=True)
class SaliencyArguments(InferenceArguments, SaliencyOptions):
    """All flags of `saliency`."""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model and images → answers → Grad-CAM → overlays."""
    arguments = parse_arguments(
        SaliencyArguments, argv, prog="saliency", description="Shows by Grad-CAM where a model looks."
    )

    import torch
    from PIL import Image

    from seedling_hf.data.images import choose_evenly, find_bad_images, list_images
    from seedling_hf.data.transforms import build_eval_transform, to_rgb
    from seedling_hf.inference.prediction import build_accelerator, rank_classes
    from seedling_hf.interpretation.saliency import crop_to_view, overlay, saliency_maps
    from seedling_hf.plots.images import plot_contact_sheet, plot_saliency

    files = choose_evenly(list(list_images(arguments.images)), arguments.max_samples)
    bad = dict(find_bad_images(files))
    if bad and not arguments.skip_bad_images:
        file, reason = next(iter(bad.items()))
        raise InputError(
            f"expected images that can be decoded, found {len(bad):,} that cannot, such as {file} ({reason}); "
            "remove them, or leave them out by --skip_bad_images"
        )
    files = [file for file in files if file not in bad]
    if not files:
        raise InputError(f"expected images in {', '.join(arguments.images)}, found none; name another folder")
    device = build_accelerator("no").device
    model, image_processor = arguments.load()
    class_names = list_classes(model.config)
    model.to(device)
    if arguments.target is not None and arguments.target not in class_names:
        raise InputError(f"expected --target of {', '.join(class_names)}, found {arguments.target}")

    folder, transform, names, sheet = (
        Path(arguments.output_dir),
        build_eval_transform(image_processor),
        file_names(files),
        [],
    )
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(files), arguments.per_device_eval_batch_size):
        portion = files[start : start + arguments.per_device_eval_batch_size]
        images = []
        for file in portion:
            with Image.open(file) as opened:
                opened.load()
                images.append(to_rgb(opened))
        pixel_values = torch.stack([transform(image) for image in images]).to(device)
        with torch.inference_mode():
            logits = model(pixel_values=pixel_values).logits.float().cpu()
        answers = [ranking[0] for ranking in rank_classes(logits, class_names)]
        explained = (
            logits.argmax(-1)
            if arguments.target is None
            else torch.full((len(portion),), class_names.index(arguments.target))
        )
        maps = saliency_maps(model, pixel_values, explained, stage=arguments.stage)
        chances = logits.double().softmax(-1)
        for row, (file, image, (name, probability)) in enumerate(zip(portion, images, answers, strict=True)):
            seen = crop_to_view(image, image_processor)
            covered = overlay(seen, maps[row])
            title = f"{name}, {probability:.1%}"
            subtitle = f"{file.parent.name}/{file.name}"
            if arguments.target is not None:
                subtitle += f"; what speaks for {arguments.target} ({chances[row, explained[row]]:.1%})"
            plot_saliency(seen, maps[row], covered, folder / names[file], title=title, subtitle=subtitle)
            if len(sheet) < MOST_ON_THE_SHEET:
                sheet.append((seen.resize((256, 256)), covered.resize((256, 256)), title, file.parent.name))
    draw_sheet(sheet, folder / "saliency.png", plot_contact_sheet)
    print(f"{len(files):,} images in {folder}; the first {len(sheet)} together in {folder / 'saliency.png'}")


def file_names(files: Sequence[Path]) -> dict[Path, str]:
    """A name for the PNG of each image, with its folder's name in front, numbered where two would be equal."""
    names, seen = {}, {"saliency": 1}
    for file in files:
        name = f"{file.parent.name}_{file.stem}" if file.parent.name else file.stem
        seen[name] = seen.get(name, 0) + 1
        names[file] = f"{name}.png" if seen[name] == 1 else f"{name}_{seen[name]}.png"
    return names


def draw_sheet(sheet: list[tuple], path: Path, plot_contact_sheet) -> None:
    """Images and their overlays in turns, with the answers below."""
    rows, captions = [], []
    for start in range(0, len(sheet), SHEET_COLUMNS):
        part = sheet[start : start + SHEET_COLUMNS]
        blank = [[255] * 3]
        missing = min(len(sheet), SHEET_COLUMNS) - len(part)
        rows += [[p[0] for p in part] + [[blank]] * missing, [p[1] for p in part] + [[blank]] * missing]
        captions += [[p[3] for p in part] + [""] * missing, [p[2] for p in part] + [""] * missing]
    plot_contact_sheet(rows, path, title="Where the model looks (Grad-CAM), and its answers", captions=captions)
