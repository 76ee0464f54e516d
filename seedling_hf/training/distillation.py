"""Teachers: trained classifiers whose predictions become part of the targets of training.

Knowledge distillation is Hinton et al.'s (arXiv 1503.02531). Teachers see exactly the image that the student sees,
augmented and mixed, as consistent teachers do (Beyer et al., arXiv 2106.05237); they may be networks of the same kind
(Furlanello et al., arXiv 1805.04770), and the predictions of several are averaged.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor

from seedling_hf.data.images import a_few
from seedling_hf.errors import InputError, require_finite
from seedling_hf.inference.classifier import list_classes, load_classifier
from seedling_hf.spelling import describe_difference
from seedling_hf.train_arguments import DistillationArguments


class Teachers:
    """Classifiers in evaluation mode, and the weight of their predictions.

    Args:
        arguments: Which models they are, and their share of the targets.
        class_names: Of the student, in its order; a teacher may have another order.
        image_processor: Of the student; images are normalised again for a teacher with another mean or deviation.

    Raises:
        InputError: for a folder without a classifier, or a classifier of other classes.
    """

    def __init__(
        self,
        arguments: DistillationArguments,
        class_names: Sequence[str],
        image_processor: BaseImageProcessor,
        device: torch.device,
    ) -> None:
        self.alpha = arguments.distillation_alpha
        self.members = []
        for name in arguments.teacher_model_name_or_path:
            model, own = load_classifier(name)
            found = list_classes(model.config)
            if sorted(found) != sorted(class_names):
                raise InputError(
                    f"expected a teacher of the classes {a_few(class_names, 12)}, found {a_few(found, 12)} in {name}"
                    f"{describe_difference(found, class_names)}; "
                    "choose one that was trained on the same classes"
                )
            order = torch.tensor([found.index(label) for label in class_names], device=device)
            mean, deviation, own_mean, own_deviation = (
                torch.tensor(values, device=device)[:, None, None]
                for p in (image_processor, own)
                for values in (p.image_mean, p.image_std)
            )
            scale, shift = deviation / own_deviation, (mean - own_mean) / own_deviation
            self.members.append((model.to(device).requires_grad_(False), order, scale, shift))
        # Of each one's probabilities: finite as long as all of them were.
        self.sums = torch.zeros(len(self.members), device=device)

    def compile(self, **options: Any) -> None:
        """Has the teachers compiled, in place, with these options of `torch.compile`."""
        for model, *_ in self.members:
            model.compile(**options)

    @torch.no_grad()
    def soften(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Targets of which the teachers' mean prediction makes up the share `alpha`.

        Args:
            pixel_values: The student's input, (N, 3, H, W).
            labels: (N,) int64, or targets (N, num_labels).

        Returns:
            (N, num_labels), float32.
        """
        predictions = [
            model(pixel_values=pixel_values * scale + shift).logits.float().softmax(-1)[:, order]
            for model, order, scale, shift in self.members
        ]
        predictions = torch.stack(predictions)  # (teachers, N, num_labels)
        self.sums += predictions.sum((1, 2))
        if labels.ndim == 1:
            labels = torch.nn.functional.one_hot(labels, predictions.shape[2])
        return (1 - self.alpha) * labels + self.alpha * predictions.mean(0)

    def check(self, gather: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
        """Whether a loss that is not finite may come from a teacher; every process must call it.

        Predictions are not checked one by one, which would have the host wait for the GPU.

        Args:
            gather: Joins the tensors of all processes on each of them.

        Raises:
            NonFiniteError: on every process; it names the teacher.
        """
        sums = gather(self.sums[None])  # (processes, teachers)
        for (model, *_), of_teacher in zip(self.members, sums.T, strict=True):
            require_finite(of_teacher, "probabilities", model)
