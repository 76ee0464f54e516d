"""`describe_dataset`: what a folder of seedlings holds."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from seedling_hf.arguments import MISSING, option, parse_arguments


@dataclass(kw_only=True)
class DescribeArguments:
    """Flags of `describe_dataset`."""

    train_dir: str = option(MISSING, "folder of class folders")
    output_file: str | None = option(None, "JSON file for the same figures")
    skip_bad_pictures: bool = option(False, "leave out pictures that cannot be decoded instead of refusing them")


def main(argv: Sequence[str] | None = None) -> None:
    """Pictures a class, sizes, modes, and the mean and standard deviation of the channels both ways."""
    arguments = parse_arguments(
        DescribeArguments, argv, prog="describe_dataset", description="Counts and measures pictures."
    )
    from seedling_hf.dataset import load_folder
    from seedling_hf.statistics import measure_pictures

    dataset = load_folder(arguments.train_dir, skip_bad_pictures=arguments.skip_bad_pictures)
    names = dataset.features["label"].names
    counts = Counter(names[i] for i in dataset["label"])
    figures = measure_pictures(Path(arguments.train_dir) / file for file in dataset["file"])

    width = max(map(len, [*names, "total"]))
    largest = max(counts.values())
    for name in names:
        print(f"{name:{width}}  {counts[name]:7,}  {'█' * max(1, round(30 * counts[name] / largest))}")
    print(f"{'total':{width}}  {figures.num_pictures:7,}\n")
    sizes = [f"{w}×{h} ({n:,})" for (w, h), n in figures.sizes.items()]
    print(f"sizes  {', '.join(sizes[:8])}{f' and {len(sizes) - 8:,} more' if len(sizes) > 8 else ''}")
    print(f"modes  {', '.join(f'{mode} ({n:,})' for mode, n in figures.modes.items())}\n")
    print(f"{'channels, on the scale of 0 to 1':40}  {'red':>9}  {'green':>9}  {'blue':>9}")
    for title, values in (
        ("mean of all pixels", figures.mean),
        ("std of all pixels", figures.std),
        ("mean of the pictures' means (tutorial)", figures.mean_of_means),
        ("mean of the pictures' stds (tutorial)", figures.mean_of_stds),
    ):
        print(f"{title:40}" + "".join(f"  {value:9.6f}" for value in values))

    if arguments.output_file:
        sizes = {f"{w}x{h}": n for (w, h), n in figures.sizes.items()}
        text = json.dumps({"classes": dict(counts), **asdict(figures), "sizes": sizes}, indent=2, ensure_ascii=False)
        Path(arguments.output_file).write_text(text + "\n", encoding="utf-8")
