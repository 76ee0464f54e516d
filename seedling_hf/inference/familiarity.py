"""How far an image lies from those that a classifier was trained on, and whether that is too far for an answer.

The measure is the squared Mahalanobis distance to the nearest class mean (Lee et al., arXiv 1807.03888), summed over
the stages of the network: early ones tell light, soil and texture, late ones shapes. Within a stage one covariance is
shared by the classes, shrunk as by Ledoit and Wolf (2004), so that it can be inverted with few images too. Each stage
counts the same, whatever its number of features: with one covariance of all, the many features of the last stage
drown the first.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from seedling_hf.errors import InputError
from seedling_hf.files import replacing
from seedling_hf.inference.model_files import FAMILIARITY, check_finite, find_misfits, read_forms, read_tensors

if TYPE_CHECKING:
    from seedling_hf.inference.classifier import Pretrained

TENSORS = ("center", "whitening", "class_means", "threshold")
FAMILIAR_SHARE = 0.97  # of images like those of the training, which were not in it
LEAST_SCALE = 1e-6  # of a feature that never changes


class Familiarity(nn.Module):
    """Distances of images to the training images of a classifier.

    Args:
        center: Mean of the features, (D).
        whitening: Makes features minus `center` uncorrelated within a stage and a class, those of each stage with a
            variance of 1 together; (D, D).
        class_means: Of the whitened features, for each class that had images; (K, D).
        threshold: The largest distance of a familiar image, ().
    """

    def __init__(self, center: Tensor, whitening: Tensor, class_means: Tensor, threshold: Tensor) -> None:
        super().__init__()
        for name, tensor in zip(TENSORS, (center, whitening, class_means, threshold), strict=True):
            self.register_buffer(name, tensor.float())

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, sizes: Sequence[int] | None = None) -> "Familiarity":
        """Fits features (N, D) of training images with labels (N,); the threshold is still infinite.

        Args:
            sizes: How many of the features each stage has, D together; None for one stage.
        """
        from sklearn.covariance import ledoit_wolf

        features = features.astype(np.float64)
        center, scale = features.mean(0), np.maximum(features.std(0), LEAST_SCALE)
        standardized = (features - center) / scale
        classes, numbers = np.unique(labels, return_inverse=True)
        means = np.stack([standardized[numbers == k].mean(0) for k in range(len(classes))])
        residuals = standardized - means[numbers]
        unmixing, start = np.zeros((len(center), len(center))), 0
        for size in sizes or [len(center)]:
            stage = slice(start, start := start + size)
            covariance, _ = ledoit_wolf(residuals[:, stage], assume_centered=True)
            covariance += LEAST_SCALE * np.eye(size)  # for features that never change within the classes
            unmixing[stage, stage] = np.linalg.inv(np.linalg.cholesky(covariance)).T / math.sqrt(size)
        arrays = center, unmixing / scale[:, None], means @ unmixing, np.inf
        return cls(*(torch.as_tensor(array) for array in arrays))

    def forward(self, features: Tensor) -> Tensor:
        """The squared distance (N,) to the nearest class mean of features (N, D), in float32."""
        whitened = (features.float() - self.center) @ self.whitening
        products = whitened @ self.class_means.T
        squares = whitened.square().sum(1, keepdim=True) + self.class_means.square().sum(1)
        return (squares - 2 * products).amin(1).clamp(min=0)

    def unfamiliarity(self, features: Tensor) -> Tensor:
        """The distance (N,) of features (N, D) as a multiple of the threshold: above 1, an image is unfamiliar."""
        return self(features) / self.threshold

    def set_threshold(self, *forms: np.ndarray) -> None:
        """Sets the threshold, at which `FAMILIAR_SHARE` of images like those of the training are familiar.

        Args:
            forms: Distances (N,) of such images, in each of the forms in which they must be.
        """
        self.threshold.fill_(max(float(np.quantile(distances, FAMILIAR_SHARE)) for distances in forms))

    def save(self, folder: Path) -> None:
        """Writes the file of the folder, complete or not at all.

        Raises:
            WriteError: if the disk is full, or refuses the file.
        """
        from safetensors.torch import save_file

        with replacing(folder / FAMILIARITY) as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}, temporary)


def load_familiarity(source: "Pretrained", num_features: int, num_classes: int) -> Familiarity | None:
    """The measure of a model folder or repository; None where it has none.

    Raises:
        InputError: for a file that is damaged, or that belongs to another network.
    """
    if (path := source.find(FAMILIARITY)) is None:
        return None
    forms = read_forms([path])
    if missing := [name for name in TENSORS if name not in forms]:
        raise InputError(
            f"expected {', '.join(TENSORS)} in {path}, found no {missing[0]}; copy the file again, or delete it to go "
            "without"
        )
    means = forms["class_means"].shape
    classes = max(1, min(means[0], num_classes)) if means else num_classes  # one that had no images has no mean
    shapes = ((num_features,), (num_features, num_features), (classes, num_features), ())
    if misfits := find_misfits(forms, dict(zip(TENSORS, shapes, strict=True))):
        raise InputError(
            f"expected distances of this network in {path}, found those of another: {misfits[0]}; copy all files of "
            "the model again, or delete this one to go without"
        )
    tensors = read_tensors([path])
    check_finite(tensors, str(path))
    if not (threshold := tensors["threshold"].item()) > 0:
        raise InputError(
            f"expected a distance above 0 as threshold in {path}, found {threshold:g}; copy the file again, or delete "
            "it to go without"
        )
    return Familiarity(**{name: tensors[name] for name in TENSORS})


def find_familiarity(source: "Pretrained", config: Any) -> Familiarity | None:
    """The measure that goes with a model of `config`, see `load_familiarity`; None where none can."""
    sizes = stage_sizes(config)
    return None if sizes is None else load_familiarity(source, sum(sizes), config.num_labels)


def stage_features(hidden_states: Sequence[Tensor]) -> Tensor:
    """The spatial means of the outputs of all stages side by side, (N, D) in float32.

    Args:
        hidden_states: Outputs of the stem, which is left out, and of the stages, (N, C, H, W) each.
    """
    return torch.cat([state.float().mean((-2, -1)) for state in hidden_states[1:]], dim=1)


def stage_sizes(config: Any) -> list[int] | None:
    """How many of `stage_features` each stage has; None for a network whose stages are not known here."""
    return list(config.hidden_sizes) if config.model_type == "replknet" else None


class WithFeatures(nn.Module):
    """Gives logits and stage features side by side, (N, C + D), from one pass, so that they are gathered as one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.name_or_path = model, getattr(model, "name_or_path", "")
        self.train(model.training)

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        outputs = self.model(pixel_values=pixel_values, output_hidden_states=True)
        both = torch.cat([outputs.logits.float(), stage_features(outputs.hidden_states)], dim=1)
        return ImageClassifierOutput(logits=both)
