"""Training with a Hub: what is pushed, that no fault harms the run, and that another machine can resume it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hub_client import FAULTS, LOAD, TOKENS, Client, clean
from local_hub import Fault, LocalHub
from sample import copy_sample

from seedling_hf.signals import RESUMABLE_EXIT_CODE

pytest_plugins = ("hub_fixtures",)

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("Charlock", "Maize", "Sugar beet")
FLAGS = {
    "variant": "tiny", "image_size": 32, "max_steps": 6, "eval_steps": 2, "save_steps": 2, "logging_steps": 1,
    "per_device_train_batch_size": 6, "learning_rate": 0.02, "ema_decay": 0.5, "drop_path_rate": 0.2,
}  # fmt: skip
HUB = {"push_to_hub": True, "hub_model_id": "alice/seedlings"}
MODEL = {
    "README.md", "config.json", "preprocessor_config.json", "model.safetensors", "configuration_replknet.py",
    "downsampling_conv.py", "image_processing_replknet.py", "large_kernel_conv.py", "large_kernel_triton.py",
    "modeling_replknet.py", "pointwise_conv.py", "arguments.yaml", "split.csv", "near_duplicates.json", "metrics.jsonl",
    "familiarity.safetensors", "handler.py", "requirements.txt",
}  # fmt: skip
REPORT = {
    "report.json", "report.md", "confusion_matrix.png", "reliability.png", "coverage_risk.png", "predictions.csv",
    "curves.png", "train_results.json"
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return copy_sample(tmp_path_factory.mktemp("data") / "images", CLASSES, slice(8))


@pytest.fixture(scope="module")
def plain(images, tmp_path_factory) -> Path:
    """A run without a Hub."""
    folder = tmp_path_factory.mktemp("plain")
    result = Client(None, folder / "home").train(**FLAGS, train_dir=images, output_dir=folder / "run").finish()
    assert result.returncode == 0, result.stdout
    return folder / "run"


def metrics(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]


def assert_same_run(folder: Path, other: Path) -> None:
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert metrics(folder) == metrics(other)


def test_a_launched_run_pushes_its_checkpoints_and_another_machine_resumes_it(
    client, images, plain, repository, tmp_path
):
    folder = tmp_path / "run"
    flags = FLAGS | HUB | {"hub_strategy": "checkpoint", "hub_tag": "v1", "train_dir": images, "output_dir": folder}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", *([] if value is True else [value]))]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", ROOT / "scripts" / "train.py"]
    result = subprocess.run(
        [*launch, *words], env=clean(client.environment), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert_same_run(folder, plain)
    # A save replaces a pending one, so some of the earlier ones may be missing.
    titles = repository.titles()
    saves = [f"Step {step}, epoch {step * 6 / 18:.2f}" for step in (2, 4, 6)]
    assert all(re.fullmatch(r"Step \d, epoch \d\.\d\d: accuracy 0\.\d{4} \((save|end)\)", title) for title in titles)
    assert [title.split(":")[0] for title in titles[:-1]] in ([*saves], saves[:2], saves[::2], saves[:1])
    assert titles[-1].startswith(saves[-1])
    assert titles[-1].endswith("(end)")
    checkpoint = {f"last-checkpoint/{path.name}" for path in (folder / "checkpoints" / "step-00000006").iterdir()}
    assert set(repository.tree()) == MODEL | REPORT | checkpoint
    assert repository.tags == {"v1": repository.head}
    assert not (folder / "hub_outbox").exists()
    assert_equal_logits(client, folder, tmp_path)

    first = [sha for sha, _ in repository.stored.history(repository.head)][-2]
    assert_resumes(client, first, images, plain, tmp_path / "elsewhere")


def assert_equal_logits(client: Client, folder: Path, tmp_path: Path) -> None:
    image = sorted((ROOT / "scripts" / "sample" / "seedlings" / "Maize").glob("*.jpg"))[0]
    elsewhere = Client(client.hub, tmp_path / "empty", fresh=True)
    result = elsewhere.python(LOAD, folder, "alice/seedlings", "v1", image)
    assert result.returncode == 0, result.stdout
    here, there = json.loads(result.stdout.split("REPORT")[1])
    assert here["logits"] == there["logits"]
    assert here["answers"] == there["answers"]


def assert_resumes(client: Client, commit: str, images: Path, plain: Path, folder: Path) -> None:
    """From the first push, another machine gets exactly the same result."""
    elsewhere = Client(client.hub, folder.with_name("empty home"))
    source = f"alice/seedlings@{commit}"
    result = elsewhere.train(
        **FLAGS, train_dir=images, output_dir=folder, resume_from_checkpoint=source
    ).finish()  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert "resumed at step 2 from" in result.stdout
    assert_same_run(folder, plain)


@pytest.mark.parametrize("strategy", ["end", "best", "every_save"])
def test_each_strategy_ends_with_the_complete_model_on_the_hub(client, images, plain, repository, tmp_path, strategy):
    folder = tmp_path / "run"
    result = client.train(**FLAGS, **HUB, hub_strategy=strategy, train_dir=images, output_dir=folder).finish()
    assert result.returncode == 0, result.stdout
    assert_same_run(folder, plain)
    assert set(repository.tree()) == MODEL | REPORT
    assert repository.read("model.safetensors") == (folder / "model.safetensors").read_bytes()
    events = {re.search(r"\((\w+)\)$", title)[1] for title in repository.titles()}
    assert events <= {"end": {"end"}, "best": {"best", "end"}, "every_save": {"save", "end"}}[strategy]


def test_a_failing_hub_does_not_harm_the_training(client, images, plain, repository, tmp_path):
    folder = tmp_path / "run"
    client.hub.faults.append(Fault(path="/commit/", method="POST", status=503))
    flags = FLAGS | HUB | {"hub_timeout": 1, "train_dir": images, "output_dir": folder}
    result = client.train(**flags).finish()
    assert result.returncode == 0, result.stdout
    assert_same_run(folder, plain)
    assert "push failed: the Hub answered 503: Injected fault; it is safe in" in result.stdout
    assert "the last push failed (" in result.stdout
    client.hub.faults.clear()
    assert client.command("push_to_hub", "--output_dir", folder).returncode == 0
    assert set(repository.tree()) == MODEL | REPORT
    assert repository.read("model.safetensors") == (plain / "model.safetensors").read_bytes()
    for path in folder.rglob("*"):
        assert not path.is_file() or not any(token.encode() in path.read_bytes() for token in TOKENS), path
    assert not any(token in result.stdout for token in TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 0], ids=["once", "always"])
@pytest.mark.parametrize(
    "answer", [{"status": 503}, {"status": 429}, {"drop": "request"}, {"drop": "response"}], ids=str
)
@pytest.mark.parametrize("where", FAULTS)
def test_no_fault_harms_the_training(client, images, plain, repository, tmp_path, where, answer, times):
    folder = tmp_path / "run"
    client.hub.faults.append(Fault(**FAULTS[where], **answer, times=times))
    flags = FLAGS | HUB | {"hub_strategy": "best", "hub_timeout": 5, "train_dir": images, "output_dir": folder}
    result = client.train(**flags).finish()
    assert result.returncode == 0, result.stdout
    assert_same_run(folder, plain)
    client.hub.faults.clear()
    late = client.command("push_to_hub", "--output_dir", folder)
    assert late.returncode == 0, late.stdout
    assert set(repository.tree()) == MODEL | REPORT
    assert repository.read("model.safetensors") == (plain / "model.safetensors").read_bytes()
    if not times:
        assert "seedling-hf push_to_hub --output_dir" in result.stdout


@pytest.mark.parametrize("strategy", ["checkpoint", "every_save", "best", "end"])
def test_a_checkpoint_that_waits_is_not_lost_when_a_run_is_resumed(client, images, repository, tmp_path, strategy):
    folder = tmp_path / "run"
    flags = FLAGS | HUB | {"hub_timeout": 1, "train_dir": images, "output_dir": folder, "max_steps": 4}
    nowhere = Client(None, tmp_path / "home")
    port = client.hub.port
    client.hub.stop()
    for chosen in ("checkpoint", strategy):
        resume = {"resume_from_checkpoint": "latest"}
        result = nowhere.train(**flags, **resume, hub_strategy=chosen).finish()
        assert result.returncode == 0, result.stdout
    with LocalHub(tmp_path / "hub", tokens=dict(TOKENS), port=port) as hub:
        repository.hub = hub
        late = Client(hub, tmp_path / "home").command("push_to_hub", "--output_dir", folder)
        assert late.returncode == 0, late.stdout
        assert json.loads(repository.read("last-checkpoint/manifest.json"))["step"] == 4
        checkpoint = {f"last-checkpoint/{path.name}" for path in (folder / "checkpoints" / "step-00000004").iterdir()}
        assert set(repository.tree()) == MODEL | REPORT | checkpoint
    assert not (folder / "hub_outbox").exists()


def test_a_missing_hub_is_one_warning(images, plain, tmp_path):
    folder = tmp_path / "run"
    flags = FLAGS | HUB | {"hub_timeout": 1, "train_dir": images, "output_dir": folder}
    result = Client(None, tmp_path / "home").train(**flags).finish()
    assert result.returncode == 0, result.stdout
    assert_same_run(folder, plain)
    assert result.stdout.count("the Hub cannot be reached (ConnectError") >= 1
    assert "; the run continues, and pushes wait in " in result.stdout
    assert "seedling-hf push_to_hub --output_dir" in result.stdout


def test_a_read_only_token_is_refused_before_the_first_step(client, images, tmp_path):
    reader = Client(client.hub, tmp_path / "home", "hf_reader_secret")
    result = reader.train(**FLAGS, **HUB, train_dir=images, output_dir=tmp_path / "run").finish()
    assert result.returncode == 2, result.stdout
    assert "error: expected a repository on the Hub to push to at alice/seedlings, found: the Hub" in result.stdout
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_interrupted_run_pushes_what_it_has_saved(client, images, repository, tmp_path):
    folder = tmp_path / "run"
    flags = (
        FLAGS | HUB | {"hub_strategy": "checkpoint", "max_steps": 10_000, "logging_steps": 1000, "save_steps": 10_000}
    )
    process = client.train(**flags, train_dir=images, output_dir=folder)
    process.wait_for("step     2  validation")
    os.kill(process.id, signal.SIGTERM)
    result = process.finish()
    assert result.returncode == RESUMABLE_EXIT_CODE, result.stdout
    (title,) = repository.titles()
    step = int(re.match(r"Step (\d+),", title)[1])
    assert json.loads(repository.read("last-checkpoint/manifest.json"))["step"] == step
    assert (folder / "checkpoints" / f"step-{step:08d}").is_dir()


def test_a_model_on_the_hub_is_fine_tuned_for_other_classes(client, images, tmp_path):
    pushed = client.train(**FLAGS, **HUB, hub_tag="v1", train_dir=images, output_dir=tmp_path / "run").finish()
    assert pushed.returncode == 0, pushed.stdout
    weeds = copy_sample(tmp_path / "weeds", ("Black-grass", "Cleavers"), slice(6))
    flags = {name: value for name, value in FLAGS.items() if name != "variant"}
    flags |= {"train_dir": weeds, "model_name_or_path": "alice/seedlings@v1"}
    refused = client.train(**flags, output_dir=tmp_path / "refused").finish()
    assert refused.returncode == 2
    assert "expected a model of 2 classes, found one of 3 in alice/seedlings" in refused.stdout
    result = client.train(**flags, output_dir=tmp_path / "tuned", ignore_mismatched_sizes=True).finish()
    assert result.returncode == 0, result.stdout
    assert "newly initialised: classifier.bias, classifier.weight" in result.stdout
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert "base_model: alice/seedlings\n" in card
