"""Problems in a tree of images, as a page: corrupt files, duplicates, images in two classes, outliers, wrong labels.

The page is self-contained, with small copies of the images inside.
"""

import base64
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import Environment

from seedling_hf.data.duplicates import (
    Fingerprints,
    connect,
    find_exact_duplicates,
    find_near_duplicates,
    fingerprint_images,
    list_members,
    number_clusters,
)
from seedling_hf.data.folders import list_folders
from seedling_hf.data.images import a_few, find_bad_images, read_image, to_rgb
from seedling_hf.data.label_map import rename_classes
from seedling_hf.data.listing import MISNAMED
from seedling_hf.data.pool import image_sources
from seedling_hf.data.suspects import Suspect, look_at_labels, write_candidates
from seedling_hf.escaping import finish_html
from seedling_hf.files import write_text, writing
from seedling_hf.origin import LABELS
from seedling_hf.progress import Progress

MAX_DEVIATIONS = 6.0  # robust standard deviations from the median beyond which an image is an outlier
MOST_COMPARED = 20_000  # images that training compares when it starts; more would take minutes
MOST_SHOWN = 200  # entries of a section of the page
PREVIEW_SIDE = 150  # pixels
SHARED_IMAGES = "near_duplicates.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inspection:
    """The findings, ready for JSON; images are files relative to the folder."""

    folder: str
    num_images: int  # files with the suffix of an image
    classes: dict[str, dict[str, int]]  # number of images of each class that can be decoded, by split
    corrupt: list[dict[str, str]]  # `file` and `reason` of each that cannot be decoded
    exact_duplicates: list[list[str]]  # groups of files with the same decoded pixels
    near_duplicates: list[dict[str, Any]]  # `files`, `distance` (bits of 64), `correlation`; the most similar first
    in_two_classes: list[list[str]]  # files of each cluster of duplicates that spans several classes
    in_two_splits: list[list[str]]  # the same for splits that have folders of their own
    # `file`, `what` (width, height, red, green, blue), `value`, `median`, robust `deviations`; hints
    outliers: list[dict[str, Any]]
    num_predicted: int | None = None  # images whose labels were compared with predictions
    suspects: list[Suspect] = field(default_factory=list)  # labels that look wrong; hints

    @property
    def is_clean(self) -> bool:
        """Whether all images can be decoded and there are no duplicates; hints do not count."""
        return not (self.corrupt or self.exact_duplicates or self.near_duplicates)


def inspect_folder(
    folder: str | os.PathLike,
    num_threads: int | None = None,
    predictions: str | os.PathLike | None = None,
    *,
    label_map: str | os.PathLike | None = None,
) -> Inspection:
    """Decodes and compares all images of a tree, or of its `train/`, `val/` and `test/`.

    Args:
        predictions: What a model answers to them, as `read_predictions` takes it, for labels that look wrong.

    Raises:
        InputError: as `list_folders` and `rename_classes` do, and for predictions for other images.
    """
    folder = Path(folder)
    pools = rename_classes(list_folders(folder), label_map)
    num_predicted, suspects = None, []
    if predictions is not None:
        num_predicted, suspects = look_at_labels(predictions, folder, pools)
    found = [
        (path, label, split)
        for split, pool in pools.items()
        for path, label in zip(image_sources(pool.images), pool.labels, strict=True)
    ]
    corrupt = dict(find_bad_images([path for path, _, _ in found]))
    misnamed = [repr(os.fsencode(Path(pool.where, file))) for pool in pools.values() for file in pool.misnamed]
    good = [entry for entry in found if entry[0] not in corrupt]
    files = [str(path.relative_to(folder)) for path, _, _ in good]
    labels, splits = [label for _, label, _ in good], [split for _, _, split in good]

    known = set(files)
    fingerprints = fingerprint_images((path for path, _, _ in good), num_threads, len(good))
    exact, near = find_exact_duplicates(fingerprints.digests), find_near_duplicates(fingerprints)
    clusters = list_members(connect(len(files), exact, near))

    def in_several(values: Sequence[str]) -> list[list[str]]:
        return [[files[i] for i in c] for c in clusters if len({values[i] for i in c}) > 1]

    counts = Counter(zip(splits, labels, strict=True))
    return Inspection(
        folder=str(folder),
        num_images=len(found) + len(misnamed),
        classes={
            split: {label: counts[split, label] for label in sorted({label for _, label, _ in found})}
            for split in dict.fromkeys(split for _, _, split in found)
        },
        corrupt=[{"file": str(path.relative_to(folder)), "reason": reason} for path, reason in corrupt.items()]
        + [{"file": file, "reason": MISNAMED} for file in misnamed],
        exact_duplicates=[[files[i] for i in group] for group in exact],
        near_duplicates=[
            {"files": [files[p.first], files[p.second]], "distance": p.distance, "correlation": round(p.correlation, 4)}
            for p in near
        ],
        in_two_classes=in_several(labels),
        in_two_splits=in_several(splits),
        outliers=_find_outliers(files, fingerprints),
        num_predicted=num_predicted,
        suspects=[suspect for suspect in suspects if suspect.file in known],
    )


def write_inspection(inspection: Inspection, output_dir: str | os.PathLike) -> None:
    """Writes inspection.json with all findings, inspection.html with the images, and labels.csv with the suspects."""
    output_dir = Path(output_dir)
    if inspection.num_predicted is not None:
        write_candidates(inspection.suspects, output_dir / LABELS)
    values = asdict(inspection) | {"is_clean": inspection.is_clean}
    write_text(output_dir / "inspection.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    with Progress("drawing the page"):
        write_text(output_dir / "inspection.html", render_page(inspection))


def format_inspection(inspection: Inspection) -> str:
    """The number of findings of each kind."""
    counts = {
        "images": inspection.num_images,
        "corrupt files": len(inspection.corrupt),
        "groups of exact duplicates (same decoded pixels)": len(inspection.exact_duplicates),
        "pairs of near-duplicates": len(inspection.near_duplicates),
        "clusters in two classes": len(inspection.in_two_classes),
        "clusters in two splits": len(inspection.in_two_splits),
        "outliers in size or colour": len({outlier["file"] for outlier in inspection.outliers}),
    }
    if inspection.num_predicted is not None:
        counts[f"labels that look wrong (of {inspection.num_predicted:,} predicted)"] = len(inspection.suspects)
    return "\n".join(f"{name:50} {count:7,}" for name, count in counts.items())


def render_page(inspection: Inspection) -> str:
    """The inspection as a self-contained HTML page."""
    environment = Environment(autoescape=True, finalize=finish_html, trim_blocks=True, lstrip_blocks=True)
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        inspection=inspection,
        most=MOST_SHOWN,
        deviations=MAX_DEVIATIONS,
        preview=lambda file: _preview(Path(inspection.folder, file)),
    )


def fingerprint_splits(splits: Mapping[str, Dataset]) -> Fingerprints:
    """Of the training images, followed by the validation images."""
    names = ("train", "validation")
    sources = (source for name in names for source in image_sources(splits[name]))
    return fingerprint_images(sources, total=sum(len(splits[name]) for name in names))


def find_shared_images(splits: Mapping[str, Dataset], fingerprints: Fingerprints) -> list[tuple[str, str]]:
    """Validation images with a duplicate in training: the files of each, and of one of its duplicates.

    `fingerprints` are those that `fingerprint_splits` makes.
    """
    train, validation = splits["train"], splits["validation"]
    clusters = number_clusters(fingerprints)
    in_training = dict(zip(reversed(clusters[: len(train)]), reversed(train["file"]), strict=True))
    return [
        (file, in_training[cluster])
        for file, cluster in zip(validation["file"], clusters[len(train) :], strict=True)
        if cluster in in_training
    ]


def report_shared_images(
    splits: Mapping[str, Dataset], path: Path, split_hash: str, *, look: bool = True, keep: bool = False
) -> Fingerprints | None:
    """Warns of validation images with duplicates in training, and writes them to the JSON file `path` for the card.

    Without a comparison (`look` is false, or there are more than `MOST_COMPARED` images) there is no file.

    Args:
        split_hash: As `hash_split` gives it.
        keep: Whether a file of the same split stays, without a comparison.

    Returns:
        What was compared, as `fingerprint_splits` makes it; None without a comparison.

    Raises:
        WriteError: if the file cannot be written, or something else is in its place.
    """
    if keep and _is_of_split(path, split_hash):
        return None
    with writing(path):
        path.unlink(missing_ok=True)
    if not look:
        return None
    if (count := len(splits["train"]) + len(splits["validation"])) > MOST_COMPARED:
        logger.info(
            "did not search for validation images with duplicates in training: %d images are more than %d; use "
            "inspect_dataset", count, MOST_COMPARED,
        )  # fmt: skip
        return None
    fingerprints = fingerprint_splits(splits)
    pairs = find_shared_images(splits, fingerprints)
    values = {
        "split_sha256": split_hash,
        "validation_images": len(splits["validation"]),
        "pairs": [{"validation": ours, "training": theirs} for ours, theirs in pairs],
    }
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    if pairs:
        shown = a_few([f"{ours} (as {theirs})" for ours, theirs in pairs], 3)
        logger.warning(
            "%d of %d validation images have duplicates in training: %s; --split_strategy grouped keeps duplicates on "
            "one side",
            len(pairs), len(splits["validation"]), shown,
        )  # fmt: skip
    return fingerprints


def _is_of_split(path: Path, split_hash: str) -> bool:
    """Whether `report_shared_images` has written a file for this split, and it is whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        pairs_are_whole = all(pair.keys() == {"validation", "training"} for pair in found["pairs"])
        return pairs_are_whole and found["split_sha256"] == split_hash
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _find_outliers(files: Sequence[str], fingerprints: Fingerprints) -> list[dict[str, Any]]:
    """Images far from the median, in deviations robust to outliers (1.4826 times the median absolute deviation)."""
    if not files:
        return []
    values = {
        "width": fingerprints.sizes[:, 0], "height": fingerprints.sizes[:, 1],
        **{name: fingerprints.colors[:, channel] for channel, name in enumerate(("red", "green", "blue"))},
    }  # fmt: skip
    outliers = []
    for what, column in values.items():
        # Sides are compared by their ratio; a difference of less than a tenth is no outlier even if most are equal.
        scale, least = (np.log(column), 0.1) if what in ("width", "height") else (column, 0.01)
        distance = np.abs(scale - np.median(scale))
        deviations = distance / max(1.4826 * float(np.median(distance)), least / MAX_DEVIATIONS)
        outliers += [
            {
                "file": files[i],
                "what": what,
                "value": round(float(column[i]), 4),
                "median": round(float(np.median(column)), 4),
                "deviations": round(float(deviations[i]), 1),
            }
            for i in np.flatnonzero(deviations > MAX_DEVIATIONS)
        ]
    return sorted(outliers, key=lambda outlier: -outlier["deviations"])


def _preview(path: Path) -> str:
    image = to_rgb(read_image(path))
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    stream = BytesIO()
    image.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
