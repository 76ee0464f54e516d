"""Flags that a run cannot work with are refused before it starts; others that look odd work."""

import json
import subprocess
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from faults import assert_sentence, assert_well, command, contents

LARGEST = 2**32 - 1


def train(folder: Path, images: Path, *flags: object, **options):
    words = [
        "train", "--train_dir", images, "--output_dir", folder / "run", "--variant", "tiny", "--image_size", 32,
        "--max_steps", 2, "--per_device_train_batch_size", 8, "--no_duplicate_check",
    ]  # fmt: skip
    return command([*words, *flags], folder, **options)


TRAINING = [
    ("--seed", -1), ("--seed", LARGEST + 1), ("--split_seed", -1), ("--split_seed", LARGEST + 1),
    ("--adam_epsilon", "nan"), ("--adam_epsilon", "inf"), ("--adam_epsilon", -1), ("--adam_epsilon", 0),
    ("--adam_epsilon", 1e-300), ("--learning_rate", 1e38), ("--learning_rate", "nan"), ("--learning_rate", "inf"),
    ("--learning_rate", -1), ("--weight_decay", 1e38), ("--weight_decay", "inf"), ("--max_grad_norm", "inf"),
    ("--max_grad_norm", "nan"), ("--crop_pct", 1e-6), ("--crop_pct", "nan"), ("--num_train_epochs", "inf"),
    ("--num_train_epochs", 1e300), ("--mixup_alpha", "inf"), ("--mixup_alpha", 1e38), ("--cutmix_alpha", "inf"),
    ("--hub_timeout", "nan"), ("--hub_timeout", -1), ("--hub_timeout", 1e300), ("--ddp_timeout", 10**30),
    ("--randaugment_num_ops", 10**9), ("--dataloader_num_workers", 10**9), ("--max_steps", 10**30),
    ("--per_device_train_batch_size", 10**30), ("--per_device_eval_batch_size", 10**30),
    ("--gradient_accumulation_steps", 10**30), ("--logging_steps", 10**30), ("--image_size", 10**30),
    ("--kernel_sizes", -1), ("--depths", 0), ("--hidden_sizes", -8), ("--warmup_steps", 10**30),
    ("--early_stopping_patience", 10**30), ("--save_total_limit", 10**30), ("--max_train_samples", 10**30),
    ("--warmup_ratio", "nan"), ("--label_smoothing_factor", "nan"), ("--ema_decay", "inf"), ("--layer_decay", "nan"),
    ("--drop_path_rate", "nan"), ("--cutout_size", 10**30), ("--min_crop_scale", "nan"),
    ("--run_name", ""), ("--hub_model_id", ""), ("--fold", ""), ("--fold", "1/0"), ("--fold", f"1/{10**30}"),
    ("--report_to", "tensorbord"), ("--report_to", ""), ("--report_to", "aim"), ("--report_to", "tensorboard aim"),
]  # fmt: skip


@pytest.mark.parametrize("flag, value", TRAINING, ids=lambda part: str(part)[:24])
def test_training_refuses_it_before_it_starts(images, tmp_path, flag, value):
    words = f"{value}".split() if flag == "--report_to" and value else [f"{value}"]
    outcome = train(tmp_path, images, *([f"{flag}={words[0]}"] if len(words) == 1 else [flag, *words]))
    assert_sentence(outcome, flag)
    assert not contents(tmp_path)


@pytest.mark.parametrize("share", [0.999, 0.98])
def test_a_random_split_without_training_images_is_refused(images, tmp_path, share):
    outcome = train(tmp_path, images, "--train_val_split", share, "--split_strategy", "random")
    assert_sentence(outcome, "--train_val_split")


@pytest.mark.parametrize("strategy", ["stratified", "grouped", "random", "mle_bench"])
@pytest.mark.parametrize("share", [1e-4, 1e-300])
def test_a_split_with_next_to_no_validation_works(images, tmp_path, share, strategy):
    assert_well(train(tmp_path, images, "--train_val_split", share, "--split_strategy", strategy))


@pytest.mark.parametrize("strategy", ["stratified", "grouped"])
def test_a_split_with_next_to_no_training_works(images, tmp_path, strategy):
    flags = ("--train_val_split", 0.9999, "--split_strategy", strategy, "--per_device_train_batch_size", 3)
    assert_well(train(tmp_path, images, *flags))


@pytest.mark.parametrize(
    "flags",
    [
        ("--max_eval_samples", 1), ("--max_train_samples", 8), ("--seed", LARGEST), ("--split_seed", LARGEST),
        ("--per_device_eval_batch_size", 1), ("--min_crop_scale", 1e-300), ("--crop_pct", 0.1),
        ("--cutout_size", 10_000), ("--mixup_alpha", 1e-300), ("--warmup_steps", 1_000_000), ("--drop_path_rate", 0.99),
        ("--per_device_train_batch_size", 1, "--image_size", 64), ("--max_grad_norm", 1e300),
        ("--per_device_train_batch_size", 1, "--image_size", 64, "--max_train_samples", 3, "--max_eval_samples", 1),
    ],
    ids=str,
)  # fmt: skip
def test_an_odd_value_works(images, tmp_path, flags):
    assert_well(train(tmp_path, images, *flags))


@pytest.mark.parametrize("flags", [(), ("--gradient_accumulation_steps", 8), ("--auto_find_batch_size",)], ids=str)
def test_a_batch_of_one_is_refused_where_a_map_is_one_pixel(images, tmp_path, flags):
    outcome = train(tmp_path, images, "--per_device_train_batch_size", 1, *flags)
    assert_sentence(outcome, "--per_device_train_batch_size of at least 2")


def test_a_batch_of_one_is_refused_where_a_map_is_one_pixel_at_first(images, tmp_path):
    flags = ("--per_device_train_batch_size", 1, "--image_size", 64, "--image_size_start", 32)
    assert_sentence(train(tmp_path, images, *flags), "--per_device_train_batch_size of at least 2")


def no_memory_for_more_than_one() -> None:
    import torch

    from seedling_hf.training import batch_size

    original = batch_size._try_step

    def short(arguments, model, size, *others):
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        original(arguments, model, size, *others)

    batch_size._try_step = short


def test_the_search_for_a_batch_stops_above_one_where_a_map_is_one_pixel(images, tmp_path):
    outcome = train(tmp_path, images, "--auto_find_batch_size", before=no_memory_for_more_than_one)
    assert_sentence(outcome, "expected memory for")


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_weights_that_grow_without_bound_are_reported(images, tmp_path, optim):
    outcome = train(
        tmp_path, images, "--learning_rate", 100, "--weight_decay", 1000, "--max_steps", 12, "--optim", optim
    )
    assert_sentence(outcome, "--learning_rate")


def with_a_tracker() -> None:
    from accelerate.tracking import GeneralTracker, on_main_process, register_tracker_class

    class Tracker(GeneralTracker):
        name, requires_logging_directory = "files", False

        @on_main_process
        def __init__(self, run_name: str, **_) -> None:
            super().__init__()
            self.run_name = run_name

        @property
        def tracker(self):
            return self

        def _write(self, kind: str, values) -> None:
            with open("tracked.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps([kind, self.run_name, values]) + "\n")

        def store_init_configuration(self, values: dict) -> None:
            assert all(isinstance(value, bool | int | float | str) for value in values.values())
            self._write("arguments", values)

        def log(self, values: dict, step=None, **_) -> None:
            self._write("values", values)

    register_tracker_class(Tracker)


def test_trackers_get_the_arguments_once(images, tmp_path):
    flags = ("--report_to", "files", "--logging_steps", 1, "--hidden_sizes", 32, 32, 32, 64)
    outcome = train(tmp_path, images, *flags, before=with_a_tracker)
    assert_well(outcome)
    lines = [json.loads(line) for line in (tmp_path / "tracked.jsonl").read_text(encoding="utf-8").splitlines()]
    arguments = [values for kind, _, values in lines if kind == "arguments"]
    assert len(arguments) == 1 and arguments[0]["learning_rate"] == 1e-3
    assert arguments[0]["hidden_sizes"] == "32 32 32 64" and "image_size_start" not in arguments[0]
    assert {name for _, name, _ in lines} == {"run"}
    assert sum("loss" in values for kind, _, values in lines if kind == "values") == 2


def with_a_tracker_that_does_not_start() -> None:
    from accelerate.tracking import GeneralTracker, register_tracker_class

    class Tracker(GeneralTracker):
        name, requires_logging_directory, tracker = "files", False, None

        def __init__(self, run_name: str, **_) -> None:
            raise RuntimeError("no API key\nconfigured")

    register_tracker_class(Tracker)


def test_a_tracker_that_does_not_start_is_named(images, tmp_path):
    outcome = train(tmp_path, images, "--report_to", "files", before=with_a_tracker_that_does_not_start)
    assert_sentence(outcome, "--report_to", "no API key configured")


def with_a_tracker_that_fails(kind: str, place: str) -> None:
    """A tracker that writes to a file or to a server at `place`, or fails in another way."""
    import time
    import urllib.request

    from accelerate.tracking import GeneralTracker, register_tracker_class

    class Tracker(GeneralTracker):
        name, requires_logging_directory, tracker = "files", False, None

        def __init__(self, run_name: str, **_) -> None:
            super().__init__()
            self.steps = []

        def log(self, values: dict, step=None, **_) -> None:
            self.steps.append(step)
            if kind == "disk":
                with open(place, "a") as file:
                    file.write(f"{values}" + " " * 4096)
            elif kind == "server":
                urllib.request.urlopen(place, data=f"{values}".encode(), timeout=5)
            elif kind == "slow":
                time.sleep(0.5)
                raise TimeoutError
            elif kind == "thread":
                threading.Thread(target=_fail).start()
                _fail()
            elif kind == "second" and len(self.steps) == 2:
                _fail()

        def finish(self) -> None:
            if kind == "end":
                _fail()

    class Other(Tracker):
        name = "others"

        def log(self, values: dict, step=None, **_) -> None:
            with open("tracked.txt", "a") as file:
                file.write(f"{step}\n")

        def finish(self) -> None:
            pass

    register_tracker_class(Tracker)
    register_tracker_class(Other)


def _fail() -> None:
    raise ValueError("the service said\n\x1b[31mno")


class Refusing(BaseHTTPRequestHandler):
    """A server that takes nothing."""

    def do_POST(self) -> None:
        self.send_error(503, "no room")

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def refusing():
    """The address of a server that refuses."""
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk)]
    mounted = subprocess.run(words, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a disk of its own needs the right to mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], capture_output=True)


def assert_trained_without_a_tracker(outcome, folder: Path, name: str, steps: int = 8) -> None:
    """The run is complete, and says twice that the tracker failed."""
    assert_well(outcome)
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [*range(1, steps + 1)]
    assert (folder / "run" / "report.json").exists() and (folder / "run" / "curves.png").exists()
    assert outcome.stderr.count(f"expected {name} to take") == 1
    assert outcome.stderr.count(f"{name} failed during this run") == 1
    assert "\x1b" not in outcome.stderr


@pytest.mark.parametrize("kind", ["disk", "server", "no server", "slow", "thread", "second", "end"])
def test_a_tracker_that_fails_does_not_end_the_run(images, tmp_path, refusing, small_disk, kind):
    place = {"disk": str(small_disk / "log"), "no server": "http://127.0.0.1:9/"}.get(kind, refusing)
    before = partial(with_a_tracker_that_fails, kind.removeprefix("no "), place)
    flags = ("--report_to", "files", "others", "--logging_steps", 1, "--max_steps", 8)
    outcome = train(tmp_path, images, *flags, before=before)
    assert_trained_without_a_tracker(outcome, tmp_path, "files")
    assert {f"{step}" for step in range(1, 9)} <= set((tmp_path / "tracked.txt").read_text().split())


def with_tensorboard_on(disk: str) -> None:
    from accelerate.tracking import TensorBoardTracker

    start = TensorBoardTracker.start

    def start_there(self) -> None:
        self.logging_dir_param = disk
        start(self)

    TensorBoardTracker.start = start_there


def test_a_full_disk_under_tensorboard_does_not_end_the_run(images, tmp_path, small_disk):
    pytest.importorskip("tensorboard")
    flags = ("--report_to", "tensorboard", "--logging_steps", 1, "--max_steps", 40)
    (small_disk / "fill").write_bytes(bytes(4096))  # the events fill the last page
    outcome = train(tmp_path, images, *flags, before=partial(with_tensorboard_on, str(small_disk)))
    assert_trained_without_a_tracker(outcome, tmp_path, "tensorboard", 40)


OTHERS = [
    ("evaluate --test_dir IMAGES --output_dir out", "--seed", -1),
    ("evaluate --test_dir IMAGES --output_dir out", "--seed", LARGEST + 1),
    ("evaluate --test_dir IMAGES --output_dir out", "--not_sure_accuracy", "nan"),
    ("evaluate --test_dir IMAGES --output_dir out", "--dataloader_num_workers", 10**9),
    ("probe --test_dir IMAGES --output_dir out", "--seed", LARGEST + 1),
    ("probe --test_dir IMAGES --output_dir out", "--max_samples", 10**30),
    ("compare --models MODEL MODEL2 --data_dir IMAGES --output_dir out", "--seed", LARGEST + 1),
    ("predict --images IMAGES", "--threshold", "nan"),
    ("predict --images IMAGES", "--top_k", 10**30),
    ("predict --images IMAGES", "--per_device_eval_batch_size", 10**30),
    ("predict --images IMAGES --tiles", "--min_plant_side", "inf"),
    ("embed --images IMAGES --embeddings_file e.parquet", "--top_k", 10**30),
    ("demo", "--threshold", "nan"),
    ("demo", "--port", 70_000),
    ("saliency --images IMAGES --output_dir out", "--max_samples", -(10**30)),
    ("visualize_erf --images IMAGES --untrained nano --output_dir out", "--seed", -1),
    ("visualize_erf --images IMAGES --untrained nano --output_dir out", "--seed", LARGEST + 1),
    ("visualize_erf --images IMAGES --untrained nano --output_dir out", "--image_size", 10**30),
    ("preview_augmentation --train_dir IMAGES --output_dir out", "--seed", LARGEST + 1),
    ("preview_augmentation --train_dir IMAGES --output_dir out", "--mixup_alpha", "inf"),
    ("make_split --train_dir IMAGES --output_dir out", "--split_seed", -1),
    ("benchmark --output_dir out", "--seed", -1),
    ("benchmark --output_dir out", "--num_threads", 10**9),
    ("benchmark --output_dir out --train_dir IMAGES --parts loading", "--cache_images", 0),
    ("export --images IMAGES --output_file x.onnx", "--tolerance", "nan"),
    ("export --images IMAGES --output_file x.onnx", "--tolerance", "inf"),
    ("convert_checkpoint --checkpoint_path x.pth --output_dir out", "--num_labels", 0),
    ("convert_checkpoint --checkpoint_path x.pth --output_dir out", "--image_size", -1),
    ("inspect_dataset --train_dir IMAGES --output_dir out", "--num_threads", 10**9),
    ("push_space --model_name_or_path a/b --hub_space_id a/c", "--threshold", "nan"),
    ("push_dataset --train_dir IMAGES --dataset_name a/b --license mit --dry_run", "--split_seed", -1),
]


@pytest.mark.parametrize("words, flag, value", OTHERS, ids=lambda part: str(part).split(" ")[0][:24])
def test_other_commands_refuse_it_before_they_start(images, model_dir, tmp_path, words, flag, value):
    names = {"IMAGES": images, "MODEL": model_dir, "MODEL2": "other"}
    outcome = command([*(names.get(word, word) for word in words.split()), f"{flag}={value}"], tmp_path)
    assert_sentence(outcome, flag)
    assert not contents(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "3", "", '{"model_type": 3}', '{"model_type": "replknet", "depths": "x"}'])
def test_a_push_of_a_folder_with_a_broken_config_is_refused(tmp_path, text):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(text)
    before = contents(tmp_path)
    assert_sentence(command(["push_to_hub", "--output_dir", "model", "--hub_model_id", "a/b"], tmp_path), "config.json")
    assert contents(tmp_path) == before
