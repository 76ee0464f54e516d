"""What speaks for an answer: integrated gradients (Sundararajan et al., arXiv 1703.01365) by captum, over the image.

Large kernels spread the maps of all stages, so Grad-CAM shows where such a network looks no better than the middle of
the image would (docs/results.md). Gradients of pixels do not pass through maps of 6×6.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.data.transforms import EvalTransform
from seedling_hf.errors import require_finite, require_package
from seedling_hf.interpretation.faithfulness import blur, trace_curves
from seedling_hf.interpretation.feature_maps import evaluating
from seedling_hf.plots.style import SALIENCY_COLORS

STEPS = 8  # of the integral; 16 are no better
PIXELS_AT_ONCE = 2**17  # eight images of 128×128 take a quarter of the time of one after another
SMOOTHING = 0.02  # standard deviation, of the shorter side
BRIGHT = 0.99  # single peaks would leave the rest too dim to be seen
# Random spots have it in 4 of 60 images, these maps in 50 (docs/results.md).
LEAST_EVIDENCE, EVIDENCE_STEPS = 0.2, 8


def check_captum() -> None:
    require_package("captum", "saliency maps", "captum.attr")


def saliency_maps(model: PreTrainedModel, pixel_values: Tensor, targets: Tensor | None = None) -> np.ndarray:
    """What speaks for a class: integrated gradients of its logit, from the mean colour of an image to the image.

    They are summed over the channels, smoothed, and cut at 0.

    Args:
        model: A classifier; it keeps its mode.
        pixel_values: (N, C, H, W) images as the model's image processor gives them, on the model's device.
        targets: (N,) classes to explain; the predicted ones if None.

    Returns:
        (N, H, W) in float32 from 0, where nothing speaks for the class, to 1; see `brighten`.

    Raises:
        InputError: if captum is not installed, or gradients are not finite.
    """
    check_captum()
    from captum.attr import IntegratedGradients

    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        pixel_values = pixel_values.detach().clone()
        if targets is None:
            with torch.no_grad():
                targets = model(pixel_values=pixel_values).logits.argmax(-1)
        gradients = IntegratedGradients(lambda images: model(pixel_values=images).logits)
        maps = gradients.attribute(
            pixel_values,
            baselines=pixel_values.mean((2, 3), keepdim=True).expand_as(pixel_values),
            target=targets.to(pixel_values.device),
            n_steps=STEPS,
            internal_batch_size=max(len(pixel_values), min(STEPS, PIXELS_AT_ONCE // pixel_values[0, 0].numel())),
        )
    require_finite(maps, "gradients", model)
    maps = blur(maps.detach().float().sum(1, keepdim=True), SMOOTHING).squeeze(1).relu()
    return brighten(maps).cpu().numpy()


def brighten(maps: Tensor) -> Tensor:
    """Maps (N, H, W), not negative, scaled so that one pixel of a hundred is 1; 0 stays 0."""
    largest = maps.flatten(1).quantile(BRIGHT, dim=1)
    largest = torch.where(largest > 0, largest, maps.amax((1, 2)))[:, None, None]
    return (maps / torch.where(largest > 0, largest, 1.0)).clamp(max=1)


def decisive_maps(model: PreTrainedModel, pixel_values: Tensor, targets: Tensor) -> list[np.ndarray | None]:
    """The maps (H, W) of `saliency_maps`, without those that would mislead.

    None where the probability of the class depends on what the map shows no more than on pixels chosen at random: no
    region decides.
    """
    maps = saliency_maps(model, pixel_values, targets)
    curves = trace_curves(model, pixel_values, targets, torch.from_numpy(maps), steps=EVIDENCE_STEPS)
    is_decisive = curves.evidence() >= LEAST_EVIDENCE
    return [saliency if right else None for saliency, right in zip(maps, is_decisive.tolist(), strict=True)]


class Explanation(NamedTuple):
    """The part of an image that the model sees, its map (h, w), and that part with the map over it.

    Where no region decides, the map is 0 and nothing lies over the image.
    """

    seen: Image.Image
    saliency: np.ndarray
    overlay: Image.Image
    decisive: bool


def explain_images(
    model: PreTrainedModel, image_processor: BaseImageProcessor, images: Sequence[Image.Image], targets: Tensor
) -> list[Explanation]:
    """What speaks in each of `images`, in RGB, for its class of `targets` (N,); see `decisive_maps`."""
    transform = EvalTransform(image_processor)
    pixel_values = torch.stack([transform(image) for image in images]).to(model.device)
    explanations = []
    for image, saliency in zip(images, decisive_maps(model, pixel_values, targets), strict=True):
        seen = crop_to_view(image, image_processor)
        shown = np.zeros(pixel_values.shape[-2:], np.float32) if saliency is None else saliency
        explanations.append(Explanation(seen, shown, overlay(seen, shown), saliency is not None))
    return explanations


def overlay_classes(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    images: Sequence[Image.Image],
    class_names: Sequence[str],
) -> list[Image.Image | None]:
    """An overlay for each image in RGB of what speaks for the class named beside it; None where no region does."""
    number_of = {name: number for number, name in model.config.id2label.items()}
    targets = torch.tensor([number_of[name] for name in class_names])
    explanations = explain_images(model, image_processor, images, targets)
    return [explained.overlay if explained.decisive else None for explained in explanations]


def overlay(image: Image.Image, saliency: np.ndarray, strength: float = 0.6) -> Image.Image:
    """An image in RGB with a saliency map (h, w) over it, from 0, transparent, to 1, as opaque as `strength`."""
    from matplotlib import colormaps

    image = image.convert("RGB")
    heat = Image.fromarray(np.ascontiguousarray(saliency, dtype=np.float32))
    heat = np.asarray(heat.resize(image.size, Image.Resampling.BILINEAR)).clip(0, 1)
    colors = 255 * colormaps[SALIENCY_COLORS](heat)[..., :3]
    opacity = strength * heat[..., None]
    return Image.fromarray(((1 - opacity) * np.asarray(image) + opacity * colors).round().astype(np.uint8))


def crop_to_view(image: Image.Image, image_processor: BaseImageProcessor) -> Image.Image:
    """The part of an image, in RGB, that the model sees, at the image's own resolution."""
    return image.crop(find_view(image.size, image_processor))


def find_view(size: tuple[int, int], image_processor: BaseImageProcessor) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what the model sees of an image of `size` (width, height), in its pixels.

    Works for any image processor that resizes, crops and normalises: images whose colours encode positions go through
    it.
    """
    width, height = size
    ramps = np.linspace(0, 255, width)[None, :, None], np.linspace(0, 255, height)[:, None, None]
    black, white, across, down = (
        _process(np.broadcast_to(values, (height, width, 3)), image_processor) for values in (0.0, 255.0, *ramps)
    )
    across, down = ((ramp - black) / (white - black) for ramp in (across, down))
    left, right = _ends(across.mean(0) * (width - 1) + 0.5)
    top, bottom = _ends(down.mean(1) * (height - 1) + 0.5)
    return max(0, left), max(0, top), min(width, right), min(height, bottom)


def _process(values: np.ndarray, image_processor: BaseImageProcessor) -> np.ndarray:
    """The red channel (h, w) of what the image processor makes of 8-bit colours (H, W, 3)."""
    image = Image.fromarray(values.round().astype(np.uint8))
    return image_processor(image, return_tensors="pt")["pixel_values"][0, 0].double().numpy()


def _ends(centres: np.ndarray) -> tuple[int, int]:
    """Where a row of pixels with these centres begins and ends, by a fitted line, since colours have only 8 bits."""
    slope, start = np.polyfit(np.arange(len(centres)), centres, 1)
    return round(start - slope / 2), round(start + slope * (len(centres) - 0.5))
