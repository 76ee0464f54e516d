"""The card repeats the figures in the files of a run: here of a real, short one."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hub_client import Client, Repository
from huggingface_hub import ModelCard
from jinja2 import Environment, meta
from local_hub import check_card as check_as_the_hub
from markdown_structure import structure
from safetensors.torch import load_file
from without_package import WITHOUT_PACKAGE

from seedling_hf.data.splits import hash_split
from seedling_hf.escaping import Markdown
from seedling_hf.hub.model_card import card_values, render_card, write_card
from seedling_hf.inference.familiarity import FAMILIARITY, Familiarity

pytest_plugins = ("hub_fixtures",)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, sample_dir) -> Path:
    folder = tmp_path_factory.mktemp("card") / "seedlings-tiny"
    flags = {
        "train_dir": sample_dir, "output_dir": folder, "variant": "tiny", "image_size": 32, "max_steps": 4,
        "eval_steps": 2, "save_steps": 4, "max_train_samples": 48, "max_eval_samples": 24, "warmup_steps": 1,
        "per_device_train_batch_size": 12,
    }  # fmt: skip
    result = Client(None, folder.parent / "home").train(**flags).finish()
    assert result.returncode == 0, result.stdout
    (folder / "README.md").unlink(missing_ok=True)
    return folder


@pytest.fixture
def folder(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / finished_run.name))


@pytest.fixture(scope="module")
def card(finished_run) -> str:
    return render_card(finished_run)


def section(card: str, name: str) -> str:
    return re.search(rf"<!-- begin {name} -->\n(.*?)<!-- end {name} -->", card, re.DOTALL)[1]


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def test_the_card_speaks_of_certainty_where_the_handler_gives_one(card, folder):
    assert "and the first class has a `certainty`." in section(card, "usage")
    config = json.loads((folder / "config.json").read_text()) | {"confidence_threshold": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / FAMILIARITY).unlink()
    usage = section(render_card(folder), "usage")
    assert "certainty" not in usage
    assert "`handler.py` answers as the pipeline does." in usage


def test_the_template_gets_exactly_the_names_that_it_uses(finished_run):
    template = (ROOT / "model_card.md").read_text(encoding="utf-8")
    environment = Environment()
    environment.filters |= dict.fromkeys(("cell", "percent", "duration"), str)
    used = meta.find_undeclared_variables(environment.parse(template))
    assert set(card_values(finished_run, results=True)) == used


def test_the_hub_finds_the_figures_of_the_report(finished_run, card):
    report = read(finished_run, "report.json")
    results = {result.metric_type: result for result in ModelCard(card).data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "accuracy": report["accuracy"],
        "f1": report["macro_f1"],
    }
    assert results["accuracy"].dataset_name == "seedlings"
    assert results["accuracy"].task_type == "image-classification"


def test_the_hub_knows_all_metadata(card):
    data = ModelCard(card).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "image-classification",
    )
    assert data.metrics == ["accuracy", "f1"]
    assert data.model_name == "seedlings-tiny"
    assert check_as_the_hub(card) == ([], [])


def test_the_results_are_a_table_with_the_interval_and_each_class(finished_run, card):
    report = read(finished_run, "report.json")
    results = section(card, "results")
    low, high = report["accuracy_interval"]
    assert f"| accuracy | {report['accuracy']:.1%} | 95% interval {low:.1%} to {high:.1%} (Wilson) |" in results
    for name, row in report["per_class"].items():
        assert (
            f"| {name} | {row['precision']:.1%} | {row['recall']:.1%} | {row['f1']:.3f} | {row['support']} |" in results
        )
    assert "On the validation images of seedlings, 24 images:" in results
    assert "](confusion_matrix.png)" in results


def test_the_data_section_has_the_hash_and_the_counts_of_the_split(finished_run, card):
    data = section(card, "data")
    assert f"`{hash_split(finished_run / 'split.csv')}`" in data
    assert "drawn at random from each class, 30% of its images for validation, seed 42." in data
    assert "| class | train | validation |" in data
    assert "| Maize | 4 | 2 |" in data
    assert "| all | 48 | 24 |" in data


def test_the_training_section_has_hardware_time_versions_and_arguments(finished_run, card):
    training, results = section(card, "training"), read(finished_run, "train_results.json")
    assert "4 optimizer steps, 1 epoch." in training
    assert f"weights of step {results['best_step']}, the best" in training
    for name, version in read(finished_run, "report.json")["provenance"]["versions"].items():
        assert f"{name} {version}" in training
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", training, re.DOTALL)[1]) == yaml.safe_load(
        (finished_run / "arguments.yaml").read_text()
    )


def test_the_model_section_follows_from_config_and_weights(finished_run, card):
    model, weights = section(card, "model"), load_file(finished_run / "model.safetensors")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(tensor.numel() for name, tensor in weights.items() if not name.endswith(buffers))
    assert f"| parameters | {count:,} |" in model
    assert "| kernels of the stages | 15, 13, 11, 7, with 5×5 beside them |" in model
    assert "| started from | random weights |" in model
    assert "RGB, 32×32 pixels" in model
    assert "trained to classify plant seedlings into\n12 classes: Black-grass, Charlock," in model


def test_the_card_names_temperature_and_thresholds(folder):
    measure = Familiarity(torch.zeros(2), torch.eye(2), torch.zeros(1, 2), torch.tensor(752.25))
    measure.save(folder)
    config = read(folder, "config.json") | {"calibration_temperature": 0.6472, "confidence_threshold": 0.7}
    (folder / "config.json").write_text(json.dumps(config))
    card = render_card(folder)
    model = section(card, "model")
    assert "| probabilities | calibrated: the temperature, 0.647, is in the weights of the classifier |" in model
    assert "| sure | from a probability of 0.700 on |" in model
    assert "| unfamiliar | beyond a squared distance of 752.2 from the training images, by" in model
    weights = load_file(folder / "model.safetensors")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(tensor.numel() for name, tensor in weights.items() if not name.endswith(buffers))
    assert f"| parameters | {count:,} |" in model, "the measure has no parameters"
    assert "a `pipeline` predicts one of the classes, whatever is in the image" in section(card, "limits")


def test_a_card_of_a_model_without_them_names_none(folder):
    for name in ("calibration_temperature", "confidence_threshold"):
        config = read(folder, "config.json") | {name: None}
        (folder / "config.json").write_text(json.dumps(config))
    (folder / FAMILIARITY).unlink(missing_ok=True)
    card = render_card(folder)
    assert not re.search(r"^\| (probabilities|sure|unfamiliar) \|", card, re.MULTILINE)
    assert "whatever is in the image, it predicts one of them" in section(card, "limits")


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (0, "Of the 24 validation images none is also among the training images, exactly or nearly."),
        (1, "Of the 24 validation images 1 is also among the training images, exactly or nearly."),
        (3, "Of the 24 validation images 3 are also among the training images, exactly or nearly."),
        (None, "The split was not searched for near-duplicates."),
    ],
)
def test_the_limits_say_whether_validation_images_were_trained_on(folder, count, sentence):
    assert read(folder, "near_duplicates.json")["validation_images"] == 24  # as the run wrote it
    if count is None:
        (folder / "near_duplicates.json").unlink()
    else:
        pairs = [{"validation": "a.png", "training": "b.png"}] * count
        (folder / "near_duplicates.json").write_text(json.dumps({"validation_images": 24, "pairs": pairs}))
    assert f"- {sentence}\n" in section(render_card(folder), "limits")


def test_the_limits_name_the_weakest_class(finished_run, card):
    rows = read(finished_run, "report.json")["per_class"]
    assert min(rows.values(), key=lambda row: row["f1"])["f1"] == 0
    weakest = next(name for name, row in rows.items() if row["f1"] == 0)
    assert f"weakest on {weakest} (F1 0.00)" in section(card, "limits")


def test_the_limits_call_no_class_weak_that_was_always_right(folder):
    report = read(folder, "report.json")
    for name, row in report["per_class"].items():
        row["f1"] = 0.994 if name == "Maize" else 0.996  # as two decimals, 0.99 and 1.00
    (folder / "report.json").write_text(json.dumps(report))
    assert re.findall(r"\(F1 .*?\)", section(render_card(folder), "limits")) == ["(F1 0.99)"]
    report["per_class"]["Maize"]["f1"] = 1.0
    (folder / "report.json").write_text(json.dumps(report))
    assert "weakest" not in render_card(folder)


def test_no_template_syntax_is_left_in_the_card(card):
    for leftover in ("{{", "{%", "None", "Undefined", "TODO", "More Information Needed"):
        assert leftover not in card


def test_a_run_without_a_report_has_no_results_in_its_card(folder):
    (folder / "report.json").unlink()
    card = render_card(folder)
    assert section(card, "results") == ""
    data = ModelCard(card).data
    assert data.eval_results is None
    assert data.metrics is None
    assert check_as_the_hub(card) == ([], [])


def test_during_a_run_the_card_has_no_report_of_other_weights(finished_run):
    card = render_card(finished_run, results=False)
    assert section(card, "results") == ""
    assert "not finished: these are the weights of step 4, epoch" in section(card, "training")
    assert ModelCard(card).data.eval_results is None


def test_resuming_a_run_removes_the_results_from_the_card(folder):
    write_card(folder)
    assert section((folder / "README.md").read_text(), "results") != ""
    write_card(folder, results=False)
    assert section((folder / "README.md").read_text(), "results") == ""


def test_text_that_somebody_wrote_into_the_card_stays(folder):
    path = write_card(folder)
    path.write_text(path.read_text().replace("# seedlings-tiny", "# My seedlings\n\nGrown in Flakkebjerg."))
    write_card(folder)
    assert "# My seedlings\n\nGrown in Flakkebjerg.\n" in path.read_text()


def test_a_model_folder_without_a_run_has_a_card(folder):
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors", "preprocessor_config.json") and path.is_file():
            path.unlink()
    card = render_card(folder)
    assert [section(card, name) for name in ("results", "data", "training")] == ["", "", ""]
    assert check_as_the_hub(card) == ([], [])


HOSTILE_NAMES = [
    "a|b", "<!-- end model -->", "two\nlines", "{{ config }}", '"quotes": [', "草 🌱", "<img src=x onerror=alert(1)>",
    "![](http://a.b/c.png)", "[a](http://a.b)", "<http://a.b>", "[a]: http://a.b", "</details>", "---", "# heading",
    "- item", "```", "`a|b`", "*a*", "_a_", "~~a~~", "&lt;img&gt;", "$x^2$", "\\|", "=cmd", "\u202eevil", "\x1b[31mred",
    "null", "1.", "> quote", "<script>alert(1)</script>", "||", " | ", "a\r\n\r\n# b", "{% raw %}",
]  # fmt: skip


def rename_maize(folder: Path, name: str, former: str = "Maize") -> None:
    for file in ("config.json", "report.json"):
        text = (folder / file).read_text(encoding="utf-8")
        (folder / file).write_text(text.replace(json.dumps(former), json.dumps(name)), encoding="utf-8")
    text, cell = (folder / "split.csv").read_text(encoding="utf-8"), name.replace('"', '""')
    (folder / "split.csv").write_text(re.sub(f',"?{former}"?,', lambda _: f',"{cell}",', text), encoding="utf-8")


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=repr)
def test_no_class_name_breaks_the_card(folder, name):
    rename_maize(folder, "Oak")  # as unknown to the dataset of the plant seedlings, which is cited
    usual = render_card(folder)
    rename_maize(folder, name, former="Oak")
    card = render_card(folder)
    shown = Markdown.of(name)
    assert f"\n| {shown} | 4 | 2 |\n" in section(card, "data")
    assert section(card, "results").count(f"\n| {shown} | ") == 1
    assert shown in section(card, "model")
    assert check_as_the_hub(card) == ([], [])
    assert not {"\x1b", "\u202e"} & set(card)
    # Metadata, tables, links, images and HTML are those of the card with an ordinary name, but for the split's hash.
    card, usual = (re.sub(r"\b[0-9a-f]{64}\b", "", text) for text in (card, usual))
    (metadata, body), (usual_metadata, usual_body) = (text[4:].split("\n---\n", 1) for text in (card, usual))
    assert yaml.safe_load(metadata) == yaml.safe_load(usual_metadata)
    assert structure(body) == structure(usual_body)


@pytest.mark.parametrize(
    ("start", "base_model", "shown"),
    [
        (
            "alice/replknet-31b@v1",
            "alice/replknet-31b",
            "[alice/replknet-31b](https://huggingface.co/alice/replknet-31b)",
        ),
        ("/models/31b", None, "a model folder, /models/31b"),
    ],
)
def test_the_card_says_what_the_model_started_from(folder, start, base_model, shown):
    arguments = yaml.safe_load((folder / "arguments.yaml").read_text())
    (folder / "arguments.yaml").write_text(yaml.safe_dump(arguments | {"model_name_or_path": start, "variant": None}))
    card = render_card(folder)
    assert ModelCard(card).data.base_model == base_model
    assert f"| started from | {shown} |" in section(card, "model")


def test_the_card_names_the_dataset_on_the_hub(folder):
    arguments = yaml.safe_load((folder / "arguments.yaml").read_text())
    changes = {"train_dir": None, "dataset_name": "alice/seedlings", "dataset_revision": "v1"}
    (folder / "arguments.yaml").write_text(yaml.safe_dump(arguments | changes))
    data = ModelCard(render_card(folder)).data
    assert data.datasets == ["alice/seedlings"]
    assert (data.eval_results[0].dataset_type, data.eval_results[0].dataset_revision) == ("alice/seedlings", "v1")


EXAMPLE = (
    WITHOUT_PACKAGE
    + """
import re, sys
from pathlib import Path
from huggingface_hub import ModelCard
code = re.search(r"```python\\n(.*?)```", ModelCard.load("alice/seedlings-tiny").content, re.DOTALL)[1]
print("CODE", code)
print("OUTPUT")
exec(code)
"""
)


def test_the_loading_example_on_the_hub_runs_unchanged(folder, client, sample_dir, tmp_path, monkeypatch):
    write_card(folder)
    pushed = client.command(
        "push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings-tiny", "--hub_tag", "v1"
    )
    assert pushed.returncode == 0, pushed.stdout
    shutil.copy(sorted((sample_dir / "Maize").glob("*.jpg"))[0], tmp_path / "seedling.jpg")
    monkeypatch.chdir(tmp_path)
    result = Client(client.hub, tmp_path / "empty", fresh=True).python(EXAMPLE)
    assert result.returncode == 0, result.stdout
    assert 'model="alice/seedlings-tiny", revision="v1"' in result.stdout.split("CODE")[1]
    answers = eval(result.stdout.split("OUTPUT\n")[1].splitlines()[-1])
    assert {answer["label"] for answer in answers} < set(read(folder, "config.json")["label2id"])


def test_the_card_of_a_run_reaches_the_hub_unchanged(folder, client):
    write_card(folder)
    client.command("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings-tiny")
    repository = Repository(client.hub, "alice/seedlings-tiny")
    address = f'model="{folder}"'
    expected = (folder / "README.md").read_text().replace(address, 'model="alice/seedlings-tiny"')
    assert repository.read("README.md").decode() == expected
    assert {"report.json", "confusion_matrix.png", "curves.png", "split.csv", "arguments.yaml"} <= set(
        repository.tree()
    )


def test_requests_are_shown_only_with_verbose(folder, client):
    write_card(folder)
    words = ("push_to_hub", "--output_dir", folder, "--hub_model_id", "seedlings-tiny")
    quiet, verbose = (client.command(*words, *more, TQDM_DISABLE="1") for more in ((), ("--verbose",)))
    assert (quiet.returncode, verbose.returncode) == (0, 0), quiet.stdout + verbose.stdout
    assert "HTTP Request" in verbose.stdout
    assert "HTTP Request" not in quiet.stdout
