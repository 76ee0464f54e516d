"""Training images streamed from the Hub, for datasets that are too large for the disk, from any place on.

An epoch reads the shards of the dataset in an order that depends only on (seed, epoch), divided among the processes;
if there are fewer shards than processes, each process reads all shards and takes its share of the rows. Within a shard
images are shuffled block by block, so a place in the stream is four numbers. To resume there, one shard is opened and
its rows before the block are skipped undecoded; nothing else is repeated.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from datasets import IterableDataset
from torch import Tensor

from seedling_hf.data.collator import Collator
from seedling_hf.data.images import ImageError
from seedling_hf.data.pool import ImageFeature
from seedling_hf.data.seeds import epoch_seed, permutation
from seedling_hf.data.shards import read_shard
from seedling_hf.data.transforms import ExampleTransform
from seedling_hf.errors import InputError

BLOCK = 1024  # encoded images that are kept in memory and shuffled
ROWS_OF_A_SHARD = 10**9  # more than any has, to number the images of all shards


class StreamError(InputError):
    """The images after the last step cannot be had: the sentence names the image or the shard."""


class Place(NamedTuple):
    """Where a process is in the stream: its next image is number `offset` of the block that starts at row `start`."""

    epoch: int = 0
    shard: int = 0  # position in the order of this process's shards
    start: int = 0  # row of the shard, counting this process's rows only
    offset: int = 0  # images of the block that are done


class TrainingStream(torch.utils.data.IterableDataset):
    """Batches of one process, epoch after epoch without end, for a DataLoader with `batch_size=None`.

    `dataset` is streamed, with columns `image`, undecoded, and `label`.
    """

    def __init__(
        self, dataset: IterableDataset, transform: ExampleTransform, collator: Collator, *, batch_size: int, seed: int,
        process_index: int = 0, num_processes: int = 1, skip_bad_images: bool = False,
    ) -> None:  # fmt: skip
        self.dataset, self.transform, self.collator = dataset, transform, collator
        self.batch_size, self.seed, self.skip_bad_images = batch_size, seed, skip_bad_images
        self.process_index, self.num_processes = process_index, num_processes
        self.place = Place()
        self.decode = ImageFeature().decode_example

    def set_place(self, place: Place) -> None:
        """The next iteration starts there. Call it before the loader starts its worker, which gets a copy."""
        self.place = Place(*place)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches with the `place` where the next one starts; an `InputError` is yielded as `error`."""
        examples: list[dict[str, Any]] = []
        try:
            for example, place in self._examples():
                examples.append(example)
                if len(examples) == self.batch_size:
                    yield self.collator(examples) | {"place": place}
                    examples = []
        except InputError as error:  # raised in a worker, it would come with a traceback
            yield {"error": str(error)}

    def describe(self, index: int) -> str:
        """The name of the image `index`, for messages."""
        shard, row = divmod(index, ROWS_OF_A_SHARD)
        return f"row {row} of shard {shard}"

    def _examples(self) -> Iterator[tuple[dict[str, Any], Place]]:
        place = self.place
        while True:
            self.transform.set_epoch(place.epoch)
            self.collator.set_epoch(place.epoch)
            found, shards = place != Place(place.epoch), self._shards(place.epoch)  # the rest of an epoch may be empty
            for number in range(place.shard, len(shards)):
                rows = self._rows(shards[number])
                next(islice(rows, place.start, place.start), None)
                while block := list(islice(rows, BLOCK)):
                    for done, i in enumerate(self._order(place, shards[number], len(block)), 1):
                        if done > place.offset and (example := self._example(shards[number], *block[i])):
                            found = True
                            yield example, place._replace(offset=done)
                    place = place._replace(start=place.start + len(block), offset=0)
                place = Place(place.epoch, number + 1)
            if not found:
                raise InputError(
                    "expected training images that can be decoded in the stream, found none in a whole epoch for "
                    f"process {self.process_index}; check the dataset"
                )
            place = Place(place.epoch + 1)

    def _shards(self, epoch: int) -> list[int]:
        order = permutation(self.dataset.num_shards, epoch_seed(self.seed, epoch))
        return order if self._shares_shards else order[self.process_index :: self.num_processes]

    @property
    def _shares_shards(self) -> bool:
        return self.dataset.num_shards < self.num_processes

    def _rows(self, shard: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """This process's rows of a shard, with their numbers."""
        rows = enumerate(read_shard(self.dataset, shard, "resume with --resume_from_checkpoint latest"))
        return islice(rows, self.process_index, None, self.num_processes) if self._shares_shards else rows

    def _order(self, place: Place, shard: int, size: int) -> list[int]:
        # The hash of integers is the same in every process.
        return permutation(size, hash((self.seed, place.epoch, shard, place.start)) % 2**63)

    def _example(self, shard: int, number: int, row: dict[str, Any]) -> dict[str, Any] | None:
        index = shard * ROWS_OF_A_SHARD + number
        try:
            if row["label"] is None or row["label"] < 0:
                raise ValueError("it has no label")
            image = self.decode(row["image"])
        except ValueError as error:
            if self.skip_bad_images:
                return None
            reason = error.reason if isinstance(error, ImageError) else error
            raise InputError(
                f"expected images that can be decoded, found {row['image'].get('path') or self.describe(index)}: "
                f"{reason}; repair it, or skip such images with --skip_bad_images"
            ) from error
        values = self.transform({"image": [image], "label": [row["label"]], "index": [index]})
        return {name: value[0] for name, value in values.items()}


def pop_place(batches: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Tensor]], Place]:
    """The batches of a step without their places, and the place where the next step starts.

    Raises:
        StreamError: if the stream yielded an error.
    """
    group, place = [], None
    for batch in batches:
        if "error" in batch:
            raise StreamError(batch["error"])
        place = Place(*batch.pop("place"))
        group.append(batch)
    return group, place
