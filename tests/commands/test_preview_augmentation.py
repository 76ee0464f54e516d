from dataclasses import fields

from PIL import Image

from seedling_hf.commands import run
from seedling_hf.commands.preview_augmentation import OFF, each_augmentation, main
from seedling_hf.train_arguments import AugmentationArguments

OF_BATCHES = {"mixup_alpha", "cutmix_alpha", "mixup_prob", "mixup_switch_prob", "mixup_mode", "label_smoothing_factor"}
OF_OTHERS = {"randaugment_magnitude", "rotation_fill"}  # of no effect by themselves


def test_each_flag_of_the_augmentation_of_an_image_is_off_in_one_row_and_on_in_another():
    flags = {field.name for field in fields(AugmentationArguments)} - OF_BATCHES
    assert {*OFF} == flags - OF_OTHERS
    rows = each_augmentation(64)
    assert rows.pop("whole image") == OFF
    shown = {name for changes in rows.values() for name in changes if changes[name] != OFF.get(name)}
    assert shown == flags


def test_each_augmentation_has_a_row_and_each_class_a_column(images, tmp_path):
    words = ["--train_dir", str(images), "--output_dir", str(tmp_path / "out"), "--image_size", "32"]
    assert run(main, [*words, "--num_examples", "1"]) == 0
    height, width = Image.open(tmp_path / "out" / "each_augmentation.png").size[::-1]
    assert height / width > 0.8 * len(each_augmentation(32)) / (3 + 1.2)  # labels take the room of a column
