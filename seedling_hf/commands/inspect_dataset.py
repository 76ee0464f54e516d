"""`inspect_dataset`: finds corrupt files, duplicates, outliers and wrong labels in a tree, and writes page and JSON."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from seedling_hf.arguments import MOST_WORKERS, ArgumentGroup, option, parse_arguments
from seedling_hf.origin import LABELS
from seedling_hf.train_arguments import LABEL_MAP, TREE

FOUND_EXIT_CODE = 1


@dataclass(kw_only=True)
class InspectArguments(ArgumentGroup):
    """Finds corrupt files, duplicates, near-duplicates, outliers and, from predictions, labels that look wrong.

    Exit code: 0 if all images can be decoded and there are no duplicates, 1 if not (outliers and labels do not count),
    2 for wrong flags.

    Examples:
        seedling-hf inspect_dataset --train_dir seedlings --output_dir outputs/inspection
        seedling-hf inspect_dataset --train_dir seedlings --output_dir outputs/inspection --predictions outputs/run
    """

    train_dir: str = option(MISSING, f"{TREE}, or one with train/, val/ and test/ inside", images=True)
    label_map: str | None = option(None, LABEL_MAP, path=True)
    output_dir: str = option(
        MISSING,
        "folder for inspection.html, inspection.json and labels.csv",
        writable=True,
        files=("inspection.html", "inspection.json"),
    )
    predictions: str | None = option(
        None,
        "predictions.csv or probabilities.npz of a run or of evaluate, or their folder: finds labels that look wrong",
        path=True,
    )
    num_threads: int | None = option(
        None, "threads that decode (default: one for each core)", least=1, most=MOST_WORKERS
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Images, predictions → fingerprints → findings → page, JSON, list of labels and exit code."""
    arguments = parse_arguments(InspectArguments, argv, prog="inspect_dataset")
    arguments.lock_outputs()
    from seedling_hf.data.folders import list_folders
    from seedling_hf.data.inspection import format_inspection, inspect_folder, write_inspection
    from seedling_hf.data.label_map import rename_classes
    from seedling_hf.data.suspects import check_candidates

    labels = Path(arguments.output_dir, LABELS)
    if arguments.predictions is not None:
        pools = rename_classes(list_folders(arguments.train_dir), arguments.label_map)
        check_candidates(labels, dict(row for pool in pools.values() for row in pool.rows))
    inspection = inspect_folder(
        arguments.train_dir, arguments.num_threads, arguments.predictions, label_map=arguments.label_map
    )
    write_inspection(inspection, arguments.output_dir)
    print(format_inspection(inspection))
    print(f"\nThe images are shown in {Path(arguments.output_dir) / 'inspection.html'}.")
    if inspection.suspects:
        print(f"Look at the labels, edit the column label of {labels}, and train with --label_file {labels}.")
    return 0 if inspection.is_clean else FOUND_EXIT_CODE
