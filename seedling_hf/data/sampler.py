"""The order of the training images: a function of (seed, epoch), divided among the processes."""

from collections import Counter
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from seedling_hf.data.seeds import epoch_seed, permutation, weighted_draw
from seedling_hf.errors import InputError


class EpochSampler(Sampler[list[int]]):
    """Batches of one epoch after another for one of several processes.

    An optimizer step takes the next `batch_size * accumulation * num_processes` images of the epoch's order, so the
    same global batch holds the same images however it is divided. Any position in an epoch is reached without drawing
    and discarding. Images that do not fill a last step are skipped in that epoch.

    Raises:
        InputError: if the images do not fill one step.
    """

    def __init__(
        self, num_examples: int, *, batch_size: int, accumulation: int = 1, num_processes: int = 1,
        process_index: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        self.num_examples, self.batch_size, self.accumulation = num_examples, batch_size, accumulation
        self.num_processes, self.process_index, self.seed = num_processes, process_index, seed
        self.epoch = self.first_step = 0
        self.global_batch_size = batch_size * accumulation * num_processes
        self.steps_per_epoch = num_examples // self.global_batch_size
        if self.steps_per_epoch == 0:
            raise InputError(
                f"expected at least one global batch of {self.global_batch_size} training images "
                f"(per_device_train_batch_size {batch_size} × gradient_accumulation_steps {accumulation} × "
                f"{num_processes} processes), found {num_examples} images; lower --per_device_train_batch_size"
            )

    def set_position(self, epoch: int, first_step: int = 0) -> None:
        """The next iteration is `epoch`, from its optimizer step `first_step`."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for start in self.starts():
            yield order[start : start + self.batch_size]

    def starts(self) -> Iterator[int]:
        """The place of the first image of each batch in the order of the epoch, which no division changes."""
        for batch in range(self.first_step * self.accumulation, self.steps_per_epoch * self.accumulation):
            yield (batch * self.num_processes + self.process_index) * self.batch_size

    def _order(self) -> list[int]:
        return permutation(self.num_examples, epoch_seed(self.seed, self.epoch))


class BalancedSampler(EpochSampler):
    """Draws as many images for an epoch as there are, with replacement, each class with the same probability.

    Args:
        labels: The class of each image.
        options: Those of `EpochSampler`.
    """

    def __init__(self, labels: Sequence[int], **options: int) -> None:
        super().__init__(len(labels), **options)
        counts = Counter(labels)
        self.weights = [1 / counts[label] for label in labels]

    def _order(self) -> list[int]:
        return weighted_draw(self.weights, self.num_examples, epoch_seed(self.seed, self.epoch))
