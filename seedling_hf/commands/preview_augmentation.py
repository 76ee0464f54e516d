"""`preview_augmentation`: contact sheets of what training does to the pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from seedling_hf.arguments import MISSING, ArgumentGroup, AugmentationArguments, check_range, option, parse_arguments

OFF = {
    "min_crop_scale": 1.0, "horizontal_flip": 0.0, "vertical_flip": 0.0, "rotation_degrees": 0.0, "color_jitter": 0.0,
    "randaugment_num_ops": 0, "random_erasing": 0.0, "cutout_size": 0,
}  # fmt: skip
MIXING = ("mixup_alpha", "cutmix_alpha", "mixup_prob", "mixup_switch_prob", "mixup_mode", "label_smoothing_factor")


@dataclass(kw_only=True)
class PreviewOptions(ArgumentGroup):
    """What is drawn, and where to."""

    _argument_group_name = "Preview"

    train_dir: str = option(MISSING, "folder of class folders")
    output_dir: str = option(MISSING, "folder for the PNG files")
    image_size: int = option(128, "side of the pictures in pixels")
    num_examples: int = option(6, "augmented versions of a picture")
    seed: int = option(42, "seed of the augmentation")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "image_size", least=32)
        check_range(self, "num_examples", least=1, most=20)


@dataclass(kw_only=True)
class PreviewArguments(AugmentationArguments, PreviewOptions):
    """Flags of `preview_augmentation`."""


def main(argv: Sequence[str] | None = None) -> None:
    """A sheet for each class, one of each augmentation by itself, one of mixed batches with their labels."""
    arguments = parse_arguments(
        PreviewArguments, argv, prog="preview_augmentation", description="Draws what training does to the pictures."
    )
    import torch

    from seedling_hf.collator import Collator
    from seedling_hf.dataset import load_folder
    from seedling_hf.plots import plot_contact_sheet
    from seedling_hf.replknet import RepLKNetImageProcessor
    from seedling_hf.transforms import ExampleTransform, build_train_transform, to_rgb

    size, output_dir = arguments.image_size, Path(arguments.output_dir)
    mean, std = RepLKNetImageProcessor.image_mean, RepLKNetImageProcessor.image_std
    pictures = load_folder(arguments.train_dir)
    names = pictures.features["label"].names
    mixing = {name: value for name, value in asdict(arguments).items() if name in MIXING}
    chosen = {
        name: value for name, value in asdict(arguments).items() if name in OFF or name == "randaugment_magnitude"
    }

    def versions(changes: dict, rows: list[int], epochs: range = range(1)) -> list[list]:
        """For each row, its picture under the transform of `changes` in each epoch, as 8-bit (H, W, 3)."""
        transform = ExampleTransform(
            build_train_transform(image_size=size, mean=mean, std=std, **changes), seed=arguments.seed
        )
        view = pictures.with_transform(transform)
        found = [[] for _ in rows]
        for epoch in epochs:
            transform.set_epoch(epoch)
            for place, row in enumerate(rows):
                found[place].append(to_bytes(view[row]["pixel_values"]))
        return found

    def to_bytes(pixel_values: torch.Tensor):
        shade = pixel_values * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
        return (shade.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()

    def original(row: int):
        return to_rgb(pictures[row]["image"]).resize((size, size))

    output_dir.mkdir(parents=True, exist_ok=True)
    labels = pictures["label"]
    members = {name: [i for i, label in enumerate(labels) if names[label] == name] for name in names}
    for name, rows in members.items():
        rows = rows[:: max(1, len(rows) // 4)][:4]
        sheet = [
            [original(row), *row_versions]
            for row, row_versions in zip(rows, versions(chosen, rows, range(arguments.num_examples)), strict=True)
        ]
        captions = ["original", *(f"epoch {i + 1}" for i in range(arguments.num_examples))]
        plot_contact_sheet(sheet, output_dir / f"{name}.png", title=name, columns=captions)

    rows = [members[name][0] for name in names]
    columns = {title: versions(changes, rows) for title, changes in each_augmentation(size).items()}
    sheet = [[column[place][0] for column in columns.values()] for place in range(len(rows))]
    plot_contact_sheet(
        sheet, output_dir / "each_augmentation.png", title="Each augmentation by itself", columns=[*columns], rows=names
    )

    whole = ExampleTransform(build_train_transform(image_size=size, mean=mean, std=std, **OFF))
    view = pictures.with_transform(whole)
    examples = [{"pixel_values": view[row]["pixel_values"], "labels": labels[row], "index": row} for row in rows]
    sheet, titles = [], []
    smoothing = mixing.pop("label_smoothing_factor")
    for changes in (
        {"cutmix_alpha": 0.0}, {"mixup_alpha": 0.0}, {},
    ):  # fmt: skip
        # By themselves every batch is mixed; the last row is the run's own probability.
        values = mixing | changes | ({"mixup_prob": 1.0} if changes else {})
        collator = Collator(len(names), label_smoothing=smoothing, seed=arguments.seed, **values)
        batch = collator(examples)
        sheet.append([to_bytes(picture) for picture in batch["pixel_values"]])
        titles.append([label_text(label, names) for label in batch["labels"]])
    plot_contact_sheet(
        sheet, output_dir / "mixed_batches.png", title="MixUp and CutMix, and what the picture counts as",
        rows=["MixUp", "CutMix", f"probability {arguments.mixup_prob:g}"], captions=titles,
    )  # fmt: skip
    print(f"{len(names) + 2} contact sheets are in {output_dir}")


def each_augmentation(image_size: int) -> dict[str, dict]:
    """Each augmentation by itself, at a strength that can be seen."""
    changes = {
        "whole picture": {},
        "crop": {"min_crop_scale": 0.3},
        "flips": {"horizontal_flip": 1.0, "vertical_flip": 1.0},
        "rotation": {"rotation_degrees": 180.0},
        "color jitter": {"color_jitter": 0.5},
        "RandAugment": {"randaugment_num_ops": 2, "randaugment_magnitude": 15},
        "Random Erasing": {"random_erasing": 1.0},
        "Cutout": {"cutout_size": image_size // 3},
    }
    return {title: OFF | change for title, change in changes.items()}


def label_text(label, names: Sequence[str]) -> str:
    """The one or two classes that a label, soft or not, is made of."""
    if label.ndim == 0:
        return names[int(label)]
    shares, classes = label.topk(min(2, len(names)))
    # A class that smoothing alone gives its share is no part of the mixture.
    rest = float(label.min())
    parts = [(float(s), int(c)) for s, c in zip(shares, classes, strict=True) if float(s) > rest + 1e-6]
    return "\n".join(f"{share:.0%} {names[c]}" for share, c in parts)
