"""Mixed labels are timm's, and each image counts as the classes that its pixels come from."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup

from seedling_hf.data.collator import Collator
from seedling_hf.errors import InputError
from seedling_hf.train_arguments import AugmentationArguments

NUM_LABELS, SMOOTHING = 7, 0.1
MIXING = {"MixUp": {"cutmix_alpha": 0.0}, "CutMix": {"mixup_alpha": 0.0}, "both": {}}
MODES = ("batch", "pair", "elem")


def examples(count: int, first: int = 0) -> list[dict]:
    """Image i is i everywhere, so that its share in a mixture can be read off the pixels."""
    return [
        {"pixel_values": torch.full((3, 16, 16), float(i)), "labels": (2 * i) % NUM_LABELS, "index": i}
        for i in range(first, first + count)
    ]


def collate(batch: list[dict], *, epoch: int = 0, seed: int = 3, **settings) -> dict[str, torch.Tensor]:
    augmentation = AugmentationArguments(**{"mixup_prob": 1.0, "label_smoothing_factor": SMOOTHING} | settings)
    collator = Collator(NUM_LABELS, augmentation, seed=seed)
    collator.set_epoch(epoch)
    return collator(batch)


def smoothed(labels: torch.Tensor, smoothing: float = SMOOTHING) -> torch.Tensor:
    return (1 - smoothing) * torch.eye(NUM_LABELS)[labels] + smoothing / NUM_LABELS


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", MIXING)
@pytest.mark.parametrize("epoch", range(3))
def test_a_batch_is_mixed_by_timm_from_seed_epoch_and_images(kind, mode, epoch):
    batch = examples(6, first=10)
    settings = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0} | MIXING[kind]
    found = collate(batch, epoch=epoch, mixup_mode=mode, **settings)
    np.random.seed(np.random.SeedSequence([3, epoch, 10, 11, 12, 13, 14, 15]).generate_state(4))
    mixup = Mixup(**settings, prob=1.0, mode=mode, label_smoothing=SMOOTHING, num_classes=NUM_LABELS)
    pixel_values, labels = mixup(
        torch.stack([example["pixel_values"] for example in batch]),
        torch.tensor([example["labels"] for example in batch]),
    )
    assert found["pixel_values"].equal(pixel_values)
    assert found["labels"].equal(labels.float())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["MixUp", "CutMix"])
def test_labels_are_mixed_in_the_shares_of_the_pixels(kind, mode):
    mixed = 0
    for epoch in range(10):
        batch = collate(examples(8), epoch=epoch, mixup_mode=mode, **MIXING[kind])
        own = torch.arange(8.0)
        other = own.flip(0)
        share = ((batch["pixel_values"].mean((1, 2, 3)) - other) / (own - other))[:, None]
        targets = smoothed((2 * own.long()) % NUM_LABELS)
        # float32 means of 768 pixels
        torch.testing.assert_close(batch["labels"], share * targets + (1 - share) * targets.flip(0), rtol=0, atol=2e-5)
        mixed += int((share < 0.99).sum())
    assert mixed > 40


@pytest.mark.parametrize("mode", MODES)
def test_the_last_image_of_an_odd_batch_is_not_mixed(mode):
    batch = collate(examples(5), mixup_mode=mode)
    assert batch["pixel_values"][4].unique().tolist() == [4.0]
    torch.testing.assert_close(batch["labels"][4:], smoothed(torch.tensor([8 % NUM_LABELS])), rtol=0, atol=1e-7)
    # The other four are mixed among themselves, the first with the fourth.
    assert batch["pixel_values"][0].unique().numel() == 1 or set(batch["pixel_values"][0].unique().tolist()) == {0, 3}
    assert batch["pixel_values"][:4].max() <= 3


def test_a_batch_of_one_image_is_smoothed_only():
    batch = collate(examples(1, first=7))
    assert batch["pixel_values"].equal(torch.full((1, 3, 16, 16), 7.0))
    torch.testing.assert_close(batch["labels"], smoothed(torch.tensor([14 % NUM_LABELS])), rtol=0, atol=1e-7)


def test_the_last_short_batch_of_an_epoch_is_mixed_within_itself():
    collator = Collator(NUM_LABELS, AugmentationArguments(mixup_prob=1.0, cutmix_alpha=0.0))
    full, short = collator(examples(8)), collator(examples(2, first=8))
    assert (len(full["labels"]), len(short["labels"])) == (8, 2)
    assert 8 <= short["pixel_values"].min() < short["pixel_values"].max() <= 9
    # Both images of a pair sum to what they were before.
    torch.testing.assert_close(short["pixel_values"].sum(0), torch.full((3, 16, 16), 17.0))
    assert short["index"].tolist() == [8, 9]


def test_mixing_keeps_the_images_of_the_dataset_as_they_are():
    batch = examples(6)
    collate(batch)
    assert all(example["pixel_values"].eq(example["index"]).all() for example in batch)


def test_mixing_depends_on_seed_epoch_and_images_alone():
    settings = {"cutmix_alpha": 0.0}
    first = collate(examples(6), **settings)
    np.random.seed(11)
    before = np.random.get_state()[1].copy()
    assert collate(examples(6), **settings)["pixel_values"].equal(first["pixel_values"])
    assert (np.random.get_state()[1] == before).all()
    others = ({"epoch": 1}, {"seed": 4}, {"batch": examples(6, first=1)})
    batches = [first, *(collate(**{"batch": examples(6)} | settings | other) for other in others)]
    assert len({batch["labels"][0].max().item() for batch in batches}) == 4


def test_about_the_requested_share_of_batches_is_mixed():
    images = examples(4)
    untouched = torch.stack([example["pixel_values"] for example in images])
    mixed = sum(
        not collate(images, epoch=epoch, mixup_prob=0.25)["pixel_values"].equal(untouched) for epoch in range(200)
    )
    assert 30 <= mixed <= 70  # 50, and three standard deviations of 6.1


@pytest.mark.parametrize("settings", [{"mixup_prob": 0.0}, {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}], ids=str)
def test_smoothed_labels_without_mixing_give_the_loss_of_pytorchs_label_smoothing(settings):
    batch = collate(examples(7), label_smoothing_factor=0.2, **settings)
    logits = torch.randn(7, NUM_LABELS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([example["labels"] for example in examples(7)])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(F.cross_entropy(logits, batch["labels"].double()), expected, rtol=1e-6, atol=0)
    assert batch["pixel_values"].equal(torch.stack([example["pixel_values"] for example in examples(7)]))


def test_without_mixing_and_smoothing_labels_are_class_numbers():
    batch = collate(examples(4), mixup_prob=0.0, label_smoothing_factor=0.0)
    assert batch["labels"].dtype == batch["index"].dtype == torch.int64
    assert batch["labels"].tolist() == [0, 2, 4, 6]
    assert batch["index"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_mixed_labels_sum_to_one(smoothing):
    labels = collate(examples(7), label_smoothing_factor=smoothing)["labels"]
    assert (labels.shape, labels.dtype) == ((7, NUM_LABELS), torch.float32)
    torch.testing.assert_close(labels.sum(1), torch.ones(7))


def test_an_unknown_mixup_mode_is_refused():
    with pytest.raises(InputError, match="expected mixup_mode batch, pair or elem, found 'half'"):
        Collator(NUM_LABELS, AugmentationArguments(mixup_mode="half"))
