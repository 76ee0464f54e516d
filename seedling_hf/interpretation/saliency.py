"""Where a classifier looks: Grad-CAM (Selvaraju et al., arXiv 1610.02391) by captum, laid over the image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.data.transforms import EvalTransform
from seedling_hf.errors import require_finite, require_package
from seedling_hf.interpretation.feature_maps import evaluating, map_layer
from seedling_hf.plots.style import SALIENCY_COLORS


def check_captum() -> None:
    require_package("captum", "saliency maps", "captum.attr")


def saliency_maps(
    model: PreTrainedModel, pixel_values: Tensor, targets: Tensor | None = None, *, stage: int | None = None
) -> np.ndarray:
    """Grad-CAM: the feature maps, weighted by the mean gradient of a class's logit, summed; what speaks for the class.

    Args:
        model: A classifier with a feature map (see `feature_map`); it keeps its mode.
        pixel_values: (N, C, H, W) images as the model's image processor gives them, on the model's device.
        targets: (N,) classes to explain; the predicted ones if None.
        stage: Whose maps: -1 the last, as in the paper; -2 the one before, usually twice as fine but less reliable;
            None for the last of at least 4×4 pixels, since a small image's last map may have 2×2.

    Returns:
        (N, H, W) in float32, each scaled to a largest value of 1; 0 where nothing speaks for the class.

    Raises:
        InputError: if captum is not installed, the model has no feature map of more than one pixel, or its features or
            gradients are not finite.
    """
    check_captum()
    from captum.attr import LayerGradCam

    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        pixel_values = pixel_values.detach().clone().requires_grad_()
        if targets is None:
            with torch.no_grad():
                targets = model(pixel_values=pixel_values).logits.argmax(-1)
        layer = map_layer(model, pixel_values, stage)
        gradcam = LayerGradCam(lambda images: model(pixel_values=images).logits, layer)
        maps = gradcam.attribute(pixel_values, target=targets.to(pixel_values.device), relu_attributions=True)
    require_finite(maps, "gradients", model)
    maps = F.interpolate(maps.detach().float(), pixel_values.shape[-2:], mode="bilinear").squeeze(1)
    largest = maps.amax((1, 2), keepdim=True)
    return torch.where(largest > 0, maps / largest.clamp(min=torch.finfo(maps.dtype).tiny), 0.0).cpu().numpy()


class Explanation(NamedTuple):
    """The part of an image that the model sees, its map (h, w), and that part with the map over it."""

    seen: Image.Image
    saliency: np.ndarray
    overlay: Image.Image


def explain_images(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    images: Sequence[Image.Image],
    targets: Tensor,
    *,
    stage: int | None = None,
) -> list[Explanation]:
    """What speaks in each of `images`, in RGB, for its class of `targets` (N,); see `saliency_maps`."""
    transform = EvalTransform(image_processor)
    pixel_values = torch.stack([transform(image) for image in images]).to(model.device)
    maps = saliency_maps(model, pixel_values, targets, stage=stage)
    seen = [crop_to_view(image, image_processor) for image in images]
    return [Explanation(image, saliency, overlay(image, saliency)) for image, saliency in zip(seen, maps, strict=True)]


def overlay_classes(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    images: Sequence[Image.Image],
    class_names: Sequence[str],
) -> list[Image.Image]:
    """An overlay for each image in RGB that shows what speaks for the class named beside it."""
    number_of = {name: number for number, name in model.config.id2label.items()}
    targets = torch.tensor([number_of[name] for name in class_names])
    return [explained.overlay for explained in explain_images(model, image_processor, images, targets)]


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
