"""Which saliency maps are right: how much of each lies on the plant, and what becomes of the answer without it.

python scripts/study/saliency.py --test_dir seedlings --model_name_or_path outputs/nano_cpu

Every method explains the predicted class. `plant` is the share of a map inside the green plant, `peak` how often its
largest value lies there, `deletion` and `insertion` are the areas of RISE (`seedling_hf.interpretation.faithfulness`)
with what is removed blurred, and `shown` how many maps have the evidence without which the product leaves a map out.
"""

import csv
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedling_hf.arguments import option, parse_arguments
from seedling_hf.commands import run
from seedling_hf.files import write_text
from seedling_hf.inference.classifier_arguments import ClassifierArguments
from seedling_hf.progress import follow

SHIPPED = "integrated gradients, 8 steps, smoothed"
FIELDS = ["method", "plant", "peak", "deletion", "insertion", "seconds", "images", "mask", "evidence"]
SHEET_ROWS = 6
ON_THE_SHEET = [
    "Grad-CAM, stage 3",
    "Grad-CAM, stage 4",
    "LayerCAM, stage 2",
    "SmoothGrad",
    "occlusion",
    "RISE",
    SHIPPED,
]


@dataclass(kw_only=True)
class SaliencyStudyArguments(ClassifierArguments):
    """Compares saliency methods on images that the model has not seen."""

    test_dir: str | None = option(None, "folder of class folders; without it only the table is printed", images=True)
    per_class: int = option(5, "images of each class, evenly chosen", least=1)
    results_file: str = option("scripts/study/saliency.csv", "CSV of the results", path=True)
    sheet: str | None = option(None, "JPEG of six images with their maps", path=True)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model and images → maps of every method → table."""
    arguments = parse_arguments(SaliencyStudyArguments, argv, prog="saliency.py")
    results_file = Path(arguments.results_file)
    if arguments.test_dir is not None:
        results, shown = measure(arguments)
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{v:.4f}" if isinstance(v, float) else v for key, v in row.items()} for row in results)
        write_text(results_file, text.getvalue())
        if arguments.sheet:
            draw_sheet(shown, Path(arguments.sheet))
    with results_file.open(encoding="utf-8", newline="") as file:
        print(format_table(list(csv.DictReader(file))))


def measure(arguments: SaliencyStudyArguments) -> tuple[list[dict[str, Any]], list[tuple[Any, str, dict[str, Any]]]]:
    """A row for each method, and six images with their maps."""
    import numpy as np
    import torch
    from saliency_methods import list_methods

    from seedling_hf.data.images import choose_evenly, list_images, read_image, to_rgb
    from seedling_hf.data.transforms import EvalTransform
    from seedling_hf.interpretation.faithfulness import plant_share, trace_curves
    from seedling_hf.interpretation.saliency import EVIDENCE_STEPS, brighten, crop_to_view

    model, image_processor = arguments.load()
    methods, transform = list_methods(model), EvalTransform(image_processor)
    folders = sorted(path for path in Path(arguments.test_dir).iterdir() if path.is_dir())
    files = [file for path in folders for file in choose_evenly(list(list_images([str(path)])), arguments.per_class)]
    figures: dict[str, list[list[float]]] = {name: [] for name in methods}
    evidence: dict[str, list[str]] = {name: [] for name in methods}
    masks, shown = [], []
    for number, file in enumerate(follow(files, "explaining", len(files))):
        image = to_rgb(read_image(file))
        pixel_values, seen = transform(image)[None], crop_to_view(image, image_processor)
        with torch.no_grad():
            target = model(pixel_values=pixel_values).logits.argmax(-1)
        mask, maps = find_plant(seen, tuple(pixel_values.shape[-2:])), {}
        masks.append(mask.float().mean().item())
        for name, method in methods.items():
            start = time.process_time()
            maps[name] = method(pixel_values, target)
            seconds = time.process_time() - start
            curves = trace_curves(model, pixel_values, target, maps[name], steps=EVIDENCE_STEPS)
            deletion, insertion = (area.item() for area in curves.areas())
            peak = mask.flatten()[maps[name].flatten().argmax()].item()
            share = plant_share(maps[name], mask[None]).item()
            figures[name].append([share, peak, deletion, insertion, seconds])
            evidence[name].append(f"{curves.evidence().item():.3f}")
        if number % -(-len(files) // SHEET_ROWS) == 0:
            shown.append((seen, file.parent.name, {name: brighten(maps[name])[0].numpy() for name in ON_THE_SHEET}))
    means = {name: np.nanmean(rows, axis=0).tolist() for name, rows in figures.items()}
    mask = float(np.mean(masks))
    rows = [[name, *means[name], len(files), mask, " ".join(evidence[name])] for name in methods]
    return [dict(zip(FIELDS, row, strict=True)) for row in rows], shown


def find_plant(image: Any, size: tuple[int, int]) -> Any:
    """Where the plant is in what the model sees: (height, width) of bool."""
    from torchvision.transforms.v2.functional import pil_to_tensor, resize

    from seedling_hf.data.greenness import soft_plant_mask

    return resize(soft_plant_mask(pil_to_tensor(image) / 255)[None], list(size), antialias=True)[0] > 0.5


def draw_sheet(shown: Sequence[tuple[Any, str, dict[str, Any]]], path: Path) -> None:
    """Rows of an image and its maps."""
    from seedling_hf.interpretation.saliency import overlay
    from seedling_hf.plots.images import plot_contact_sheet

    rows = []
    for seen, _, maps in shown:
        image = seen.resize((160, 160))
        rows.append([image, *(overlay(image, maps[name]) for name in ON_THE_SHEET)])
    headings = ["image", *(name if name != SHIPPED else "shipped: integrated gradients" for name in ON_THE_SHEET)]
    plot_contact_sheet(
        rows, path, title="What speaks for the answer", columns=headings, rows=[name for _, name, _ in shown]
    )


def format_table(results: Sequence[dict[str, str]]) -> str:
    """The results in Markdown, the shipped method in bold."""
    from seedling_hf.interpretation.saliency import LEAST_EVIDENCE

    mask, images = float(results[0]["mask"]), results[0]["images"]
    lines = [
        f"| {images} images, plants fill {mask:.1%} | on the plant | peak on the plant | deletion ↓ | insertion ↑ "
        "| shown | ms |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for row in results:
        name = f"**{row['method']}**" if row["method"] == SHIPPED else row["method"]
        shares = f"{float(row['plant']):.1%} | {float(row['peak']):.0%}"
        areas = f"{float(row['deletion']):.3f} | {float(row['insertion']):.3f}"
        evidence = [float(value) >= LEAST_EVIDENCE for value in row["evidence"].split()]
        seconds = f"{sum(evidence) / len(evidence):.0%} | {1000 * float(row['seconds']):,.0f}"
        lines.append(f"| {name} | {shares} | {areas} | {seconds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main))
