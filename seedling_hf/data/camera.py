"""What a camera does to an image, at random: compression, lack of focus, movement and noise."""

import math
from io import BytesIO

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from seedling_hf.data.light import RandomStep, uniform

# As shares of the image's side: the standard deviation of Gaussian blur, the radius of defocus, half a movement.
MOST_SIGMA, MOST_RADIUS, MOST_MOVEMENT = 0.015, 0.025, 0.035
MOST_SHOT_NOISE, MOST_READ_NOISE = 0.01, 0.03  # variance at full light, standard deviation without light


class RandomJPEG(nn.Module):
    """Compresses an image as JPEG with Pillow's encoder, at a random quality of 50 to 100.

    torchvision's `v2.JPEG` gives the same bytes, but its encoder is deprecated since torchvision 0.29.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Compresses the bytes of an `image` (3, H, W)."""
        quality, file = int(torch.randint(50, 101, ())), BytesIO()
        v2.functional.to_pil_image(image).save(file, "JPEG", quality=quality)
        return v2.functional.pil_to_tensor(Image.open(file, formats=["JPEG"]))


class RandomBlur(RandomStep):
    """With this probability blurs an image: by a Gaussian, as out of focus (a disk), or as moved (a line)."""

    def change(self, image: Tensor) -> Tensor:
        """Blurs a float `image` (3, H, W) of values from 0 to 1."""
        side, kind, amount = min(image.shape[-2:]), int(torch.randint(3, ())), uniform(0.2, 1)
        if kind == 0:
            kernel = gaussian_kernel(amount * MOST_SIGMA * side)
            return _filter(_filter(image, kernel[None]), kernel[:, None])
        if kind == 1:
            return _filter(image, disk_kernel(amount * MOST_RADIUS * side))
        return _filter(image, line_kernel(amount * MOST_MOVEMENT * side, uniform(0, math.pi)))


class RandomNoise(RandomStep):
    """With this probability adds a sensor's noise: more in bright parts (shot noise), and everywhere (read noise).

    Half of the time it is coarse, as after enlargement or a camera's own smoothing.
    """

    def change(self, image: Tensor) -> Tensor:
        """Adds noise to a float `image` (3, H, W) of values from 0 to 1."""
        amount, is_coarse = uniform(0, 1) ** 2, bool(torch.rand(()) < 0.5)
        height, width = image.shape[-2:]
        if is_coarse:  # each pixel is the mean of its neighbours in a noise of grains of two by two
            noise = torch.randn(3, height // 2 + 1, width // 2 + 1).repeat_interleave(2, 1).repeat_interleave(2, 2)
            noise = (noise[:, 1 : height + 1] + noise[:, :height]) * 0.5
            noise = (noise[..., 1 : width + 1] + noise[..., :width]) * 0.5
        else:
            noise = torch.randn(3, height, width)
        deviation = (amount * MOST_SHOT_NOISE * image + (amount * MOST_READ_NOISE) ** 2).sqrt_()
        return noise.mul_(deviation).add_(image).clamp_(0, 1)


def gaussian_kernel(sigma: float) -> Tensor:
    """(2r + 1,) weights of sum 1, r = 2.5 sigma."""
    radius = max(1, math.ceil(2.5 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


def disk_kernel(radius: float) -> Tensor:
    """(2r + 1, 2r + 1) weights of sum 1, those of pixels at the edge in part."""
    steps = torch.arange(-math.ceil(radius), math.ceil(radius) + 1)
    weights = (radius + 0.5 - torch.hypot(steps[:, None].float(), steps.float())).clamp(0, 1)
    return weights / weights.sum()


def line_kernel(half: float, angle: float) -> Tensor:
    """(2r + 1, 2r + 1) weights of sum 1 on a line of `half` pixels to both sides of the centre."""
    steps = torch.arange(-math.ceil(half), math.ceil(half) + 1).float()
    along = steps * math.cos(angle) + steps[:, None] * math.sin(angle)
    across = steps * math.sin(angle) - steps[:, None] * math.cos(angle)
    weights = (half + 0.5 - along.abs()).clamp(0, 1) * (1 - across.abs()).clamp(min=0)
    return weights / weights.sum()


def _filter(image: Tensor, kernel: Tensor) -> Tensor:
    """Each channel of (C, H, W) filtered by (h, w), the image mirrored at its edge."""
    above, beside = (side // 2 for side in kernel.shape)
    padded = F.pad(image[:, None], (beside, beside, above, above), mode="reflect")
    return F.conv2d(padded, kernel[None, None])[:, 0]
