"""Loaders give the same batches however they are asked, and report how long a run waits for them."""

import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from seedling_hf.data.dataset import load_splits
from seedling_hf.inference.prediction import build_accelerator
from seedling_hf.replknet import RepLKNetImageProcessor
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.loaders import TimedLoader, TrainingBatches
from seedling_hf.training.run_log import Timing


def test_the_waiting_time_is_that_of_the_loader_and_its_start():
    class Slow:
        dataset = range(2)

        def __iter__(self):
            time.sleep(0.2)
            for batch in self.dataset:
                time.sleep(0.1)
                yield batch

    timing = Timing(evaluation_wait=1.0)
    batches = []
    for batch in TimedLoader(Slow(), timing):
        time.sleep(0.5)
        batches.append(batch)
    assert batches == [0, 1]
    assert timing.evaluation_wait == pytest.approx(1.4, abs=0.09)  # without the 0.5 of the consumer


def field_batches(images: Path, first_step: int = 0, **flags) -> list[torch.Tensor]:
    """The images of the steps to the fourth, with all augmentation for the field."""
    arguments = TrainArguments(
        train_dir=str(images), variant="tiny", image_size=32, per_device_train_batch_size=8, max_steps=4,
        background_prob=0.7, zoom_out_prob=0.3, zoom_in_prob=0.3, shadow_prob=0.5, white_balance=1.0, gamma=0.5,
        levels_prob=0.5, blur_prob=0.5, noise_prob=0.5, rotation_fill="mirror", **flags,
    )  # fmt: skip
    train, processor = load_splits(arguments)["train"], RepLKNetImageProcessor(crop_size=32)
    batches = TrainingBatches(arguments, train, processor, build_accelerator("no"), 3, Timing())
    found = [step[0]["pixel_values"] for step in islice(batches.steps_from(first_step), 4)]
    batches.loader.close()
    return found


def test_augmentation_for_the_field_is_the_same_with_workers_with_a_cache_and_after_resuming(images):
    """The grounds of other images too, which each process finds by itself."""
    expected = field_batches(images)
    assert len(expected) == 4 and not torch.equal(expected[0], expected[1])
    for found in (field_batches(images, dataloader_num_workers=2), field_batches(images, cache_images=192)):
        assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, field_batches(images, first_step=2), expected[2:]))
    other = field_batches(images, seed=7)
    assert not any(map(torch.equal, other, expected))


def drawn_batches(images: Path, first_step: int = 0, num_steps: int = 8, **flags) -> list[dict[str, torch.Tensor]]:
    arguments = TrainArguments(
        train_dir=str(images),
        variant="tiny",
        image_size=32,
        per_device_train_batch_size=8,
        max_steps=num_steps,
        **flags,
    )
    train, processor = load_splits(arguments)["train"], RepLKNetImageProcessor(crop_size=32)
    batches = TrainingBatches(arguments, train, processor, build_accelerator("no"), 3, Timing())
    found = [step[0] for step in batches.steps_from(first_step)]
    batches.loader.close()
    return found


def test_balanced_batches_are_the_same_with_workers_and_after_resuming_and_no_draw_is_like_another(images):
    expected = drawn_batches(images, balanced_sampler=True)
    for found, first in (
        (drawn_batches(images, balanced_sampler=True, dataloader_num_workers=2), 0),
        (drawn_batches(images, balanced_sampler=True, cache_images=192), 0),
        (drawn_batches(images, 6, balanced_sampler=True), 6),
    ):
        for one, two in zip(found, expected[first:], strict=True):
            assert all(torch.equal(one[name], two[name]) for name in ("index", "labels", "pixel_values"))
    drawn = [pair for batch in expected[:4] for pair in zip(batch["index"], batch["pixel_values"], strict=True)]
    again = [(a, b) for n, (i, a) in enumerate(drawn) for j, b in drawn[:n] if i == j]
    assert again  # of 32 draws among 32 images some come again within the epoch
    assert not any(torch.equal(a, b) for a, b in again)


def test_without_the_flag_each_image_comes_once_an_epoch(images):
    index = torch.cat([batch["index"] for batch in drawn_batches(images, num_steps=4)])
    assert sorted(index.tolist()) == sorted(set(index.tolist())) and len(index) == 32
