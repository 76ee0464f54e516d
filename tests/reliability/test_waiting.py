"""No command waits for ever: small /dev/shm, workers that die or hang, signals in a wait, files that are no files."""

import ctypes
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Container
from functools import partial
from pathlib import Path

import pytest
from faults import Outcome, Started, assert_sentence, assert_well, command
from held_commands import COMMANDS, assert_clean, hold_at_the_first_file, hold_at_the_first_image, link_inputs
from sample import SAMPLE, copy_sample

CLONE_NEWNS, MS_PRIVATE, MS_REC = 0x20000, 1 << 18, 1 << 14
STEPS = ["--max_steps", 3, "--eval_steps", 3, "--save_steps", 3, "--logging_steps", 1]
IMAGE_SIDE = 640  # two batches of eight are 79 MB


def _may_mount() -> bool:
    program = "unshare -m mount -t tmpfs -o size=4m tmpfs /dev/shm"
    return shutil.which("unshare") is not None and subprocess.run(program.split(), capture_output=True).returncode == 0


def _small_shm(size: str, method: str = "fork") -> None:
    """A tmpfs of `size` over /dev/shm, that this process alone sees; workers are started by `method`."""
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        lambda: libc.unshare(CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={size}".encode()),
    ):
        if call():
            raise OSError(ctypes.get_errno(), "cannot mount")
    multiprocessing.set_start_method(method, force=True)


def _full_shm() -> None:
    _small_shm("1m")
    full = os.open("/dev/shm/full", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="No space left"):
        while True:
            os.write(full, bytes(4096))


def _spawn() -> None:
    multiprocessing.set_start_method("spawn", force=True)


needs_mount = pytest.mark.skipif(not _may_mount(), reason="needs the right to mount a file system")


def train_words(images: Path, workers: int = 2, **further) -> list:
    values = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "image_size": 32} | further
    flags = [word for name, value in values.items() for word in (f"--{name}", value)]
    return ["train", "--train_dir", images, "--output_dir", "run", "--variant", "tiny", *STEPS, *flags,
            "--dataloader_num_workers", workers]  # fmt: skip


@pytest.fixture(scope="module")
def large_model(tmp_path_factory) -> Path:
    """A model whose batches are larger than a small /dev/shm."""
    from small_models import write_model

    folder = tmp_path_factory.mktemp("large")
    write_model(folder, SAMPLE, image_size=IMAGE_SIDE)
    return folder


@pytest.fixture(scope="module")
def species(tmp_path_factory) -> Path:
    """Class folders of the classes of the models."""
    from small_models import SPECIES

    return copy_sample(tmp_path_factory.mktemp("species") / "images", SPECIES, slice(4))


def words_of(name: str, images: Path, model: Path, workers: int) -> list:
    if name == "train":
        sizes = {"image_size": IMAGE_SIDE, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
        return train_words(images, workers, **sizes, max_steps=1, eval_steps=1, save_steps=1, max_eval_samples=6)
    common = ["--model_name_or_path", model, "--dataloader_num_workers", workers, "--per_device_eval_batch_size", 8]
    return [name, *common, *{
        "predict": ["--images", images, "--output_file", "answers.csv"],
        "evaluate": ["--test_dir", images, "--output_dir", "report"],
        "embed": ["--images", images, "--embeddings_file", "features.parquet"],
        "probe": ["--test_dir", images, "--output_dir", "probes", "--max_samples", 4],
    }[name]]  # fmt: skip


@needs_mount
@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "embed", "probe"])
@pytest.mark.parametrize("size", ["4m", "64m"])
def test_a_small_shm_does_not_matter(tmp_path, species, large_model, name, size):
    outcome = command(words_of(name, species, large_model, 2), tmp_path, before=partial(_small_shm, size), timeout=60)
    assert_well(outcome)


@needs_mount
@pytest.mark.parametrize("name", ["train", "evaluate", "predict"])
def test_a_small_shm_does_not_matter_to_spawned_workers(tmp_path, species, large_model, name):
    before = partial(_small_shm, "4m", "spawn")
    assert_well(command(words_of(name, species, large_model, 1), tmp_path, before=before, timeout=90))


@needs_mount
@pytest.mark.parametrize("name", ["train", "evaluate", "predict"])
def test_with_a_full_shm_the_process_loads_its_images_itself(tmp_path, species, large_model, name):
    outcome = command(words_of(name, species, large_model, 2), tmp_path, before=_full_shm, timeout=60)
    assert_well(outcome)


@needs_mount
def test_two_processes_share_a_small_shm(tmp_path, images):
    words = train_words(images, 2, image_size=IMAGE_SIDE, max_steps=1, eval_steps=1, max_eval_samples=6)
    assert_well(command(words, tmp_path, before=partial(_small_shm, "4m"), num_processes=2, timeout=90))


# Workers that die or hang


def children_of(started: Started, rank: int = 0) -> list[int]:
    pid = started.processes[rank].pid
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def workers_of(started: Started, rank: int = 0) -> list[int]:
    """The processes of the workers; there are other children, of the libraries."""
    try:
        return [child for child in children_of(started, rank) if "pt_data" in Path(f"/proc/{child}/comm").read_text()]
    except FileNotFoundError:
        return []


def steps_done(folder: Path) -> int:
    metrics = folder / "run" / "metrics.jsonl"
    return metrics.read_text().count('"loss"') if metrics.exists() else 0


LONG = {"max_steps": 100_000, "eval_steps": 100_000, "save_steps": 2}


def started_training(tmp_path: Path, images: Path, workers: int = 2, steps: int = 3, **further) -> Started:
    started = Started(train_words(images, workers, **LONG | further), tmp_path, num_processes=further.pop("n", 1))
    started.wait_for(lambda: steps_done(tmp_path) >= steps)
    return started


def assert_resumes(tmp_path: Path, images: Path) -> None:
    """The last checkpoint is whole: the run goes on from it for one step."""
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    last = int(saved[-1].name.split("-")[1])
    settings = {"max_steps": last + 1, "eval_steps": 100_000, "save_steps": 2}
    words = train_words(images, 0, **settings)
    resumed = command([*words, "--resume_from_checkpoint", "latest", "--allow_changed_arguments"], tmp_path)
    assert_well(resumed)
    assert f"resumed at step {last}" in resumed.stdout + resumed.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_worker_that_dies_is_a_sentence_and_the_checkpoint_is_whole(tmp_path, images, number):
    started = started_training(tmp_path, images)
    os.kill(workers_of(started)[0], number)
    killed = time.monotonic()
    outcome = started.finish(30)
    assert_sentence(outcome, number.name, "--dataloader_num_workers", "--resume_from_checkpoint latest")
    assert time.monotonic() - killed < 10
    assert_resumes(tmp_path, images)


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_a_worker_that_dies_ends_other_commands_with_a_sentence(tmp_path, species, model_dir, name):
    # A thousand images take long enough.
    folder = tmp_path / "many"
    for label in species.iterdir():
        (folder / label.name).mkdir(parents=True)
        for number in range(250):
            (folder / label.name / f"{number}.jpg").symlink_to(next(label.iterdir()))
    started = Started(words_of(name, folder, model_dir, 2), tmp_path)
    started.wait_for(lambda: len(workers_of(started)) == 2)
    os.kill(workers_of(started)[0], signal.SIGKILL)
    assert_sentence(started.finish(60), "SIGKILL", "--dataloader_num_workers")


def _assert_all_say(outcome: Outcome, part: str, count: int) -> None:
    sentences = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert outcome.code == 2 and "Traceback" not in outcome.stderr + outcome.stdout, outcome
    assert len(sentences) == count and all(part in sentence for sentence in sentences), outcome


def test_a_worker_that_dies_ends_both_processes_with_its_sentence(tmp_path, images):
    started = Started(train_words(images, 1, **LONG), tmp_path, num_processes=2)
    started.wait_for(lambda: steps_done(tmp_path) >= 3)
    os.kill(workers_of(started, rank=1)[0], signal.SIGKILL)
    killed = time.monotonic()
    _assert_all_say(started.finish(60), "SIGKILL", 1)
    assert time.monotonic() - killed < 10


def test_an_image_that_cannot_be_read_by_one_process_ends_both(tmp_path, images):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    started = Started(train_words(folder, 1, **LONG), tmp_path, num_processes=2)
    started.wait_for(lambda: steps_done(tmp_path) >= 3)
    shutil.rmtree(folder / "Maize")
    _assert_all_say(started.finish(60), "Maize", 1)


# Signals in a wait


def stop_workers(started: Started, rank: int = 0) -> None:
    for worker in workers_of(started, rank):
        os.kill(worker, signal.SIGSTOP)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_in_a_wait_is_obeyed_and_the_state_saved(tmp_path, images, number):
    started = started_training(tmp_path, images)
    stop_workers(started)
    time.sleep(1)  # until what the workers had made is used up
    done, sent = steps_done(tmp_path), time.monotonic()
    started.send(number)
    outcome = started.finish(30)
    assert outcome.code == 75 and "Traceback" not in outcome.stderr, outcome
    assert time.monotonic() - sent < 4  # two seconds, on a machine that does other things too
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:08d}").exists()
    assert_resumes(tmp_path, images)


def test_a_signal_to_one_process_stops_both_while_the_other_waits(tmp_path, images):
    started = Started(train_words(images, 1, **LONG), tmp_path, num_processes=2)
    started.wait_for(lambda: steps_done(tmp_path) >= 3)
    stop_workers(started, rank=1)
    time.sleep(1)
    sent = time.monotonic()
    started.send(signal.SIGTERM)
    outcome = started.finish(30)
    assert outcome.code == 75 and "Traceback" not in outcome.stderr, outcome
    assert time.monotonic() - sent < 5


def test_sigterm_for_all_processes_of_a_group_is_one_orderly_stop(tmp_path, images):
    started = started_training(tmp_path, images)
    os.killpg(started.processes[0].pid, signal.SIGTERM)  # as schedulers do: workers die of it
    outcome = started.finish(30)
    assert outcome.code == 75 and "Traceback" not in outcome.stderr, outcome
    assert "error" not in outcome.stderr
    assert_resumes(tmp_path, images)


def _slow_evaluation() -> None:
    from seedling_hf.data.transforms import EvalTransform

    make = EvalTransform.__call__

    def slowly(self, image):
        is_image = getattr(image, "size", None) != (64, 48)  # not the pattern by which a processor is tried
        time.sleep(60 if is_image and os.path.exists("slow") else 0)
        return make(self, image)

    EvalTransform.__call__ = slowly


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_while_an_evaluation_waits_is_obeyed_and_the_evaluation_is_made_up_for(tmp_path, images, workers):
    settings = {"max_steps": 4, "eval_steps": 2, "save_steps": 4}
    words = train_words(images, workers, **settings)
    whole = tmp_path / "whole"
    whole.mkdir()
    assert_well(command(words, whole))
    (tmp_path / "slow").touch()
    started = Started(words, tmp_path, before=_slow_evaluation)
    started.wait_for(lambda: steps_done(tmp_path) >= 2)
    time.sleep(1)
    sent = time.monotonic()
    started.send(signal.SIGTERM)
    outcome = started.finish(30)
    assert outcome.code == 75 and "Traceback" not in outcome.stderr, outcome
    assert time.monotonic() - sent < 4
    assert_well(command([*words, "--resume_from_checkpoint", "latest"], tmp_path))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (whole / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_while_predict_waits_is_obeyed(tmp_path, images, model_dir, number, workers):
    (tmp_path / "slow").touch()
    started = Started(words_of("predict", images, model_dir, workers), tmp_path, before=_slow_evaluation)
    started.wait_for(lambda: (tmp_path / "answers.csv.partial" / "answers-00000.jsonl").exists())
    time.sleep(1)
    sent = time.monotonic()
    started.send(number)
    outcome = started.finish(30)
    assert outcome.code == 75 and "Traceback" not in outcome.stderr, outcome
    assert time.monotonic() - sent < 4
    (tmp_path / "slow").unlink()
    assert_well(command(words_of("predict", images, model_dir, workers), tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["evaluate", "embed"])
def test_a_signal_while_other_commands_wait_ends_them_at_once(tmp_path, species, model_dir, number, name):
    (tmp_path / "slow").touch()
    started = Started(words_of(name, species, model_dir, 2), tmp_path, before=_slow_evaluation)
    started.wait_for(lambda: len(workers_of(started)) == 2)
    time.sleep(1)
    sent = time.monotonic()
    started.send(number)
    outcome = started.finish(30)
    assert_ended(outcome, number)
    assert time.monotonic() - sent < 4


def assert_ended(outcome: Outcome, number: int, codes: Container[int] = ()) -> None:
    """A signal ended the command: with one word, and its own exit code or one of `codes`."""
    assert outcome.code == 128 + number or outcome.code in codes, outcome
    assert "Traceback" not in outcome.stderr and "Exception ignored" not in outcome.stderr, outcome
    if outcome.code == 128 + number:
        word = "interrupted" if number == signal.SIGINT else "terminated"
        assert outcome.stderr.splitlines()[-1] == word and outcome.stderr.splitlines().count(word) == 1, outcome


MOMENTS = {"reading": hold_at_the_first_image, "writing": hold_at_the_first_file}
READS_NO_IMAGES = {"export, half", "convert_checkpoint", "benchmark"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("name", "moment"),
    [(name, m) for name in COMMANDS for m in MOMENTS if m == "writing" or name not in READS_NO_IMAGES],
)
def test_a_signal_ends_every_command_and_leaves_nothing_temporary(tmp_path, images, model_dir, name, moment, number):
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    link_inputs(work, images, model_dir)
    started = Started(COMMANDS[name], work, before=MOMENTS[moment], environment={"TMPDIR": str(temporary)})
    started.wait_for((work / "held").exists)
    sent = time.monotonic()
    started.send(number)
    outcome = started.finish(60)
    assert_ended(outcome, number, codes=[75] if name.startswith(("train", "predict")) else [])
    assert time.monotonic() - sent < 4
    assert_clean(work / "out")
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("name", ["train", "predict", "evaluate", "embed"])
def test_ctrl_c_reaches_workers_too_and_none_of_them_complains(tmp_path, species, model_dir, name, method):
    words = train_words(species, 2, **LONG) if name == "train" else words_of(name, species, model_dir, 2)
    started = Started(words, tmp_path, before=_spawn if method == "spawn" else _slow_evaluation)
    (tmp_path / "slow").touch()
    started.wait_for(lambda: len(children_of(started)) >= 2)
    time.sleep(0.3)  # spawned ones still import then
    os.killpg(started.processes[0].pid, signal.SIGINT)
    assert_ended(started.finish(60), signal.SIGINT, codes=[75])


def test_a_watch_that_waits_for_an_image_ends_at_a_signal(tmp_path, species, model_dir):
    for image in species.glob("*/*"):
        os.utime(image, (1e9, 1e9))  # writing has ended long ago
    words = [*words_of("predict", species, model_dir, 2), "--watch"]
    started = Started(words, tmp_path, before=hold_at_the_first_image)
    started.wait_for((tmp_path / "held").exists)
    sent = time.monotonic()
    started.send(signal.SIGTERM)
    assert_well(started.finish(30))
    assert time.monotonic() - sent < 4


def test_an_echo_of_the_signal_does_not_disturb_what_follows(tmp_path, images):
    started = started_training(tmp_path, images)
    for _ in range(8):  # a scheduler, a launcher and a shell
        started.send(signal.SIGTERM)
        time.sleep(0.1)
        if not started.processes[0].is_alive():
            break
    outcome = started.finish(30)
    assert outcome.code == 75 and "Traceback" not in outcome.stderr, outcome


# Files that are no files


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))  # /dev/zero never ends


def put(kind: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "terminal":
        path.symlink_to("/dev/tty")
    else:
        folder = os.open(path.parent, os.O_RDONLY)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


KINDS = ["pipe", "device", "socket", "terminal"]


def assert_named(outcome: Outcome, name: str) -> None:
    """Refused or counted, but named."""
    assert outcome.code in (0, 2), outcome
    assert name in outcome.stderr + outcome.stdout
    if outcome.code == 2:
        assert_sentence(outcome, name)
    else:
        assert_well(outcome)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["train", "predict", "evaluate"])
def test_what_is_no_regular_file_is_no_image(tmp_path, images, species, model_dir, kind, name):
    folder = tmp_path / "images"
    shutil.copytree(images if name == "train" else species, folder)
    put(kind, folder / "Maize" / "odd.jpg")
    words = train_words(folder, 0) if name == "train" else words_of(name, folder, model_dir, 0)
    assert_named(command(words, tmp_path, timeout=40, before=_limit_memory), "odd.jpg")


READERS = {
    "describe_dataset": ["--train_dir", "images"],
    "inspect_dataset": ["--train_dir", "images", "--output_dir", "out"],
    "make_split": ["--train_dir", "images", "--output_dir", "out"],
    "preview_augmentation": ["--train_dir", "images", "--output_dir", "out"],
    "embed": ["--images", "images", "--embeddings_file", "features.parquet"],
    "compare": ["--models", "model", "other", "--data_dir", "images", "--output_dir", "out"],
    "probe": ["--test_dir", "images", "--output_dir", "out"],
    "visualize_erf": ["--images", "images", "--model_name_or_path", "model", "--output_dir", "out"],
    "export": [
        "--model_name_or_path",
        "model",
        "--output_file",
        "m.pt2",
        "--format",
        "torch_export",
        "--eval_dir",
        "images",
    ],
}


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", READERS)
def test_no_command_waits_for_a_pipe_among_images(tmp_path, species, model_dir, kind, name):
    shutil.copytree(species, tmp_path / "images")
    for copy in ("model", "other"):
        shutil.copytree(model_dir, tmp_path / copy)
    put(kind, tmp_path / "images" / "Maize" / "odd.jpg")
    outcome = command([name, *READERS[name]], tmp_path, timeout=60, before=_limit_memory)
    if name == "inspect_dataset":  # its exit code says that there are findings
        assert outcome.code == 1 and "odd.jpg" in (tmp_path / "out" / "inspection.json").read_text(), outcome
    else:
        assert_named(outcome, "odd.jpg")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_watch_names_a_pipe_and_goes_on(tmp_path, species, model_dir, kind):
    folder = tmp_path / "images"
    shutil.copytree(species, folder)
    put(kind, folder / "Charlock" / "odd.jpg")
    os.utime(folder / "Charlock" / "odd.jpg", (1e9, 1e9), follow_symlinks=False)  # writing has ended long ago
    started = Started([*words_of("predict", folder, model_dir, 0), "--watch"], tmp_path)
    answers = tmp_path / "answers.csv"
    started.wait_for(lambda: answers.exists() and answers.read_text().count("\n") == 17)
    time.sleep(0.5)
    started.send(signal.SIGTERM)
    outcome = started.finish(30)
    assert_well(outcome)
    assert "odd.jpg" in outcome.stderr


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_an_image_that_becomes_a_pipe_in_the_run_is_a_sentence(tmp_path, images, kind, workers):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    started = Started(train_words(folder, workers, **LONG), tmp_path)
    started.wait_for(lambda: steps_done(tmp_path) >= 3)
    for image in folder.glob("Maize/*"):
        put(kind, image)
    assert_sentence(started.finish(30), "Maize", "--resume_from_checkpoint latest")


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("file", ["latest", "state.json", "model.safetensors", "metrics.jsonl"])
def test_state_that_is_no_file_is_not_waited_for(tmp_path, images, kind, file):
    words = train_words(images, 0)
    assert_well(command(words, tmp_path))
    found = sorted((tmp_path / "run").rglob(file))
    for path in found:
        put(kind, path)
    words += ["--resume_from_checkpoint", "latest"]
    resumed = command(words, tmp_path, timeout=40, before=_limit_memory)
    assert resumed.code in (0, 2) and "Traceback" not in resumed.stderr, resumed


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_model_folder_with_something_else_than_files_is_a_sentence(tmp_path, model_dir, species, kind, file):
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    put(kind, folder / file)
    words = words_of("predict", species, folder, 0)
    assert_sentence(command(words, tmp_path, timeout=40, before=_limit_memory), file)


INPUTS = {
    "recipe": ["train", "--config", "odd", "--output_dir", "run"],
    "split file": [*map(str, train_words(Path("images"), 0)), "--split_file", "odd"],
    "labels": [*map(str, train_words(Path("images"), 0)), "--label_file", "odd"],
    "predictions": ["inspect_dataset", "--train_dir", "images", "--output_dir", "out", "--predictions", "odd"],
    "query": ["embed", "--embeddings_file", "features.parquet", "--query", "odd"],
    "table": ["embed", "--embeddings_file", "odd", "--query", "image.jpg"],
    "teacher": [*map(str, train_words(Path("images"), 0)), "--teacher_model_name_or_path", "odd"],
    "start": ["train", "--train_dir", "images", "--output_dir", "run", "--model_name_or_path", "odd"],
    "checkpoint": [*map(str, train_words(Path("images"), 0)), "--resume_from_checkpoint", "odd"],
    "output": ["predict", "--images", "images", "--output_file", "odd"],
    "watched output": ["predict", "--images", "images", "--output_file", "odd", "--watch"],
    "training images": ["train", "--train_dir", "odd", "--output_dir", "run", "--variant", "tiny"],
    "converted weights": ["convert_checkpoint", "--checkpoint_path", "odd", "--output_dir", "model"],
    "one image": ["predict", "--images", "odd"],
    "model": ["predict", "--model_name_or_path", "odd", "--images", "images"],
}


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", INPUTS)
def test_an_input_that_is_no_regular_file_is_a_sentence(tmp_path, images, kind, name):
    put(kind, tmp_path / "odd")
    (tmp_path / "images").symlink_to(images)
    shutil.copyfile(next((images / "Maize").iterdir()), tmp_path / "image.jpg")
    (tmp_path / "features.parquet").touch()
    assert_sentence(command(INPUTS[name], tmp_path, timeout=30, before=_limit_memory), "odd")


# Too many workers


@pytest.mark.skipif(os.cpu_count() > 200, reason="a thousand workers are not too many here")
@pytest.mark.parametrize("name", ["train", "predict", "evaluate", "embed", "probe"])
def test_a_thousand_workers_are_as_many_as_the_machine_can_use(tmp_path, species, model_dir, name):
    words = train_words(species, 1000, max_steps=1) if name == "train" else words_of(name, species, model_dir, 1000)
    outcome = command(words, tmp_path, before=_count_workers, timeout=110)
    assert_well(outcome)
    assert outcome.stderr.count("is more than this machine can use") == 1, outcome
    assert all(int(number) <= 800 for number in (tmp_path / "workers.txt").read_text().split())


def test_two_processes_share_what_the_machine_can_use(tmp_path, images):
    words = train_words(images, 1000, max_steps=1)
    outcome = command(words, tmp_path, before=_count_workers, num_processes=2, timeout=90)
    assert_well(outcome)
    assert outcome.stderr.count("shared by 2 processes") == 1, outcome


# Workers that persist


def _count_workers() -> None:
    from torch.utils.data import dataloader

    start = dataloader._MultiProcessingDataLoaderIter.__init__

    def counted(self, loader):
        start(self, loader)
        with open("workers.txt", "a") as file:
            file.write(f"{loader.num_workers}\n")

    dataloader._MultiProcessingDataLoaderIter.__init__ = counted


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_persist_and_losses_are_those_without_workers(tmp_path, images, method):
    settings = {"max_steps": 17, "eval_steps": 3, "save_steps": 100, "image_size": 48, "image_size_start": 32,
                "mixup_prob": 0.7}  # fmt: skip
    runs = {}
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        before = _count_workers if method == "fork" else _spawn
        assert_well(command(train_words(images, workers, **settings), folder, before=before, timeout=120))
        runs[workers] = (folder / "run" / "metrics.jsonl").read_text()
    assert runs[0] == runs[2]
    if method == "fork":  # for training, for all evaluations, and for the report of the saved model
        assert (tmp_path / "2" / "workers.txt").read_text() == "2\n2\n2\n"
