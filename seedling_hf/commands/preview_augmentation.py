"""`preview_augmentation`: contact sheets of augmented training images."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from seedling_hf.arguments import LARGEST_SEED, option, parse_arguments
from seedling_hf.files import fitting
from seedling_hf.origin import check_outputs
from seedling_hf.progress import Progress, follow
from seedling_hf.train_arguments import LABEL_MAP, TREE, AugmentationArguments

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor

    from seedling_hf.data.backgrounds import Backgrounds
    from seedling_hf.data.transforms import ExampleTransform

IMAGES_OF_A_CLASS, MOST_CLASSES_ON_A_SHEET = 4, 12
OFF = {
    "min_crop_scale": 1.0, "horizontal_flip": 0.0, "vertical_flip": 0.0, "quarter_turns": 0.0, "rotation_degrees": 0.0,
    "color_jitter": 0.0, "randaugment_num_ops": 0, "jpeg_prob": 0.0, "random_erasing": 0.0, "cutout_size": 0,
    "zoom_in_prob": 0.0, "zoom_out_prob": 0.0, "background_prob": 0.0, "shadow_prob": 0.0, "white_balance": 0.0,
    "gamma": 0.0, "levels_prob": 0.0, "blur_prob": 0.0, "noise_prob": 0.0,
}  # fmt: skip


@dataclass(kw_only=True)
class PreviewArguments(AugmentationArguments):
    """Draws contact sheets of augmented training images.

    Examples:
        seedling-hf preview_augmentation --train_dir seedlings --output_dir outputs/preview --mixup_prob 0.5
    """

    _argument_group_name = "Preview"

    train_dir: str = option(MISSING, f"{TREE}, or one with train/ inside", images=True)
    label_map: str | None = option(None, LABEL_MAP, path=True)
    output_dir: str = option(
        MISSING, "folder for the PNG files", writable=True, files=("each_augmentation.png", "mixed_batches.png")
    )
    image_size: int = option(128, "side of the images in pixels", least=32)
    num_examples: int = option(6, "augmented versions of each image", least=1, most=20)
    seed: int = option(42, "seed of the augmentation", least=0, most=LARGEST_SEED)


def main(argv: Sequence[str] | None = None) -> None:
    """One sheet for each class, one of the single augmentations, and one of mixed batches with their labels."""
    arguments = parse_arguments(PreviewArguments, argv, prog="preview_augmentation")
    arguments.lock_outputs()
    from seedling_hf.data.backgrounds import Backgrounds, find_grounds
    from seedling_hf.data.dataset import load_folders
    from seedling_hf.inference.batch_memory import refuse_beyond
    from seedling_hf.machine import memory_size
    from seedling_hf.plots.fonts import draw_names

    pixels = arguments.image_size**2
    # A row of a sheet in 8 bits, and the grid of its rotations with an image in float32.
    needed = pixels * (3 * IMAGES_OF_A_CLASS * (arguments.num_examples + 1) + 16 + 3 * 12)
    refuse_beyond(memory_size(), needed, f"images of {arguments.image_size:,} pixels a side", "lower --image_size")
    images = load_folders(arguments.train_dir, label_map=arguments.label_map)["train"]
    members = {name: [] for name in images.features["label"].names}
    for row, label in enumerate(images["label"]):
        members[images.features["label"].names[label]].append(row)

    labels = dict(zip(members, draw_names([*members]), strict=True))
    check_outputs(arguments.output_dir, map(sheet_name, members), "--output_dir")
    backgrounds = Backgrounds(find_grounds(images))
    for name, rows in follow(members.items(), "drawing a sheet of each class", unit="sheet"):
        rows = rows[:: max(1, len(rows) // IMAGES_OF_A_CLASS)][:IMAGES_OF_A_CLASS]
        draw_class(name, labels[name], images, rows, arguments, backgrounds)
    names = [*members][:: -(-len(members) // MOST_CLASSES_ON_A_SHEET)]
    rows = [members[name][0] for name in names]
    with Progress("drawing the single augmentations"):
        draw_each_augmentation([labels[name] for name in names], images, rows, arguments, backgrounds)
    with Progress("drawing mixed batches"):
        draw_mixed_batches([*labels.values()], images, rows, arguments)
    print(f"{len(members) + 2} contact sheets are in {arguments.output_dir}")


def sheet_name(name: str) -> str:
    """The name of a file for the sheet of a class; lists of labels give names that no file can have."""
    return fitting(name.replace("/", "\u2215").replace("\0", "\u2215"), ".png")


def draw_class(
    name: str, label: str, images: "Dataset", rows: list[int], arguments: PreviewArguments, backgrounds: "Backgrounds"
) -> None:
    """Images of one class, whose name figures show as `label`, and their augmented versions in each epoch."""
    from seedling_hf.data.images import to_rgb
    from seedling_hf.plots.images import plot_contact_sheet

    size = arguments.image_size
    versions = augment(images, rows, arguments, backgrounds, epochs=arguments.num_examples)
    sheet = [[to_rgb(images[row]["image"]).resize((size, size)), *augmented]
             for row, augmented in zip(rows, versions, strict=True)]  # fmt: skip
    columns = ["original", *(f"epoch {i + 1}" for i in range(arguments.num_examples))]
    plot_contact_sheet(sheet, Path(arguments.output_dir, sheet_name(name)), title=label, columns=columns)


def draw_each_augmentation(
    labels: list[str], images: "Dataset", rows: list[int], arguments: PreviewArguments, backgrounds: "Backgrounds"
) -> None:
    """One image of each class under each single augmentation."""
    from seedling_hf.plots.images import plot_contact_sheet

    changes = each_augmentation(arguments.image_size)
    sheet = [
        [image for (image,) in augment(images, rows, replace(arguments, **flags), backgrounds)]
        for flags in changes.values()
    ]
    path = Path(arguments.output_dir, "each_augmentation.png")
    plot_contact_sheet(sheet, path, title="Single augmentations", rows=[*changes], columns=labels)


def draw_mixed_batches(labels: list[str], images: "Dataset", rows: list[int], arguments: PreviewArguments) -> None:
    """A batch of one image of each class with MixUp, with CutMix, and as in the run, with its labels."""
    from seedling_hf.data.collator import Collator
    from seedling_hf.plots.images import plot_contact_sheet

    view = images.with_transform(build_transform(replace(arguments, **OFF)))
    examples = [{**view[row], "index": row} for row in rows]
    always = {"mixup_prob": 1.0}
    batches = {
        "MixUp": always | {"cutmix_alpha": 0.0},
        "CutMix": always | {"mixup_alpha": 0.0},
        f"as in the run\n(probability {arguments.mixup_prob:g})": {},
    }
    sheet, captions, titles = [], [], []
    for title, changes in batches.items():
        augmentation = replace(arguments, **changes)
        if changes and not (augmentation.mixup_alpha or augmentation.cutmix_alpha):
            continue  # its flag is 0
        batch = Collator(len(labels), augmentation, seed=arguments.seed)(examples)
        sheet.append([to_bytes(image) for image in batch["pixel_values"]])
        captions.append([label_text(label, labels) for label in batch["labels"]])
        titles.append(title)
    plot_contact_sheet(
        sheet, Path(arguments.output_dir, "mixed_batches.png"), rows=titles, captions=captions,
        title="MixUp and CutMix, with labels", note=explain_labels(arguments.label_smoothing_factor),
    )  # fmt: skip


def build_transform(arguments: PreviewArguments, backgrounds: "Backgrounds | None" = None) -> "ExampleTransform":
    """The training transform at the preview's size and seed."""
    from seedling_hf.data.transforms import ExampleTransform, build_train_transform
    from seedling_hf.replknet import RepLKNetImageProcessor

    side = {"height": arguments.image_size, "width": arguments.image_size}
    transform = build_train_transform(arguments, RepLKNetImageProcessor(crop_size=side), backgrounds=backgrounds)
    return ExampleTransform(transform, seed=arguments.seed)


def augment(
    images: "Dataset", rows: list[int], arguments: PreviewArguments, backgrounds: "Backgrounds", epochs: int = 1
) -> list[list["np.ndarray"]]:
    """The image of each row in each epoch, (H, W, 3) of 8 bits."""
    transform = build_transform(arguments, backgrounds)
    view, versions = images.with_transform(transform), [[] for _ in rows]
    for epoch in range(epochs):
        transform.set_epoch(epoch)
        for row, made in zip(rows, versions, strict=True):
            made.append(to_bytes(view[row]["pixel_values"]))
    return versions


def to_bytes(pixel_values: "Tensor") -> "np.ndarray":
    """A normalised image (3, H, W) as (H, W, 3) of 8 bits."""
    from seedling_hf.replknet import RepLKNetImageProcessor

    mean, std = (pixel_values.new_tensor(values)[:, None, None] for values in
                 (RepLKNetImageProcessor.image_mean, RepLKNetImageProcessor.image_std))  # fmt: skip
    return ((pixel_values * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def each_augmentation(image_size: int) -> dict[str, dict]:
    """Single augmentations, at a strength that can be seen."""
    changes = {
        "whole image": {},
        "crop": {"min_crop_scale": 0.3},
        "flips": {"horizontal_flip": 1.0, "vertical_flip": 1.0},
        "quarter turns": {"quarter_turns": 1.0},
        "rotation": {"rotation_degrees": 180.0},
        "rotation, mirrored corners": {"rotation_degrees": 180.0, "rotation_fill": "mirror"},
        "color jitter": {"color_jitter": 0.5},
        "RandAugment": {"randaugment_num_ops": 2, "randaugment_magnitude": 15},
        "zoom in": {"zoom_in_prob": 1.0},
        "zoom out": {"zoom_out_prob": 1.0},
        "background": {"background_prob": 1.0},
        "shadow": {"shadow_prob": 1.0},
        "white balance": {"white_balance": 1.0},
        "gamma": {"gamma": 1.0},
        "levels": {"levels_prob": 1.0},
        "blur": {"blur_prob": 1.0},
        "noise": {"noise_prob": 1.0},
        "JPEG": {"jpeg_prob": 1.0},
        "Random Erasing": {"random_erasing": 1.0},
        "Cutout": {"cutout_size": image_size // 3},
    }
    return {title: OFF | change for title, change in changes.items()}


def explain_labels(smoothing: float) -> str:
    """What the percentages below mixed images mean."""
    text = (
        "A percentage is the share of a class in the label that the model is trained to answer with. MixUp blends two "
        "images in about these shares; CutMix replaces such a share of the area by a part of the other image."
    )
    if smoothing:
        text += (
            f" Label smoothing (--label_smoothing_factor {smoothing:g}) spreads {smoothing:.0%} evenly over all "
            "classes, so the shares shown do not add up to 100%."
        )
    return text


def label_text(label, names: Sequence[str]) -> str:
    """The one or two classes of a label, soft or not."""
    if label.ndim == 0:
        return names[int(label)]
    shares, classes = label.topk(min(2, len(names)))
    # A class that only has its share of the smoothing is not part of the mixture.
    rest = float(label.min())
    parts = [(float(s), int(c)) for s, c in zip(shares, classes, strict=True) if float(s) > rest + 1e-6]
    return "\n".join(f"{share:.0%} {names[c]}" for share, c in parts)
