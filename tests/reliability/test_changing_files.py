"""Images and output folders that change while a command runs."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from faults import assert_sentence, assert_well, command, contents
from PIL import Image

TRAIN = ["train", "--train_dir", "images", "--output_dir", "run", "--variant", "tiny", "--image_size", 32,
         "--per_device_train_batch_size", 8, "--eval_steps", 2, "--save_steps", 2, "--logging_steps", 1,
         "--max_steps", 6]  # fmt: skip


def vanish(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_text(path: Path) -> None:
    path.write_text("no image any more")


def become_a_bomb(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path, format="PNG")


def lose_its_end_in_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


CHANGES = [vanish, cut, empty, become_a_folder, become_text, become_a_bomb, lose_its_end_in_a_link]


@pytest.fixture
def folder(tmp_path, images, model_dir) -> Path:
    """A folder with images of its own, and a model."""
    shutil.copytree(images, tmp_path / "work" / "images")
    (tmp_path / "work" / "model").symlink_to(model_dir)
    return tmp_path / "work"


def an_image(folder: Path, number: int = 0) -> Path:
    return sorted((folder / "images").glob("*/*.jpg"))[number]


def split_apart(folder: Path) -> Path:
    """Moves some images of each class to val/; returns one of them."""
    for split, kept in (("train", slice(5, None)), ("val", slice(5))):
        for label in ("Black-grass", "Charlock", "Maize"):
            (folder / "split" / split / label).mkdir(parents=True)
            for file in sorted((folder / "images" / label).iterdir())[kept]:
                shutil.copyfile(file, folder / "split" / split / label / file.name)
    return sorted((folder / "split" / "val" / "Maize").iterdir())[2]


def at_call(module: str, name: str, number: int, change) -> None:
    """Has `change()` called before the call of a function of the package."""
    import importlib

    owner = importlib.import_module(module)
    *above, name = name.split(".")
    for part in above:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), []

    def changed(*args, **kwargs):
        calls.append(None)
        if len(calls) == number:
            change()
        return original(*args, **kwargs)

    setattr(owner, name, changed)


def when_training(number: int, change) -> None:
    at_call("seedling_hf.training.loop", "Training.optimization_step", number, change)


def when_saving(number: int, change) -> None:
    at_call("seedling_hf.training.loop", "Training.save_checkpoint", number, change)


def assert_named_and_resumed(folder: Path, words: list, path: Path, before) -> None:
    """A run under which the image at `path` is changed names it; once it is restored, the run goes on to its end."""
    content = path.read_bytes()
    outcome = command(words, folder, before=before)
    assert_sentence(outcome, path.name, "restore", "--resume_from_checkpoint latest")
    assert (folder / "run" / "checkpoints").is_dir()
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    assert_well(command([*words, "--resume_from_checkpoint", "latest"], folder))


# Training images


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_a_training_image_that_changes_is_named_and_the_run_can_resume(folder, change, workers):
    split_apart(folder)
    images = sorted((folder / "split" / "train").glob("*/*.jpg"))
    words = [*TRAIN, "--dataloader_num_workers", workers, "--max_steps", 12]
    words[words.index("images")] = "split"
    # Each image is read once in an epoch of five steps.
    assert_named_and_resumed(folder, words, images[3], partial(when_training, 4, partial(change, images[3])))


# Validation images


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_a_validation_image_that_changes_is_named_in_an_evaluation(folder, change, workers):
    path = split_apart(folder)
    words = [*TRAIN, "--dataloader_num_workers", workers]
    words[words.index("images")] = "split"
    assert_named_and_resumed(folder, words, path, partial(when_training, 4, partial(change, path)))


@pytest.mark.parametrize("change", CHANGES)
def test_a_validation_image_that_changes_is_named_in_the_report_at_the_end(folder, change):
    path = split_apart(folder)
    words = [*TRAIN]
    words[words.index("images")] = "split"
    assert_named_and_resumed(folder, words, path, partial(when_saving, 3, partial(change, path)))
    assert (folder / "run" / "report.html").exists()


def test_an_image_that_changes_before_the_gallery_of_the_report_is_named(folder):
    path = split_apart(folder)
    words = [*TRAIN]
    words[words.index("images")] = "split"
    everything = partial(empty_all, path.parent.parent)
    at = partial(at_call, "seedling_hf.training.output_dir", "write_report", 1, everything)
    assert_sentence(command(words, folder, before=at), ".jpg", "restore", "--resume_from_checkpoint latest")


def empty_all(root: Path) -> None:
    for file in root.glob("*/*.jpg"):
        file.write_bytes(b"")


# The output folder


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_an_output_folder_that_is_deleted_while_training_is_made_again(folder, number):
    outcome = command(TRAIN, folder, before=partial(when_training, number, partial(shutil.rmtree, folder / "run")))
    assert_well(outcome)
    run = folder / "run"
    for name in ("model.safetensors", "config.json", "metrics.jsonl", "report.html", "curves.png", "README.md",
                 "arguments.yaml", "split.csv", "train_results.json", "checkpoints"):  # fmt: skip
        assert (run / name).exists(), name
    assert (run / "metrics.jsonl").read_text().count('"loss"') == 6
    assert_well(command(["predict", "--model_name_or_path", "run", "--images", an_image(folder)], folder))
    assert_well(command([*TRAIN, "--resume_from_checkpoint", "latest"], folder))


@pytest.mark.parametrize("number", [1, 3])
def test_an_output_folder_that_is_deleted_at_a_save_is_made_again(folder, number):
    outcome = command(TRAIN, folder, before=partial(when_saving, number, partial(shutil.rmtree, folder / "run")))
    assert_well(outcome)
    assert (folder / "run" / "report.html").exists()


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "config.json", "model.safetensors"])
def test_a_part_of_the_output_folder_that_is_deleted_while_training_costs_nothing_else(folder, name):
    outcome = command(TRAIN, folder, before=partial(when_training, 6, partial(remove, folder / "run" / name)))
    assert_well(outcome)
    assert (folder / "run" / "report.html").exists()


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_an_output_folder_that_becomes_a_file_is_named(folder):
    outcome = command(TRAIN, folder, before=partial(when_training, 4, partial(become_a_file, folder / "run")))
    assert outcome.code in (2, 74) and "Traceback" not in outcome.stderr, outcome
    assert "run" in [line for line in outcome.stderr.splitlines() if line.startswith("error: ")][-1]


def become_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


@pytest.mark.parametrize("name", ["evaluate", "predict", "embed"])
def test_an_output_folder_that_is_deleted_while_predicting_is_made_again(folder, name):
    words = {
        "evaluate": ["evaluate", "--test_dir", "images", "--output_dir", "out"],
        "predict": ["predict", "--images", "images", "--output_file", "out/answers.csv"],
        "embed": ["embed", "--images", "images", "--embeddings_file", "out/features.parquet"],
    }[name]
    (folder / "out").mkdir()
    outcome = command(
        [*words, "--model_name_or_path", "model", "--per_device_eval_batch_size", 8], folder,
        before=partial(when_predicting, 2, partial(shutil.rmtree, folder / "out")),
    )  # fmt: skip
    if outcome.code == 0:
        assert_well(outcome)
        assert any((folder / "out").iterdir())
    else:
        assert outcome.code in (2, 74), outcome
        assert "out" in next(line for line in outcome.stderr.splitlines() if line.startswith("error: ")), outcome
        assert "Traceback" not in outcome.stderr, outcome


# Commands without training


def when_predicting(number: int, change) -> None:
    """The change comes before a batch goes through the model; the batches behind it are read later."""
    from seedling_hf.replknet import RepLKNetModel

    original, calls = RepLKNetModel.forward, []

    def changed(*args, **kwargs):
        calls.append(None)
        if len(calls) == number:
            change()
        return original(*args, **kwargs)

    RepLKNetModel.forward = changed


WORDS = {
    "evaluate": ["evaluate", "--test_dir", "images", "--output_dir", "out", "--per_device_eval_batch_size", 4],
    "compare": ["compare", "--models", "model", "other", "--data_dir", "images", "--output_dir", "out",
                "--per_device_eval_batch_size", 4],
    "probe": ["probe", "--test_dir", "images", "--output_dir", "out", "--per_device_eval_batch_size", 4,
              "--max_samples", 48],
    "embed": ["embed", "--images", "images", "--embeddings_file", "out.parquet", "--per_device_eval_batch_size", 4],
    "saliency": ["saliency", "--images", "images", "--output_dir", "out", "--per_device_eval_batch_size", 4],
    "export": ["export", "--format", "torch_export", "--output_file", "out.pt2", "--images", "images"],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", WORDS)
def test_an_image_that_changes_under_a_command_is_named(folder, name, change):
    shutil.copytree(folder / "model", folder / "other")
    path = an_image(folder, -1)
    words = [*WORDS[name], *([] if name == "compare" else ["--model_name_or_path", "model"])]
    before = set(contents(folder))
    outcome = command(words, folder, before=partial(when_predicting, 1, partial(change, path)))
    assert_sentence(outcome, path.name)
    left = {name for name in contents(folder) if name not in before and not name.startswith("out/")}
    assert not left, left


@pytest.mark.parametrize("name", ["evaluate", "embed"])
def test_an_image_that_changes_under_a_command_with_workers_is_named(folder, name):
    path = an_image(folder, -1)
    words = [*WORDS[name], "--model_name_or_path", "model", "--dataloader_num_workers", 2]
    outcome = command(words, folder, before=partial(when_predicting, 1, partial(cut, path)))
    assert_sentence(outcome, path.name)


@pytest.mark.parametrize("flags", [[], ["--skip_bad_images"]])
@pytest.mark.parametrize("change", CHANGES)
def test_an_image_that_changes_under_predict_is_listed_as_failed(folder, change, flags):
    path = an_image(folder, -1)
    words = ["predict", "--model_name_or_path", "model", "--images", "images", "--output_file", "out.csv",
             "--per_device_eval_batch_size", 4, *flags]  # fmt: skip
    outcome = command(words, folder, before=partial(when_predicting, 1, partial(change, path)))
    assert_well(outcome)
    assert path.name in outcome.stderr
    assert path.name in (folder / "out.failed.csv").read_text()
    assert (folder / "out.csv").read_text().count("\n") == 48


def test_a_calibration_image_of_int8_that_changes_is_named(folder):
    pytest.importorskip("onnxruntime")
    path = an_image(folder, -1)
    words = ["export", "--model_name_or_path", "model", "--output_file", "out.onnx", "--images", an_image(folder),
             "--int8", "--train_dir", "images"]  # fmt: skip
    at = partial(at_call, "seedling_hf.export.programs", "quantize_onnx", 1, partial(cut, path))
    assert_sentence(command(words, folder, before=at), path.name)
    assert not list(folder.glob("*out*"))


@pytest.mark.parametrize("change", [vanish, cut, become_a_folder])
def test_an_image_that_changes_while_the_data_are_read_is_named(folder, change):
    path = an_image(folder, -1)
    at = partial(at_call, "seedling_hf.data.duplicates", "fingerprint_images", 1, partial(change, path))
    assert_sentence(command([*TRAIN, "--split_strategy", "grouped"], folder, before=at), path.name)


@pytest.mark.parametrize("change", [vanish, cut, become_a_folder])
@pytest.mark.parametrize("words", [
    ["describe_dataset", "--train_dir", "images"],
    ["inspect_dataset", "--train_dir", "images", "--output_dir", "out"],
    ["make_split", "--train_dir", "images", "--output_dir", "out"],
    ["preview_augmentation", "--train_dir", "images", "--output_dir", "out"],
    ["push_dataset", "--train_dir", "images", "--dataset_name", "a/b", "--license", "mit", "--dry_run"],
], ids=lambda words: words[0])  # fmt: skip
def test_an_image_that_changes_after_it_was_checked_is_named(folder, words, change):
    path = an_image(folder)
    at = partial(at_call, "seedling_hf.data.pool", "ImagePool.build", 1, partial(change, path))
    if words[0] == "inspect_dataset":
        at = partial(at_call, "seedling_hf.data.inspection", "fingerprint_images", 1, partial(change, path))
    outcome = command(words, folder, before=at)
    if words[0] == "make_split" and change is cut:  # a file is copied as it is
        return assert_well(outcome)
    assert_sentence(outcome, path.name)
    return None


def test_a_class_folder_that_vanishes_under_a_run_is_named(folder):
    split_apart(folder)
    words = [*TRAIN, "--max_steps", 12]
    words[words.index("images")] = "split"
    gone = partial(shutil.rmtree, folder / "split" / "train" / "Maize")
    outcome = command(words, folder, before=partial(when_training, 2, gone))
    assert_sentence(outcome, os.path.join("Maize", ""), "--resume_from_checkpoint latest")
