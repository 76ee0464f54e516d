"""How an image becomes the input of an exported file: described for other programs, and done for the checks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BaseImageProcessor

from seedling_hf import __version__
from seedling_hf.data.images import read_image, to_rgb
from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import list_classes
from seedling_hf.inference.judgement import without_familiarity

BATCH_SIZE = 32
UNFAMILIARITY = "the second output, (N,): above 1, the image is unlike those of the training, and there is no answer"


def describe_preprocessing(image_processor: BaseImageProcessor) -> dict[str, Any]:
    """How an image becomes an input, in values that a program without transformers can follow.

    Returns:
        `shortest_edge`: the length that the shortest edge is resized to, or None if the whole image is resized to
        `image_size`; `resample`: Pillow's name of the filter; `image_size`: (height, width) of the center crop; `mean`
        and `std` of the three channels, for pixels from 0 to 1.

    Raises:
        InputError: for a processor that does anything else.
    """
    values = image_processor.to_dict()
    size, crop_size = values.get("size") or {}, values.get("crop_size") or {}
    crops = bool(values.get("do_center_crop"))
    edge, target = size.get("shortest_edge"), crop_size if crops else size
    steps = all(values.get(step) for step in ("do_resize", "do_rescale", "do_normalize"))
    known = bool(edge) == crops and {"height", "width"} <= target.keys() and "crop_pct" not in values
    if not steps or not known or abs(values["rescale_factor"] * 255 - 1) > 1e-6:
        raise InputError(
            "expected an image processor that resizes, crops the center, scales by 1/255 and normalizes, found "
            f"{type(image_processor).__name__}, which does something else; export a RepLKNet that this package trained"
        )
    return {
        "shortest_edge": edge,
        "resample": Image.Resampling(values["resample"]).name,
        "image_size": [target["height"], target["width"]],
        "mean": [float(value) for value in values["image_mean"]],
        "std": [float(value) for value in values["image_std"]],
    }


def describe_export(
    model: nn.Module, image_processor: BaseImageProcessor, *, include_preprocessing: bool
) -> dict[str, Any]:
    """The metadata of a file: `describe_preprocessing`, `classes` in the order of the logits, the input's form, and
    what says how far to trust an answer; null stands for what the model does not know.
    """
    knows_familiar = getattr(model, "knows_familiar", False)
    return {
        "classes": list_classes(model.config),
        **describe_preprocessing(image_processor),
        "include_preprocessing": include_preprocessing,
        "input": "uint8 (N, height, width, 3), RGB" if include_preprocessing else "float32 (N, 3, height, width), RGB",
        "temperature": getattr(model.config, "calibration_temperature", None),
        "confidence_threshold": getattr(model.config, "confidence_threshold", None),
        "unfamiliarity": UNFAMILIARITY if knows_familiar else None,
        "architecture": type(without_familiarity(model)).__name__,
        "seedling_hf": __version__,
    }


def input_batches(
    files: Sequence[Path], image_processor: BaseImageProcessor, *, include_preprocessing: bool
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Yields images as `pixel_values` (N, 3, H, W) in float32, and the same batch as the input of an exported file.

    The input is uint8 (N, H, W, 3) if the file includes the preprocessing, otherwise `pixel_values` as an array.
    """
    for start in range(0, len(files), BATCH_SIZE):
        images = [to_rgb(read_image(Path(file))) for file in files[start : start + BATCH_SIZE]]
        pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
        if not include_preprocessing:
            yield pixel_values, pixel_values.numpy()
            continue
        pixels = image_processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        yield pixel_values, pixels.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()
