"""Every command that writes, on inputs in its folder, and held at a moment, so that a test can disturb it there."""

import os
import shutil
import time
from pathlib import Path

from faults import contents

ROOT = Path(__file__).resolve().parents[1]
PTH = ROOT / "tests" / "golden" / "small_kernel_5.pth"
TRAIN = """train --train_dir images --output_dir out --variant tiny --image_size 32 --max_steps 3 --save_steps 1
    --per_device_train_batch_size 8 --eval_steps 2 --logging_steps 1"""
MODEL = "--model_name_or_path model"
COMMANDS = {
    "train": TRAIN,
    "train, overwriting": f"{TRAIN} --overwrite_output_dir",
    "train, resuming": f"{TRAIN} --resume_from_checkpoint latest",
    "predict": f"predict {MODEL} --images images --output_file out/answers.csv",
    "predict, tiles": f"predict {MODEL} --images images --output_file out/answers.csv --tiles",
    "evaluate": f"evaluate {MODEL} --test_dir images --output_dir out",
    "compare": "compare --models model twin --data_dir images --output_dir out",
    "probe": f"probe {MODEL} --test_dir images --output_dir out --max_samples 4",
    "embed": f"embed {MODEL} --images images --embeddings_file out/features.parquet",
    "saliency": f"saliency {MODEL} --images images --output_dir out --max_samples 1",
    "visualize_erf": f"visualize_erf {MODEL} --images images --output_dir out --image_size 64 --max_samples 1",
    "export, half": f"export {MODEL} --format half --output_file out/half",
    "export, torch": f"export {MODEL} --format torch_export --output_file out/m.pt2 --images images "
    "--max_check_samples 2",
    "convert_checkpoint": f"convert_checkpoint --checkpoint_path {PTH} --output_dir out/converted",
    "inspect_dataset": "inspect_dataset --train_dir images --output_dir out",
    "describe_dataset": "describe_dataset --train_dir images --output_file out/statistics.json",
    "make_split": "make_split --train_dir images --output_dir out",
    "preview_augmentation": "preview_augmentation --train_dir images --output_dir out --image_size 32 --num_examples 1",
    "benchmark": "benchmark --output_dir out --parts layers --variant nano --image_size 32 --batch_size 1 --repeats 1",
}
COMMANDS = {name: text.split() for name, text in COMMANDS.items()}


def hold_at_the_first_file() -> None:
    """Waits with the first file that is finished in `out`, until there is a file named `go`."""
    _hold(lambda target: "out" in Path(os.fspath(target)).absolute().parts)


def hold_in_the_run() -> None:
    """Waits with the first step of training: what is read before it is read."""
    _hold(lambda target: Path(os.fspath(target)).name == "split.csv")


def _hold(is_due) -> None:
    for name in ("rename", "replace"):
        setattr(os, name, _waiting(getattr(os, name), is_due))


def _waiting(function, is_due):
    def wrapper(source, target, **options):
        if is_due(target) and not Path("go").exists():
            _wait()
        return function(source, target, **options)

    return wrapper


def hold_at_the_first_image() -> None:
    """Waits with the first image that is opened, until there is a file named `go`."""
    from PIL import Image

    open_image = Image.open

    def wait(*arguments, **options):
        _wait()
        return open_image(*arguments, **options)

    Image.open = wait


def _wait() -> None:
    Path("held").touch()
    while not Path("go").exists():
        time.sleep(0.02)


def link_inputs(folder: Path, images: Path, model: Path) -> None:
    """Puts the images and the models that the commands name into a folder."""
    (folder / "images").symlink_to(images)
    for name in ("model", "twin"):
        shutil.copytree(model, folder / name)


def assert_clean(folder: Path) -> None:
    """Neither locks nor temporary files are left."""
    assert not [name for name in contents(folder) if ".lock" in name or ".tmp" in name or Path(name).name[0] == "."]
