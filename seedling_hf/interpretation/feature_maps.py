"""The last feature map of an image model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from seedling_hf.errors import InputError, require_finite


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def feature_map(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """The last map of a network before pooling, not yet normalised where the network does that last.

    Args:
        model: An image model of transformers whose `last_hidden_state` is a map (RepLKNet, ResNet, ConvNeXt,
            EfficientNet, MobileNet and the like), with or without a head, or such a network of timm in transformers'
            wrapper.
        pixel_values: (N, C, H, W) images.

    Returns:
        (N, channels, h, w).

    Raises:
        InputError: for a model without such a map: tokens (ViT, Swin, DINOv2) or channels last (timm's Swin); or a map
            that is not finite.
    """
    body = getattr(model, "base_model", model)
    if hasattr(body, "forward_features"):  # timm's networks
        features = body.forward_features(pixel_values)
    else:
        features = getattr(body(pixel_values), "last_hidden_state", None)
    shape = tuple(features.shape) if isinstance(features, Tensor) else None
    if shape is None or not _is_map(shape, tuple(pixel_values.shape)):
        found = "no last_hidden_state" if shape is None else f"one of shape {shape}"
        raise InputError(
            f"expected a model whose last hidden state is a map (N, channels, height, width), found "
            f"{type(body).__name__} with {found}; use a convolutional network, such as RepLKNet, ResNet or ConvNeXt"
        )
    # A gradient may be finite all the same: that of what became infinite is 0.
    require_finite(features, "features", model)
    return features


def _is_map(shape: tuple[int, ...], images: tuple[int, ...]) -> bool:
    """Whether `shape` is (N, channels, h, w) of images (N, C, H, W): with channels last the aspect ratio differs."""
    if len(shape) != 4 or shape[0] != images[0]:
        return False
    (height, width), (map_height, map_width) = images[-2:], shape[-2:]
    return abs(map_height * width - map_width * height) <= max(height, width)
