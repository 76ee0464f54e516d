"""`describe_dataset`: counts and measures the images of a folder."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.files import write_text
from seedling_hf.origin import check_ours
from seedling_hf.train_arguments import LABEL_MAP, TREE

MOST_SIZES = 8


@dataclass(kw_only=True)
class DescribeArguments(ArgumentGroup):
    """Counts and measures images.

    Examples:
        seedling-hf describe_dataset --train_dir seedlings
    """

    train_dir: str = option(".", f"{TREE}, or one with train/, val/ and test/ inside", images=True)
    label_map: str | None = option(None, LABEL_MAP, path=True)
    output_file: str | None = option(None, "JSON file for the same statistics", writable=True)
    skip_bad_images: bool = option(False, "skip images that cannot be decoded instead of stopping with an error")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_file is not None:
            check_ours(self.output_file, "--output_file", "statistics")


def main(argv: Sequence[str] | None = None) -> None:
    """Images of each class, sizes, modes, and two kinds of mean and standard deviation of the channels."""
    arguments = parse_arguments(DescribeArguments, argv, prog="describe_dataset")
    arguments.lock_outputs()
    from seedling_hf.data.dataset import describe_splits, load_folders
    from seedling_hf.data.images import a_few
    from seedling_hf.data.pool import image_sources
    from seedling_hf.data.statistics import measure_images

    pools = load_folders(arguments.train_dir, label_map=arguments.label_map, skip_bad_images=arguments.skip_bad_images)
    paths = (path for pool in pools.values() for path in image_sources(pool))
    figures = measure_images(paths, total=sum(map(len, pools.values())))

    print(describe_splits({"images": pools["train"]} if len(pools) == 1 else pools))
    sizes = [f"{w}×{h} ({n:,})" for (w, h), n in figures.sizes.items()]
    print(f"\nsizes  {a_few(sizes, MOST_SIZES)}")
    print(f"modes  {', '.join(f'{mode} ({n:,})' for mode, n in figures.modes.items())}\n")
    print(f"{'channels, from 0 to 1':40}  {'red':>9}  {'green':>9}  {'blue':>9}")
    for title, values in (
        ("mean of all pixels", figures.mean),
        ("std of all pixels", figures.std),
        ("mean of the images' means (tutorial)", figures.mean_of_means),
        ("mean of the images' stds (tutorial)", figures.mean_of_stds),
    ):
        print(f"{title:40}" + "".join(f"  {value:9.6f}" for value in values))
    print("\ntutorial: the one that docs/tutorial.md follows; it averages over images, whatever their size")

    if arguments.output_file:
        names = pools["train"].features["label"].names
        counts = {split: Counter(pool["label"]) for split, pool in pools.items()}
        values = {
            "classes": {name: sum(found[i] for found in counts.values()) for i, name in enumerate(names)},
            "splits": {split: {name: found[i] for i, name in enumerate(names)} for split, found in counts.items()},
            **asdict(figures),
            "sizes": {f"{w}x{h}": n for (w, h), n in figures.sizes.items()},
        }
        write_text(arguments.output_file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
