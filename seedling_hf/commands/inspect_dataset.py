"""`inspect_dataset`: finds corrupt files, duplicates and outliers in a tree, and writes them as a page and as JSON."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from seedling_hf.arguments import MOST_WORKERS, ArgumentGroup, option, parse_arguments

FOUND_EXIT_CODE = 1


@dataclass(kw_only=True)
class InspectArguments(ArgumentGroup):
    """Finds corrupt files, duplicates, near-duplicates and outliers.

    Exit code: 0 if all images can be decoded and there are no duplicates, 1 if not (outliers do not count), 2 for
    wrong flags.

    Examples:
        seedling-hf inspect_dataset --train_dir seedlings --output_dir outputs/inspection
    """

    train_dir: str = option(MISSING, "folder of class folders, or one with train/, val/ and test/ inside", images=True)
    output_dir: str = option(
        MISSING,
        "folder for inspection.html and inspection.json",
        writable=True,
        files=("inspection.html", "inspection.json"),
    )
    num_threads: int | None = option(
        None, "threads that decode (default: one for each core)", least=1, most=MOST_WORKERS
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Images → fingerprints → findings → page, JSON and exit code."""
    arguments = parse_arguments(InspectArguments, argv, prog="inspect_dataset")
    arguments.lock_outputs()
    from seedling_hf.data.inspection import format_inspection, inspect_folder, write_inspection

    inspection = inspect_folder(arguments.train_dir, arguments.num_threads)
    write_inspection(inspection, arguments.output_dir)
    print(format_inspection(inspection))
    print(f"\nThe images are shown in {Path(arguments.output_dir) / 'inspection.html'}.")
    return 0 if inspection.is_clean else FOUND_EXIT_CODE
