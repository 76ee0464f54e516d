import pytest
import torch

from seedling_hf.data.dataset import load_folder
from seedling_hf.data.images import ImageError
from seedling_hf.data.pool import ImageFeature


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_changes_is_named_once_in_a_sentence_from_workers_too(tree, workers):
    images = load_folder(tree)
    changed = tree / images["file"][3]
    changed.write_bytes(b"")
    loader = torch.utils.data.DataLoader(images, batch_size=None, num_workers=workers, collate_fn=lambda row: 0)
    with pytest.raises(ImageError) as error:
        list(loader)
    assert str(error.value) == (
        f"expected images that stay unchanged while they are used, found {changed} (an empty file); restore it and "
        "start again"
    )


def test_the_column_of_images_keeps_its_decoder_through_what_is_done_to_a_dataset(tree):
    images = load_folder(tree)
    for made in (
        images,
        images.select([1, 2]),
        images.select_columns(["image"]),
        images.with_transform(lambda rows: rows),
    ):
        assert type(made.features["image"]) is ImageFeature
    assert images[0]["image"].mode == "RGB"
