"""Another light and another exposure: what a photograph would be under them, at random.

Images are float tensors (3, H, W) of values from 0 to 1 in sRGB.
"""

import math

import torch
from torch import Tensor, nn

# Of red, green and blue: nanometres of the sensors' peaks, and shares of luma.
WAVELENGTHS, LUMA = (600.0, 540.0, 450.0), (0.299, 0.587, 0.114)
SECOND_RADIATION_CONSTANT = 1.4388e7  # nanometre kelvins
SRGB_GAMMA = 2.2
# At a strength of 1: a million times the change of 1/temperature, and of the logarithm of a channel's gain.
MOST_MIREDS, MOST_LOG_GAIN = 200.0, 0.2
# Of originals whose copies are stretched to 0 and 1: the white point of most, and more haze than most have.
LOWEST_WHITE, HIGHEST_BLACK = 0.4, 0.15


def uniform(low: float, high: float) -> float:
    """A random number between two, from PyTorch's generator."""
    return low + (high - low) * torch.rand(()).item()


def temperature_gains(mireds: float) -> Tensor:
    """What light that is `mireds` warmer (below 0: cooler) does to red, green and blue in sRGB: (3,), green is 1.

    A mired is a change of a million divided by the temperature in kelvins. By Wien's law the logarithm of a black
    body's light is linear in it, from any temperature.
    """
    red_to_green = torch.tensor([1 / length - 1 / WAVELENGTHS[1] for length in WAVELENGTHS])
    return torch.exp(-SECOND_RADIATION_CONSTANT * mireds * 1e-6 / SRGB_GAMMA * red_to_green)


class RandomStep(nn.Module):
    """With this probability has `change` change an image; otherwise no other random number is drawn."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, image: Tensor) -> Tensor:
        """An `image` (C, H, W), changed or as it is."""
        return image if torch.rand(()) >= self.probability else self.change(image)

    def change(self, image: Tensor) -> Tensor:
        raise NotImplementedError


class RandomWhiteBalance(nn.Module):
    """Light of another colour temperature, and each channel a little brighter or darker by itself; luma stays.

    `strength` 1 is up to 200 mireds warmer or cooler, as from daylight to a lamp, and up to 22% in a channel.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, image: Tensor) -> Tensor:
        """Colours an `image` (3, H, W)."""
        gains = temperature_gains(self.strength * MOST_MIREDS * uniform(-1, 1))
        gains *= torch.exp(self.strength * MOST_LOG_GAIN * (2 * torch.rand(3) - 1))
        gains /= gains @ gains.new_tensor(LUMA)
        return (image * gains[:, None, None]).clamp_(0, 1)


class RandomGamma(nn.Module):
    """Raises values to a power between 2^-strength and 2^strength: darker or brighter in the middle."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, image: Tensor) -> Tensor:
        """Changes an `image` (3, H, W)."""
        return image.pow(2 ** (self.strength * uniform(-1, 1)))


def stretch(image: Tensor, black: float = 0.0, white: float = 1.0) -> Tensor:
    """Moves the smallest value of all channels together to `black` and the largest to `white`."""
    low, high = image.aminmax()
    return ((image - low) * ((white - black) / (high - low).clamp(min=1 / 255)) + black).clamp_(0, 1)


class RandomLevels(RandomStep):
    """With this probability moves the black and the white point of an image.

    Half of these images are stretched from 0 to 1, as are the copies of the tutorial; the others are darker and of
    lower contrast, as cameras expose for the whole of a scene.
    """

    def change(self, image: Tensor) -> Tensor:
        """Changes an `image` (3, H, W)."""
        if torch.rand(()) < 0.5:
            return stretch(image)
        # Most black points are at 0: the square of a number is more often small.
        return stretch(image, HIGHEST_BLACK * uniform(0, 1) ** 2, uniform(LOWEST_WHITE, 1))


class RandomShadow(RandomStep):
    """With this probability darkens an image on one side of a line, in a strip or in a triangle, with soft edges."""

    def change(self, image: Tensor) -> Tensor:
        """Darkens a part of an `image` (3, H, W)."""
        inside = _random_region(*image.shape[-2:])
        # Shadows are lit by the sky, which is bluer than the sun.
        darkness, blue = uniform(0.3, 0.75), uniform(0, 0.1)
        gains = image.new_tensor([darkness * (1 - blue), darkness, darkness * (1 + blue)])[:, None, None]
        return image * torch.lerp(torch.ones(()), gains, inside)


def _random_region(height: int, width: int) -> Tensor:
    """How far inside the intersection of one to three half-planes each pixel is: (height, width) from 0 to 1."""
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    sides, angle = int(torch.randint(1, 4, ())), uniform(0, 2 * math.pi)
    centre_x, centre_y, softness = uniform(-0.6, 0.6), uniform(-0.6, 0.6), 0.02 * 25 ** uniform(0, 1)
    inside = torch.ones(height, width)
    for side in range(sides):
        turned = angle + 2 * math.pi * (side + uniform(-0.2, 0.2)) / sides
        away = (x - centre_x) * math.cos(turned) + (y - centre_y) * math.sin(turned)
        inside = inside * torch.sigmoid((uniform(0.1, 0.6) - away) / softness)
    return inside
