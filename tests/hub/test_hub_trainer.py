"""`transformers.Trainer` pushes one of our models: a client without this package loads what was trained."""

import json
from pathlib import Path

import torch
from hub_client import LOAD
from small_models import SPECIES

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification, RepLKNetImageProcessor

pytest_plugins = ("hub_fixtures",)

EXAMPLE = Path(__file__).resolve().parents[1] / "official_example.py"
CODE = {path.name for path in (Path(__file__).resolve().parents[2] / "seedling_hf" / "replknet").glob("*.py")}


def test_the_example_trains_evaluates_and_pushes_a_model_that_others_load(client, repository, images, tmp_path):
    torch.manual_seed(0)
    config = RepLKNetConfig.from_variant("tiny", id2label=dict(enumerate(SPECIES)), drop_path_rate=0.1)
    RepLKNetForImageClassification(config).save_pretrained(tmp_path / "start")
    RepLKNetImageProcessor.from_variant("tiny", image_size=32).save_pretrained(tmp_path / "start")
    result = client.start(
        EXAMPLE.read_text(encoding="utf-8"), tmp_path / "start", images, tmp_path / "run", repository.repo_id,
        modules=("datasets", "torchvision.transforms.v2", "transformers.trainer"),
    ).finish(timeout=300)  # fmt: skip
    assert result.returncode == 0, result.stdout
    metrics = json.loads(result.stdout.split("METRICS")[1])
    assert repository.titles()[-1] == "End of training"
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert repository.read("model.safetensors") == weights
    expected = {"README.md", "config.json", "preprocessor_config.json", "model.safetensors", "training_args.bin"}
    assert set(repository.tree()) >= expected | CODE - {"__init__.py"}
    card = repository.read("README.md").decode()
    assert f"Accuracy: {metrics['eval_accuracy']:.4f}".rstrip("0") in card
    (image, *_) = sorted((images / "Maize").iterdir())
    loaded = client.python(LOAD, tmp_path / "run", repository.repo_id, "main", image)
    assert loaded.returncode == 0, loaded.stdout
    here, there = json.loads(loaded.stdout.split("REPORT")[1])
    assert here["logits"] == there["logits"]
    assert {answer["label"] for answer in there["answers"]} == {"Black-grass", "Charlock", "Maize"}
    assert there["module"].startswith("transformers_modules.")
