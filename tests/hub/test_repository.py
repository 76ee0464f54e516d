"""Pushes during a run, whatever the Hub does; every client is a real process of its own."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from hub_client import FAULTS, LOAD, TOKENS, Client, Repository, wait_until
from local_hub import Fault, LocalHub
from safetensors.torch import load_file, save_file

from seedling_hf.commands import push_to_hub
from seedling_hf.commands import run as run_command
from seedling_hf.hub.endpoint import MARK, endpoint_files
from seedling_hf.replknet import (
    RepLKNetBackbone,
    RepLKNetConfig,
    RepLKNetForImageClassification,
    RepLKNetImageProcessor,
    RepLKNetModel,
)

pytest_plugins = ("hub_fixtures",)

CODE = {
    "configuration_replknet.py", "downsampling_conv.py", "image_processing_replknet.py", "large_kernel_conv.py",
    "large_kernel_triton.py", "modeling_replknet.py", "pointwise_conv.py",
}  # fmt: skip
ENDPOINT = {"handler.py", "requirements.txt"}
MODEL_FILES = {"README.md", "config.json", "preprocessor_config.json", "model.safetensors", "metrics.jsonl"}
MODEL_FILES |= CODE | ENDPOINT
CHECKPOINT_FILES = {"last-checkpoint/model.safetensors", "last-checkpoint/state.json", "last-checkpoint/manifest.json"}
# A loop like that of the training, with the real pusher: each save is new weights, a line of metrics and a checkpoint.
RUN = """
import json, logging, os, shutil, sys, time
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file, save_file
from seedling_hf.commands import run

def main(argv):
    from seedling_hf.hub.pusher import HubPusher

    folder, repo_id, options = Path(argv[0]), argv[1], json.loads(argv[2])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    HubPusher.first_delay_s = options.get("delay", 30)
    pusher = HubPusher(folder, repo_id, **options.get("pusher", {}))
    pusher.preflight()
    weights = load_file(folder / "model.safetensors")
    slowest = 0.0
    for step in range(options.get("first_step", 1), options.get("first_step", 1) + options.get("saves", 1)):
        weights["classifier.bias"] = np.full_like(weights["classifier.bias"], step)
        save_file(weights, folder / ".tmp", metadata={"format": "pt"})
        os.replace(folder / ".tmp", folder / "model.safetensors")
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "epoch": step / 2, "eval_accuracy": 0.5}) + "\\n")
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        shutil.copy(folder / "model.safetensors", checkpoint)
        (checkpoint / "state.json").write_text(json.dumps({"step": step}))
        (checkpoint / "manifest.json").write_text(json.dumps({"step": step}))
        started = time.perf_counter()
        metrics = {"accuracy": 0.5}
        if step % 2:
            pusher.stage("best", step=step, epoch=step / 2, metrics=metrics)
        pusher.stage("save", step=step, epoch=step / 2, metrics=metrics, checkpoint=checkpoint)
        slowest = max(slowest, time.perf_counter() - started)
        print(f"SAVED {step}", flush=True)
        while options.get("wait") and (folder / "hub_outbox").exists():
            time.sleep(0.02)
    while "wait_for" in options and not Path(options["wait_for"]).exists():
        time.sleep(0.02)
    (folder / "curves.png").write_text("curves")
    pusher.stage("end", step=step, epoch=step / 2, metrics=metrics)
    pusher.finish()
    print(f"SLOWEST {slowest:.3f}")
    print("DONE")

sys.exit(run(main, sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "seedlings"
    torch.manual_seed(0)
    id2label = {0: "Charlock", 1: "Maize"}
    config = RepLKNetConfig.from_variant("tiny", id2label=id2label, label2id={v: k for k, v in id2label.items()})
    RepLKNetForImageClassification(config).save_pretrained(folder)
    RepLKNetImageProcessor.from_variant("tiny", image_size=64).save_pretrained(folder)
    for other in (".DS_Store", "optimizer.bin", "notes.txt", "other.py"):
        (folder / other).write_text("not for the Hub")
    return folder


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "run"))


def damage(path: Path, name: str = "classifier.bias") -> None:
    weights = load_file(path)
    (found,) = (key for key in weights if key.endswith(name))
    weights[found][0] = torch.nan
    path.unlink()  # it is linked to the run's own
    save_file(weights, path, metadata={"format": "pt"})


def run(client: Client, folder: Path, repo_id: str = "alice/seedlings", **options):
    return client.python(RUN, folder, repo_id, json.dumps(options))


def bias(repository: Repository, folder: Path, revision: str = "main") -> float:
    """The step that the run wrote into the weights."""
    copy = folder.parent / "copy.safetensors"
    copy.write_bytes(repository.read("model.safetensors", revision))
    return load_file(copy)["classifier.bias"][0].item()


def assert_hub_has(repository: Repository, folder: Path, *, without: set[str] = frozenset()) -> None:
    """Each file of the run is on the Hub as it is in the folder, except the card, which names its repository."""
    expected = {"curves.png", *MODEL_FILES} - without
    assert set(repository.tree()) == expected
    here = {name: folder / name for name in expected - {"README.md"} - ENDPOINT} | endpoint_files(folder)
    assert {name for name, path in here.items() if repository.read(name) != path.read_bytes()} == set()


def pending(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("hub_outbox/*"))


# What is pushed, and when


@pytest.mark.parametrize(
    ("strategy", "events"),
    [
        ("end", ["Step 3 (end)"]),
        ("best", ["Step 1 (best)", "Step 3 (best)", "Step 3 (end)"]),
        ("every_save", ["Step 1 (save)", "Step 2 (save)", "Step 3 (save)", "Step 3 (end)"]),
        ("checkpoint", ["Step 1 (save)", "Step 2 (save)", "Step 3 (save)", "Step 3 (end)"]),
    ],
)
def test_a_strategy_makes_one_commit_at_each_of_its_events(client, folder, repository, strategy, events):
    result = run(client, folder, saves=3, wait=True, pusher={"strategy": strategy, "tag": "v1"})
    assert result.returncode == 0, result.stdout
    assert [re.sub(r", epoch .*: accuracy 0.5000", "", title) for title in repository.titles()] == events
    checkpoint = CHECKPOINT_FILES if strategy == "checkpoint" else set()
    assert set(repository.tree()) == MODEL_FILES | checkpoint | {"curves.png"}
    assert repository.tags == {"v1": repository.head}
    assert bias(repository, folder) == 3
    assert not (folder / "hub_outbox").exists()


def test_a_newer_save_replaces_a_pending_one(client, folder, repository):
    client.hub.faults.append(Fault(path="/commit/", status=403))
    result = run(client, folder, saves=4, pusher={"timeout_s": 20})
    assert result.returncode == 0
    assert pending(folder) == ["000005-step-00000004-end"]
    assert repository.titles() == []


def test_a_snapshot_does_not_change_with_the_run(client, folder, repository):
    # The first push is delayed until the second save has replaced the weights.
    client.hub.faults.append(Fault(path="/preupload/", delay=1, times=1))
    result = run(client, folder, saves=2)
    assert result.returncode == 0, result.stdout
    assert repository.titles()[0] == "Step 1, epoch 0.50: accuracy 0.5000 (save)"
    history = [sha for sha, _ in repository.stored.history(repository.head)]
    assert [bias(repository, folder, sha) for sha in history[-2::-1]] == [1, 2]


def test_other_files_of_the_folder_are_not_pushed(client, folder, repository):
    result = client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
    assert result.returncode == 0, result.stdout
    assert set(repository.tree()) == MODEL_FILES - {"metrics.jsonl"}


def test_a_handler_that_people_wrote_on_the_hub_stays(client, folder, repository):
    push = ("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
    (folder / "handler.py").write_text("class EndpointHandler: ...  # by Alice\n")
    assert client.command(*push).returncode == 0
    (folder / "handler.py").unlink()
    (folder / "metrics.jsonl").write_text('{"step": 1, "epoch": 1.0}\n')
    later = client.command(*push)
    assert later.returncode == 0
    assert "handler.py on the Hub was not written here and stays" in later.stdout
    assert repository.read("handler.py") == b"class EndpointHandler: ...  # by Alice\n"
    assert b'"step": 1' in repository.read("metrics.jsonl")


def test_a_handler_of_an_earlier_version_is_replaced(client, folder, repository):
    push = ("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
    client.command(*push)
    earlier = f"# {MARK}, as it did once\n".encode()
    code = "import sys; from huggingface_hub import HfApi; HfApi().upload_file(path_or_fileobj=sys.argv[1].encode(),"
    code += " path_in_repo='handler.py', repo_id='alice/seedlings')"
    assert client.python(code, earlier.decode()).returncode == 0
    assert repository.read("handler.py") == earlier
    assert client.command(*push).returncode == 0
    assert repository.read("handler.py") == endpoint_files(folder)["handler.py"].read_bytes()


def test_a_push_of_the_same_files_makes_no_commit(client, folder, repository):
    for _ in range(2):
        result = client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
        assert result.returncode == 0, result.stdout
    assert len(repository.titles()) == 1


def test_a_push_without_a_tag_leaves_the_tag_in_the_card_of_the_same_model(client, folder, repository):
    push = ("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
    client.command(*push, "--hub_tag", "v1")
    assert client.command(*push).returncode == 0
    assert 'model="alice/seedlings", revision="v1"' in repository.read("README.md").decode()
    assert repository.tags == {"v1": repository.head}
    (folder / "metrics.jsonl").write_text('{"step": 1, "epoch": 1.0}\n')
    assert client.command(*push).returncode == 0
    assert 'model="alice/seedlings", trust_remote_code' in repository.read("README.md").decode()


def test_large_files_are_uploaded_as_the_client_decides(client, folder, repository):
    client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
    assert "xetHash" in repository.tree()["model.safetensors"]
    assert "lfs" not in repository.tree()["modeling_replknet.py"]


def test_a_dry_run_lists_the_files_without_a_request(client, folder):
    result = client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings", "--dry_run")
    assert set(re.findall(r"^  (\S+)$", result.stdout, re.MULTILINE)) == MODEL_FILES - {"metrics.jsonl", "README.md"}
    assert client.hub.log == []


# Faults


def assert_ends_well(client, folder, repository, result, weights) -> None:
    """The run ended as without a Hub and printed what to do, and `push_to_hub` brings the Hub to the final state."""
    assert result.returncode == 0, result.stdout
    assert "DONE" in result.stdout
    assert float(re.search(r"SLOWEST (\S+)", result.stdout)[1]) < 0.5  # s; a save does not wait for the Hub
    assert "Traceback" not in result.stdout
    assert (folder / "model.safetensors").read_bytes() == weights
    if pending(folder):
        assert f"seedling-hf push_to_hub --output_dir {folder}" in result.stdout
        assert re.search(r"the last push failed \(.+\); it is safe in \S+hub_outbox\S+,", result.stdout)
    client.hub.faults.clear()
    pushed = client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
    assert pushed.returncode == 0, pushed.stdout
    assert pending(folder) == []
    assert_hub_has(repository, folder)
    assert repository.tags == {"v1": repository.head}


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory) -> bytes:
    """The weights of a run of two saves without a Hub."""
    tensors = load_file(model / "model.safetensors")
    tensors["classifier.bias"].fill_(2)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path.read_bytes()


def run_against(fault: Fault, client: Client, folder: Path):
    client.hub.faults.append(fault)
    return run(client, folder, saves=2, pusher={"timeout_s": 1, "tag": "v1"})


@pytest.mark.parametrize("where", ["upload", "commit"])
def test_a_permanent_fault_does_not_harm_a_run(client, folder, repository, weights, where):
    result = run_against(Fault(**FAULTS[where], status=503), client, folder)
    assert pending(folder)[-1] == "000003-step-00000002-end"
    assert_ends_well(client, folder, repository, result, weights)


ANSWERS = [
    *({"status": status} for status in (400, 401, 403, 404, 409, 412, 413, 429, 500, 502, 503, 504)),
    {"status": 429, "retry_after": 3600}, {"drop": "request"}, {"drop": "response"}, {"delay": 4},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 0], ids=["once", "always"])
@pytest.mark.parametrize("answer", ANSWERS, ids=str)
@pytest.mark.parametrize("where", FAULTS)
def test_no_fault_harms_a_run(client, folder, repository, weights, where, answer, times):
    result = run_against(Fault(**FAULTS[where], **answer, times=times), client, folder)
    if where == "create" and answer.get("status") in (400, 401, 403, 404, 413):  # reported before the first step
        assert result.returncode == 2, result.stdout
        assert result.stdout.startswith("error: expected a repository on the Hub to push to at alice/seedlings, found:")
        assert "SAVED" not in result.stdout
    else:
        assert_ends_well(client, folder, repository, result, weights)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(client, folder, repository):
    client.hub.faults.append(Fault(**FAULTS["commit"], drop="response", times=1))
    result = client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
    assert result.returncode == 0, result.stdout
    assert len(repository.titles()) == 1


def test_a_hub_that_never_answers_is_given_up_after_the_timeout(client, folder):
    client.hub.faults.append(Fault(delay=30))
    client.start("print(0)").finish()
    started = time.monotonic()
    result = run(client, folder, pusher={"timeout_s": 1})
    # 1 s before the first step and 1 s at the end; the rest is room for a busy machine, but less than one delay.
    assert time.monotonic() - started < 15
    assert result.returncode == 0
    assert "the last push failed (" in result.stdout


def test_a_hub_killed_during_an_upload_gets_everything_once_it_is_back(client, folder, repository, tmp_path):
    hub, proceed = client.hub, tmp_path / "proceed"
    hub.faults.append(Fault(path="/xorbs/", bytes_per_second=100_000))
    options = {"delay": 0.5, "wait_for": str(proceed), "pusher": {"timeout_s": 60, "tag": "v1"}}
    process = client.start(RUN, folder, "alice/seedlings", json.dumps(options))
    wait_until(lambda: any("xet-write-token" in path for _, path, _ in hub.log))
    time.sleep(1)  # of the six seconds that the upload takes
    assert not any("/xorbs/" in path and status == 200 for _, path, status in hub.log)
    hub.stop()
    process.wait_for("the Hub cannot be reached")
    with LocalHub(hub.store.root, tokens=hub.tokens, port=hub.port) as revived:
        client.hub = repository.hub = revived
        proceed.touch()
        result = process.finish()
        assert result.returncode == 0, result.stdout
        assert_hub_has(repository, folder)
        assert repository.tags == {"v1": repository.head}
        assert pending(folder) == []


def kill_before_a_push(client, folder) -> None:
    """A run that is killed while its snapshot waits for the Hub, which answers again afterwards."""
    client.hub.faults.append(Fault(path="/commit/", status=503))
    process = client.start(RUN, folder, "alice/seedlings", json.dumps({"wait_for": "/nowhere"}))
    process.wait_for("SAVED")
    process.kill()
    process.finish()
    client.hub.faults.clear()


def test_the_pending_snapshot_of_a_killed_run_is_pushed_later(client, folder, repository):
    kill_before_a_push(client, folder)
    (folder / "model.safetensors").unlink()  # the snapshot does not need the run's own files
    assert client.command("push_to_hub", "--output_dir", folder).returncode == 0
    assert bias(repository, folder) == 1
    assert pending(folder) == []


def test_a_snapshot_of_a_damaged_model_is_not_pushed(client, folder, repository):
    kill_before_a_push(client, folder)
    (snapshot,) = (folder / "hub_outbox" / name for name in pending(folder))
    damage(snapshot / "files" / "model.safetensors")
    result = client.command("push_to_hub", "--output_dir", folder)
    assert result.returncode == 2
    assert (
        f"found NaN in classifier.bias; use an earlier checkpoint, or get the model again; without {snapshot} the "
        in (result.stdout)
    )
    shutil.rmtree(snapshot)
    assert client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings").returncode == 0
    assert_hub_has(repository, folder, without={"curves.png"})  # the run did not reach its end


@pytest.mark.parametrize("kind", [RepLKNetForImageClassification, RepLKNetModel, RepLKNetBackbone])
def test_a_model_with_or_without_a_head_is_pushed_if_it_is_whole(tmp_path, kind, capsys):
    kind(RepLKNetConfig.from_variant("tiny")).save_pretrained(tmp_path / "model")
    words = ["--output_dir", str(tmp_path / "model"), "--dry_run"]
    assert run_command(push_to_hub.main, words) == 0
    damage(tmp_path / "model" / "model.safetensors", "embeddings.layers.0.normalization.bias")
    assert run_command(push_to_hub.main, words) == 2
    assert "found NaN in " in capsys.readouterr().err


def test_a_failed_command_says_why_and_ends_with_code_1(client, folder):
    client.hub.faults.append(Fault(path="/commit/", status=403))
    result = client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
    assert result.returncode == 1
    assert "error: the Hub answered 403: this token has no write access (from HF_TOKEN); use one " in result.stdout


def test_a_full_disk_does_not_end_the_run(client, folder, repository):
    (folder / "hub_outbox").write_text("a file where the folder should be")
    result = run(client, folder, saves=2)
    assert result.returncode == 0
    assert "no snapshot of step" in result.stdout
    (folder / "hub_outbox").unlink()
    assert client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings").returncode == 0
    assert_hub_has(repository, folder)


def test_two_runs_that_push_to_one_repository_leave_one_complete_model(client, folder, repository):
    other = Path(shutil.copytree(folder, folder.with_name("other")))
    processes = {
        path: client.start(RUN, path, "alice/seedlings", json.dumps({"first_step": step, "saves": 3, "wait": True}))
        for path, step in ((folder, 1), (other, 101))
    }
    for path, process in processes.items():
        result = process.finish()
        assert result.returncode == 0, result.stdout
        assert pending(path) == []
    winner = folder if bias(repository, folder) == 3 else other
    assert_hub_has(repository, winner)
    assert sum("(save)" in title for title in repository.titles()) == 6


# What is refused before the first step


@pytest.mark.parametrize(
    ("token", "repo_id", "reason"),
    [
        ("hf_reader_secret", "alice/seedlings", "403: this token has no write access"),
        ("hf_bob_secret", "alice/seedlings", "403: this token has no write access"),
        ("hf_unknown_secret", "alice/seedlings", "401: the token is not valid or has expired (from HF_TOKEN)"),
    ],
)
def test_missing_write_access_is_reported_before_the_first_step(hub, tmp_path, folder, token, repo_id, reason):
    result = run(Client(hub, tmp_path / "home", token), folder, repo_id)
    assert result.returncode == 2
    assert result.stdout.startswith("error: expected a repository on the Hub to push to")
    assert reason in result.stdout
    assert "SAVED" not in result.stdout


def test_missing_write_access_to_an_existing_repository_is_reported_before_the_first_step(client, folder):
    client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
    for token in ("hf_reader_secret", "hf_bob_secret"):
        result = run(Client(client.hub, client.home, token), folder)
        assert result.returncode == 2
        assert "403: this token has no write access" in result.stdout


def test_a_run_without_a_login_is_refused(hub, tmp_path, folder):
    result = run(Client(hub, tmp_path / "home", token=None), folder)
    assert result.returncode == 2
    assert result.stdout.startswith("error: expected a login to the Hub, found none; run `hf auth login`")


def test_a_tag_that_is_taken_is_refused_before_the_first_step(client, folder):
    client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings", "--hub_tag", "v1")
    result = run(client, folder, pusher={"tag": "v1"})
    assert result.returncode == 2
    assert result.stdout.startswith("error: expected a new tag, found v1 at ")


def test_offline_a_run_that_pushes_before_its_end_is_refused(client, folder):
    result = client.python(RUN, folder, "alice/seedlings", "{}", HF_HUB_OFFLINE="1")
    assert result.returncode == 2
    assert "found HF_HUB_OFFLINE set" in result.stdout


def test_offline_a_run_that_pushes_at_its_end_prepares_the_push(client, folder, repository):
    options = json.dumps({"pusher": {"strategy": "end"}})
    result = client.python(RUN, folder, "alice/seedlings", options, HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stdout
    assert "this command pushes it later" in result.stdout
    assert client.hub.log == []
    assert client.command("push_to_hub", "--output_dir", folder).returncode == 0
    assert_hub_has(repository, folder)


# The token


def test_no_token_is_in_any_file_or_line_of_a_run(client, folder):
    client.hub.faults.append(Fault(path="/commit/", status=503, times=1))
    result = run(client, folder, saves=2, pusher={"strategy": "checkpoint", "timeout_s": 20})
    client.hub.tokens.clear()
    result_of_command = client.command("push_to_hub", "--output_dir", folder)
    assert "401" in result_of_command.stdout
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for token in TOKENS:
        assert [path for path in files if token.encode() in path.read_bytes()] == []
        assert token not in result.stdout + result_of_command.stdout


# The card on the Hub


def test_what_people_write_into_the_card_on_the_hub_stays(client, folder, repository):
    push = ("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
    assert client.command(*push).returncode == 0
    edit = """
from huggingface_hub import ModelCard
card = ModelCard.load("alice/seedlings")
card.content = card.content.replace("license: apache-2.0", "license: mit").replace("- plants", "- plants\\n- weeds")
card.content += "\\nGrown in Flakkebjerg.\\n"
card.push_to_hub("alice/seedlings")
"""
    edited = client.python(edit)
    assert edited.returncode == 0, edited.stdout
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"Maize"', '"Sugar beet"'))
    (folder / "README.md").unlink()
    assert client.command(*push).returncode == 0
    card = repository.read("README.md").decode()
    assert card.endswith("\nGrown in Flakkebjerg.\n")
    assert "license: mit\n" in card
    assert "- weeds\n" in card
    assert "Charlock, Sugar beet" in card
    assert "Maize" not in card


def test_a_card_that_the_hub_refuses_does_not_keep_the_weights_back(client, folder, repository):
    (folder / "README.md").write_text("---\nlicense: my-own\n---\n\nA card.\n")
    result = client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
    assert result.returncode == 0
    assert "the card is not pushed: Invalid metadata in README.md" in result.stdout
    assert set(repository.tree()) == MODEL_FILES - {"metrics.jsonl", "README.md"}


# Downloads


def test_the_model_on_the_hub_has_exactly_the_logits_of_the_folder(client, folder, sample_dir):
    run(client, folder, saves=2, pusher={"tag": "v1"})
    image = sorted((sample_dir / "Maize").glob("*.jpg"))[0]
    elsewhere = Client(client.hub, client.home.with_name("empty"), fresh=True)
    result = elsewhere.python(LOAD, folder, "alice/seedlings", "v1", image)
    assert result.returncode == 0, result.stdout
    here, there = json.loads(result.stdout.split("REPORT")[1])
    assert here["logits"] == there["logits"]
    assert here["answers"] == there["answers"]
    assert there["module"].startswith("transformers_modules.alice.seedlings.")


DOWNLOAD = (
    "import sys; from seedling_hf.hub.repository import download_run; print(download_run(sys.argv[1], sys.argv[2]))"
)


def test_another_machine_gets_the_checkpoint_and_the_model_of_the_run(client, folder, tmp_path):
    run(client, folder, saves=2, pusher={"strategy": "checkpoint"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = Client(client.hub, tmp_path / "other home", fresh=True).python(DOWNLOAD, "alice/seedlings@main", elsewhere)
    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines()[-1] == str(elsewhere / "last-checkpoint")
    original = folder / "checkpoints" / "step-00000002"
    for file in original.iterdir():
        assert (elsewhere / "last-checkpoint" / file.name).read_bytes() == file.read_bytes()
    assert (elsewhere / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (elsewhere / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    assert not (elsewhere / "README.md").exists()


def test_a_repository_without_a_checkpoint_cannot_be_resumed(client, folder, tmp_path):
    client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings")
    result = client.python(DOWNLOAD, "alice/seedlings", tmp_path)
    assert "InputError: expected last-checkpoint in alice/seedlings, found none; --hub_strategy" in result.stdout


def test_a_missing_repository_cannot_be_resumed(client, tmp_path):
    result = client.python(DOWNLOAD, "alice/nothing", tmp_path)
    assert "InputError: expected a run on the Hub at alice/nothing, found: the Hub answered 404" in result.stdout
