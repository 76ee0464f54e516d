"""The effective receptive field: from how far around its centre the last feature map of a network takes its values.

The method is that of RepLKNet (arXiv 2203.06717, section 5 and appendix; the authors' `erf/visualize_erf.py` and
`erf/analyze_erf.py`): the gradient of the centre of the last feature map with respect to the images.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.data.images import read_image, to_rgb
from seedling_hf.errors import InputError, require_finite
from seedling_hf.interpretation.feature_maps import evaluating, feature_map
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification, RepLKNetImageProcessor

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)


def contribution_scores(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """How much each pixel contributes to the centre of the last feature map, summed over images and channels.

    The centre (row h // 2, column w // 2) goes through a ReLU and is summed over the channels; of its gradient with
    respect to the images the positive part is summed. The map is taken before a last normalisation, as the authors
    do.

    Args:
        model: In evaluation mode; see `feature_map`.
        pixel_values: (N, C, H, W) normalised images.

    Returns:
        (H, W) in float64.

    Raises:
        InputError: if the model gives no feature map.
    """
    with torch.inference_mode(False), torch.enable_grad():
        pixel_values = pixel_values.detach().clone().requires_grad_()
        features = feature_map(model, pixel_values)
        height, width = features.shape[-2:]
        centre = features[:, :, height // 2, width // 2].relu().sum()
        (gradient,) = torch.autograd.grad(centre, pixel_values)
    return gradient.relu().sum((0, 1), dtype=torch.float64)


def measure_erf(model: nn.Module, batches: Iterable[Tensor]) -> np.ndarray:
    """The mean of `contribution_scores` over images, in evaluation mode.

    Args:
        model: See `feature_map`; it keeps its mode.
        batches: Normalised images (N, C, H, W) of one size, on its device.

    Returns:
        (H, W) in float64, not negative.

    Raises:
        InputError: if the model gives no feature map, its gradient is infinite or NaN, or none reaches the images.
    """
    total, count = None, 0
    with evaluating(model):
        for pixel_values in batches:
            scores = contribution_scores(model, pixel_values)
            total = scores if total is None else total + scores
            count += len(pixel_values)
    if total is None:
        raise InputError("expected at least one image, found none")
    require_finite(total, "gradients", model)
    scores = (total / count).cpu().numpy()
    if not scores.any():
        raise InputError("expected a gradient that reaches the images, found 0 everywhere; check the model's weights")
    return scores


def scale_scores(scores: np.ndarray) -> np.ndarray:
    """log10(scores + 1), scaled to a largest value of 1: scores differ by orders of magnitude."""
    logarithms = np.log10(scores + 1)
    return logarithms / logarithms.max()


def smallest_square(scores: np.ndarray, threshold: float) -> tuple[int, float]:
    """The smallest centred square that holds more than a fraction of the scores.

    The authors' rectangle without its limits: theirs is at least 3 pixels wide and never reaches the border.

    Args:
        scores: (H, W), not negative.
        threshold: The fraction, from 0 to below 1.

    Returns:
        Its side in pixels, odd, and the fraction of the area that it covers; the whole image if none is smaller.
    """
    height, width = scores.shape
    total = scores.sum()
    for radius in range(max(height, width) // 2 + 1):
        top, left = max(0, height // 2 - radius), max(0, width // 2 - radius)
        inside = scores[top : height // 2 + radius + 1, left : width // 2 + radius + 1]
        if inside.sum() > threshold * total:
            break
    side = 2 * radius + 1
    return min(side, max(height, width)), min(side, height) * min(side, width) / (height * width)


def area_ratios(scores: np.ndarray) -> list[dict[str, Any]]:
    """The area ratio for each of `THRESHOLDS`: the larger, the more evenly the network looks at its surroundings.

    Returns:
        Rows of `threshold`, `side` (pixels), `area_ratio`, as in the paper of the scores after `scale_scores`, and
        `area_ratio_linear`, of the scores themselves. The logarithm makes ratios depend on the size of the features, so
        compare models of different families by the latter.
    """
    rows = []
    for threshold in THRESHOLDS:
        side, ratio = smallest_square(scale_scores(scores), threshold)
        linear = smallest_square(scores, threshold)[1]
        rows.append({"threshold": threshold, "side": side, "area_ratio": ratio, "area_ratio_linear": linear})
    return rows


def load_squares(files: Iterable[Path], image_processor: BaseImageProcessor, image_size: int) -> Iterator[Tensor]:
    """Yields images (1, 3, image_size, image_size), squeezed bicubically as the authors do, normalised for the model.

    Raises:
        InputError: for a file that cannot be decoded.
    """
    timm = getattr(image_processor, "data_config", None)  # in transformers' wrapper
    mean, std = (timm["mean"], timm["std"]) if timm else (image_processor.image_mean, image_processor.image_std)
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize((image_size, image_size), InterpolationMode.BICUBIC),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    for file in files:
        yield transform(to_rgb(read_image(file)))[None]


def build_untrained(name: str, seed: int = 0) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A RepLKNet with random weights.

    Args:
        name: A variant (`nano`), or one with other kernels: `nano:3` (3×3 everywhere) or `nano:7,7,7,5`.

    Raises:
        InputError: for an unknown variant, or kernels that it cannot have.
    """
    variant, _, sizes = name.partition(":")
    try:
        kernels = {"kernel_sizes": [int(size) for size in sizes.split(",")]} if sizes else {}
        config = RepLKNetConfig.from_variant(variant, **kernels)
    except ValueError as error:
        raise InputError(f"expected --untrained VARIANT or VARIANT:KERNEL, found {name!r}: {error}") from error
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RepLKNetForImageClassification(config)
    return model.eval(), RepLKNetImageProcessor.from_variant(variant)


@torch.no_grad()
def settle_batch_norms(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Gives the BatchNorms of an untrained model the statistics of images, as the first steps of training would.

    Without them the values of a deep random network vanish layer by layer, and `scale_scores` takes the logarithm of
    nearly 1 everywhere.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):  # stochastic depth would make the statistics random
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        try:
            for pixel_values in batches:
                model(pixel_values)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
