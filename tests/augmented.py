"""What the tests of augmentation share: the same random numbers for two transforms, and how rough an image is."""

import torch


def same_random_numbers(seed: int, transform, image) -> torch.Tensor:
    torch.manual_seed(seed)
    return transform(image)


def roughness(image: torch.Tensor) -> torch.Tensor:
    return image.diff(dim=-1).abs().mean() + image.diff(dim=-2).abs().mean()
