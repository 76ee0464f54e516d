import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_utils import load_image

from seedling_hf.replknet import RepLKNetImageProcessor


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(("width", "height"), [(150, 150), (300, 200), (224, 500), (31, 57)])
def test_images_of_any_shape_become_224_by_224(width, height):
    pixel_values = RepLKNetImageProcessor()(random_image(width, height), return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 224, 224)
    assert pixel_values.dtype == torch.float32


def test_a_list_of_images_of_different_shapes_becomes_one_batch():
    images = [random_image(150, 150), random_image(300, 200), random_image(90, 400)]
    assert RepLKNetImageProcessor()(images, return_tensors="pt").pixel_values.shape == (3, 3, 224, 224)


def test_a_plain_color_is_normalized_by_mean_and_std_of_imagenet():
    image = Image.new("RGB", (300, 280), (255, 102, 0))
    pixel_values = RepLKNetImageProcessor()(image, return_tensors="pt").pixel_values
    expected = torch.tensor([(1 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0 - 0.406) / 0.225])
    # 1e-5: float32, and the mean is multiplied by 255 before it is subtracted.
    torch.testing.assert_close(pixel_values, expected[None, :, None, None].expand(1, 3, 224, 224), atol=1e-5, rtol=0)


def test_the_center_is_cropped():
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[:, 256 - 112 : 256 + 112] = 255
    processor = RepLKNetImageProcessor(do_normalize=False)
    assert (processor(Image.fromarray(pixels), return_tensors="pt").pixel_values == 1).all()


def test_the_shortest_edge_is_resized_before_the_crop():
    # The left half is white: seven eighths of the width, half of them white, remain.
    pixels = np.zeros((512, 512, 3), np.uint8)
    pixels[:, :256] = 255
    pixel_values = RepLKNetImageProcessor(do_normalize=False)(Image.fromarray(pixels), return_tensors="pt").pixel_values
    assert (pixel_values[..., :110] == 1).all() and (pixel_values[..., 114:] == 0).all()


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1"])
def test_images_of_every_mode_become_rgb(mode):
    assert RepLKNetImageProcessor()(random_image(64, 64, mode), return_tensors="pt").pixel_values.shape[1] == 3


def test_xl_has_the_mean_and_std_of_inception():
    processor = RepLKNetImageProcessor.from_variant("XL")
    assert processor.image_mean == processor.image_std == (0.5, 0.5, 0.5)


def test_other_variants_have_the_mean_and_std_of_imagenet():
    assert RepLKNetImageProcessor.from_variant("31B").to_dict() == RepLKNetImageProcessor().to_dict()


@pytest.mark.parametrize(("image_size", "edge"), [(64, 73), (224, 256), (383, 438)])
def test_below_384_seven_eighths_of_the_shortest_edge_are_kept(image_size, edge):
    processor = RepLKNetImageProcessor.from_variant("nano", image_size=image_size)
    assert processor.size.shortest_edge == edge
    assert processor(random_image(150, 200), return_tensors="pt").pixel_values.shape[2:] == (image_size, image_size)


def test_from_384_on_the_whole_image_is_resized():
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, :10] = 255
    processor = RepLKNetImageProcessor.from_variant("31B", image_size=384, do_normalize=False)
    pixel_values = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 384, 384)
    assert pixel_values[..., 0].min() > 0.9


def test_arguments_override_the_values_of_the_variant():
    assert RepLKNetImageProcessor.from_variant("XL", image_mean=(0.1, 0.2, 0.3)).image_mean == (0.1, 0.2, 0.3)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="found 'base'"):
        RepLKNetImageProcessor.from_variant("base")


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="image_size to be positive, found 0"):
        RepLKNetImageProcessor.from_variant("nano", image_size=0)


def test_a_saved_processor_loads_equal(tmp_path):
    processor = RepLKNetImageProcessor.from_variant("XL", image_size=320)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is RepLKNetImageProcessor
    image = random_image(150, 200)
    assert torch.equal(
        loaded(image, return_tensors="pt").pixel_values, processor(image, return_tensors="pt").pixel_values
    )


def test_a_saved_processor_comes_with_its_code(tmp_path):
    RepLKNetImageProcessor().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["auto_map"] == {"AutoImageProcessor": "image_processing_replknet.RepLKNetImageProcessor"}
    assert "class RepLKNetImageProcessor(" in (tmp_path / "image_processing_replknet.py").read_text()


def test_a_real_image_looks_as_with_pillow(sample_dir):
    path = sorted(sample_dir.glob("*/*.jpg"))[0]
    processor = RepLKNetImageProcessor(do_normalize=False)
    pixel_values = processor(load_image(str(path)), return_tensors="pt").pixel_values[0]
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    expected = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1) / 255
    # torchvision rounds to 8 bits as Pillow does, but may differ by one step at a few pixels.
    assert (pixel_values - expected).abs().max() <= 2 / 255
    assert (pixel_values - expected).abs().mean() < 0.2 / 255
