"""Image processor of RepLKNet: resize, center crop, normalize."""

from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    PILImageResampling,
)

from .configuration_replknet import VARIANTS


class RepLKNetImageProcessor(TorchvisionBackend):
    """Resizes the shortest edge to `size` (bicubic), crops the center of `crop_size`, and normalizes.

    Defaults are the authors' for 224 pixels: shortest edge 256, crop 224, mean and std of ImageNet.
    """

    _auto_class = "AutoImageProcessor"

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}  # noqa: RUF012, the name of the library
    crop_size = {"height": 224, "width": 224}  # noqa: RUF012, the name of the library
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    @classmethod
    def from_variant(cls, name: str, image_size: int = 224, **kwargs) -> "RepLKNetImageProcessor":
        """The processor of a named RepLKNet for images of `image_size` pixels, whose values `kwargs` override.

        Below 384 pixels the crop keeps 7/8 of the shortest edge, as in 256 to 224; from 384 on the whole image is
        resized to the square, as the authors do. XL was trained with Inception's mean and std (0.5).
        """
        if name not in VARIANTS:
            raise ValueError(f"expected a variant of {', '.join(VARIANTS)}, found {name!r}; give one of these names")
        if image_size < 1:
            raise ValueError(f"expected image_size to be positive, found {image_size}")
        square = {"height": image_size, "width": image_size}
        values = {"size": square, "crop_size": square, "do_center_crop": False}
        if image_size < 384:
            values.update(size={"shortest_edge": round(image_size * 256 / 224)}, do_center_crop=True)
        if name == "XL":
            values.update(image_mean=IMAGENET_STANDARD_MEAN, image_std=IMAGENET_STANDARD_STD)
        return cls(**{**values, **kwargs})


__all__ = ["RepLKNetImageProcessor"]
