"""Batches for training, from any step on, and for evaluation."""

import math
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice, repeat
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor

from seedling_hf.data.backgrounds import Backgrounds, find_grounds
from seedling_hf.data.collator import Collator
from seedling_hf.data.image_cache import (
    FromCache,
    cache_training_images,
    cache_validation_images,
    prepared_examples,
)
from seedling_hf.data.loading import Loader, Waiting
from seedling_hf.data.sampler import BalancedSampler, EpochSampler
from seedling_hf.data.stream import Place, TrainingStream, pop_place
from seedling_hf.data.training_images import BatchKey, TrainingImages
from seedling_hf.data.transforms import EvalTransform, ExampleTransform, build_train_transform, uses_backgrounds
from seedling_hf.errors import InputError
from seedling_hf.inference.waiting import WaitingTogether, deal
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.run_log import Timing

GROWTH_STEP = 16  # pixels by which training images grow at a time


class TrainingBatches:
    """The training batches of one process, grouped by optimizer steps; any step of the run is reached at once.

    The time spent waiting for images is added to `timing`.

    Attributes:
        global_batch_size: Images of an optimizer step, on all processes together.
        steps_per_epoch: Optimizer steps; of a stream, whose length is unknown, those of the run.
        num_steps: Optimizer steps of the run.
        build_transform: Makes the augmentation of an image, of the final size unless another one is given.
    """

    def __init__(
        self,
        arguments: TrainArguments,
        train: Dataset | IterableDataset,
        image_processor: BaseImageProcessor,
        accelerator: Accelerator,
        num_labels: int,
        timing: Timing,
    ) -> None:
        self.arguments, self.image_processor, self.timing = arguments, image_processor, timing
        self.device, self.image_size = accelerator.device, image_processor.crop_size["height"]
        self.copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.accumulation = arguments.gradient_accumulation_steps
        self.global_batch_size = arguments.per_device_train_batch_size * self.accumulation * accelerator.num_processes
        backgrounds = _backgrounds(arguments, train)
        self.build_transform = partial(build_train_transform, arguments, image_processor, backgrounds=backgrounds)
        transform = ExampleTransform(self.build_transform(), seed=arguments.seed)
        collator = Collator(num_labels, arguments, seed=arguments.seed)
        # These deal the images to the processes, so accelerate must not divide them again.
        shares = {
            "batch_size": arguments.per_device_train_batch_size,
            "num_processes": accelerator.num_processes,
            "process_index": accelerator.process_index,
            "seed": arguments.seed,
        }
        self.sampler = self.stream = None
        self.place, self.waiting = Place(), WaitingTogether(accelerator)
        if arguments.streaming:
            images = self.stream = TrainingStream(
                train, transform, collator, skip_bad_images=arguments.skip_bad_images, **shares
            )
            self.steps_per_epoch = arguments.max_steps
        else:
            self.files = train["file"]
            shares |= {"accumulation": self.accumulation}
            if arguments.balanced_sampler:
                self.sampler = BalancedSampler(train["label"], **shares)
            else:
                self.sampler = EpochSampler(len(train), **shares)
            if arguments.cache_images is None:
                images = train.with_transform(transform)
            else:
                images = cache_training_images(train, arguments.cache_images, image_processor)
                images = images.with_transform(FromCache(transform))
            images = TrainingImages(images, transform, collator, self.build_transform)
            self.steps_per_epoch = self.sampler.steps_per_epoch
        self.loader = _loader(
            images, arguments, accelerator, self.waiting, batch_size=None, sampler=None if self.stream else self
        )
        self.num_steps = arguments.max_steps
        if self.num_steps <= 0:
            self.num_steps = math.ceil(arguments.num_train_epochs * self.steps_per_epoch)

    def steps_from(self, step: int) -> Iterator[list[dict[str, Tensor]]]:
        """For each optimizer step from `step` to the end of the run, the batches of this process, on its device.

        A batch is taken from the loader for the step that needs it and not before, so `place` and the random states
        are those of the steps that were done.

        Raises:
            InputError: for an image that cannot be read any more, or workers that died.
            Stopped: if a signal came; no step is half done then.
        """
        self.first_step = step
        if self.stream:
            self.stream.set_place(self.place)
        with self.timing.measure("wait"):  # workers start here
            batches = iter(self.loader)
        for number in range(step + 1, self.num_steps + 1):
            try:
                with self.timing.measure("wait"):
                    group = islice(batches, self.accumulation)
                    if self.stream:
                        group, self.place = pop_place(group)
                    group = list(group)
            except OSError as error:  # all were decoded before the first step
                raise InputError(
                    f"expected images that stay unchanged during training, found at step {number}: "
                    f"{str(error).splitlines()[-1]}; restore the image, and resume with "
                    "--resume_from_checkpoint latest"
                ) from error
            yield [self._to_device(batch) for batch in group]

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch on the device of this process, except `index`, which only messages need.

        The host is ahead of a GPU. On a stream of its own the copy, from pinned memory, starts at once, while the
        steps before are still computed.
        """
        tensors, index = {name: tensor for name, tensor in batch.items() if name != "index"}, batch["index"]
        if self.copying is None:
            return send_to_device(tensors, self.device, non_blocking=True) | {"index": index}
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.copying):
            tensors = send_to_device(tensors, self.device, non_blocking=True)
        computing.wait_stream(self.copying)
        for tensor in tensors.values():
            tensor.record_stream(computing)  # its memory is not used again before
        return tensors | {"index": index}

    def __iter__(self) -> Iterator[BatchKey]:
        """The keys of all batches from the first step to the last: the sampler of the loader."""
        epoch, first_step = divmod(self.first_step, self.steps_per_epoch)
        keys = self._keys(epoch, first_step)
        yield from islice(keys, (self.num_steps - self.first_step) * self.accumulation)

    def _keys(self, epoch: int, first_step: int) -> Iterator[BatchKey]:
        while True:
            self.sampler.set_position(epoch, first_step)
            starts = self.sampler.starts() if self.arguments.balanced_sampler else repeat(None)
            for indices, start in zip(self.sampler, starts, strict=False):
                yield BatchKey(epoch, self.image_size_at(epoch), indices, start)
            epoch, first_step = epoch + 1, 0

    def epoch_at(self, step: int) -> float:
        """Epochs done after `step` optimizer steps; of a stream, the number of the current one."""
        return float(self.place.epoch) if self.stream else step / self.steps_per_epoch

    def list_image_sizes(self) -> list[int]:
        """The sides of the training images of the run, the smallest first."""
        return sorted({self.image_size_at(epoch) for epoch in range(math.ceil(self.num_steps / self.steps_per_epoch))})

    def image_size_at(self, epoch: int) -> int:
        """Side of the training images: it grows evenly, in steps of 16, over the first two thirds of the epochs.

        Small images first are Howard's progressive resizing (fast.ai, 2018); Tan and Le, EfficientNetV2, arXiv
        2104.00298, section 4.
        """
        start = self.arguments.image_size_start or self.image_size
        share = min(1.0, 1.5 * epoch * self.steps_per_epoch / self.num_steps)
        grown = int(share * (self.image_size - start)) // GROWTH_STEP * GROWTH_STEP
        return self.image_size if share == 1 else start + grown

    def list_images(self, index: list[Tensor]) -> list[str]:
        """The names of the images in batches of all processes, by their `index`; every process must call it."""
        name = self.stream.describe if self.stream else self.files.__getitem__
        return gather_object([name(i) for batch in index for i in batch.tolist()])

    def gather_places(self) -> list[tuple[int, ...]] | None:
        """Where each process is in the stream; None without a stream. Every process must call it."""
        return gather_object([tuple(self.place)]) if self.stream else None

    def set_place(self, places: list[tuple[int, ...]] | None, accelerator: Accelerator) -> None:
        """Restores what `gather_places` returned.

        Raises:
            InputError: for another number of processes.
        """
        if not self.stream:
            return
        if len(places or []) != accelerator.num_processes:
            raise InputError(
                f"expected {len(places or [])} processes, as many as read the stream when the checkpoint was written, "
                f"found {accelerator.num_processes}; start as many"
            )
        self.place = Place(*places[accelerator.process_index])


class TimedLoader:
    """Batches of `loader`; the seconds spent waiting for them, including its start, are added to `timing`."""

    def __init__(self, loader: DataLoader, timing: Timing) -> None:
        self.loader, self.timing, self.dataset = loader, timing, loader.dataset

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        started = time.perf_counter()
        for batch in self.loader:
            self.timing.evaluation_wait += time.perf_counter() - started
            yield batch
            started = time.perf_counter()

    @property
    def waiting(self) -> Waiting:
        return self.loader.base_dataloader.waiting

    def close(self) -> None:
        """Ends the workers."""
        self.loader.base_dataloader.close()


def build_eval_loader(
    arguments: TrainArguments,
    validation: Dataset,
    image_processor: BaseImageProcessor,
    accelerator: Accelerator,
    num_labels: int,
    timing: Timing,
) -> TimedLoader:
    """The validation images as the image processor prepares them, dealt to the processes."""
    options = {"batch_size": arguments.per_device_eval_batch_size, "collate_fn": Collator(num_labels)}
    if arguments.cache_images is None or not len(validation):  # with --train_val_split 0 nothing is there to keep
        transform = ExampleTransform(EvalTransform(image_processor), seed=arguments.seed)
    else:
        validation, transform = cache_validation_images(validation, image_processor), prepared_examples
        options["num_workers"] = 0  # starting a worker takes longer than reading
    loader = _loader(
        validation.with_transform(transform), arguments, accelerator, WaitingTogether(accelerator), **options
    )
    return TimedLoader(deal(loader, accelerator), timing)


def _backgrounds(arguments: TrainArguments, train: Dataset | IterableDataset) -> Backgrounds | None:
    """With the grounds of training images, unless these are streamed."""
    if not uses_backgrounds(arguments):
        return None
    return Backgrounds(None if arguments.streaming else find_grounds(train))


def _loader(
    dataset: Any, arguments: TrainArguments, accelerator: Accelerator, waiting: Waiting, **options: Any
) -> Loader:
    settings = {
        "num_workers": arguments.dataloader_num_workers,
        "pin_memory": accelerator.device.type == "cuda",
        "waiting": waiting,
        "advice": "resume with --resume_from_checkpoint latest",
    }
    return Loader(dataset, **settings | options)
