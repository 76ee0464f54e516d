"""A saved folder works in a process that cannot import `seedling_hf`."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline
from without_package import WITHOUT_PACKAGE

import seedling_hf.replknet
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification, RepLKNetImageProcessor

CLASS_NAMES = ["Black-grass", "Common Chickweed", "Maize"]
PROGRAM = (
    WITHOUT_PACKAGE
    + """
import json, sys
folder, image, resaved = sys.argv[1:]
try:
    import seedling_hf
except ModuleNotFoundError:
    report = {"package": "absent"}

import torch
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline,
)

trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
report["config"] = type(config).__name__
processor = AutoImageProcessor.from_pretrained(folder, **trust)
pipe = pipeline("image-classification", model=folder, trust_remote_code=True, top_k=3)
report["predictions"] = pipe(image)

from PIL import Image
inputs = processor(Image.open(image), return_tensors="pt")
model = AutoModelForImageClassification.from_pretrained(folder, **trust)
with torch.no_grad():
    report["logits"] = model(**inputs).logits.tolist()
report["modules"] = [type(model).__module__, type(processor).__module__, type(pipe.model).__module__]

base, loading = AutoModel.from_pretrained(folder, output_loading_info=True, **trust)
report["base"] = [type(base).__name__, sorted(loading["missing_keys"])]
Backbone = type(AutoBackbone.from_config(config, **trust))
backbone, loading = Backbone.from_pretrained(folder, output_loading_info=True)
report["backbone"] = [Backbone.__name__, sorted(loading["missing_keys"])]

base.reparameterize().save_pretrained(resaved)
processor.save_pretrained(resaved)
again = AutoModel.from_pretrained(resaved, **trust)
with torch.no_grad():
    report["resaved"] = torch.equal(again(**inputs).pooler_output, base(**inputs).pooler_output)
report["resaved module"] = type(again).__module__
report["imported"] = sorted(name for name in sys.modules if name.split(".")[0] == "seedling_hf")
print("REPORT" + json.dumps(report))
"""
)


@pytest.fixture(scope="module")
def image(sample_dir) -> Path:
    return sorted((sample_dir / "Maize").glob("*.jpg"))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "seedlings-tiny"
    torch.manual_seed(0)
    id2label = dict(enumerate(CLASS_NAMES))
    config = RepLKNetConfig.from_variant("tiny", id2label=id2label, label2id={n: i for i, n in id2label.items()})
    RepLKNetForImageClassification(config).save_pretrained(folder)
    RepLKNetImageProcessor.from_variant("tiny", image_size=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def resaved(folder) -> Path:
    return folder.parent / "resaved"


@pytest.fixture(scope="module")
def report(folder, image, resaved) -> dict:
    """What the program says that loads `folder` without the package."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))},
        "HF_HOME": str(folder.parent / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-P", "-c", PROGRAM, str(folder), str(image), str(resaved)]
    result = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.split("REPORT")[1])


@torch.no_grad()
def logits_here(folder: Path, image: Path) -> torch.Tensor:
    model = RepLKNetForImageClassification.from_pretrained(folder)
    processor = RepLKNetImageProcessor.from_pretrained(folder)
    return model(**processor(Image.open(image), return_tensors="pt")).logits


def test_the_package_is_really_absent(report):
    assert report["package"] == "absent"
    assert report["imported"] == []


def test_the_classes_come_from_the_folder(report):
    assert all(module.startswith("transformers_modules.") for module in report["modules"])
    assert report["config"] == "RepLKNetConfig"


def test_the_remote_classifier_gives_the_same_logits(report, folder, image):
    # 1e-5: the two processes may choose another number of threads and so another order of summation.
    torch.testing.assert_close(torch.tensor(report["logits"]), logits_here(folder, image), rtol=1e-5, atol=1e-5)


def test_the_remote_pipeline_predicts_the_classes(report, folder, image):
    probabilities = logits_here(folder, image)[0].softmax(0)
    found = {prediction["label"]: prediction["score"] for prediction in report["predictions"]}
    assert found == pytest.approx(dict(zip(CLASS_NAMES, probabilities.tolist(), strict=True)), abs=1e-5)


def test_the_remote_bare_model_and_backbone_load_all_their_weights(report):
    assert report["base"] == ["RepLKNetModel", []]
    assert report["backbone"] == ["RepLKNetBackbone", []]


def test_a_model_saved_from_remote_classes_loads_again(report):
    assert report["resaved"]
    assert report["resaved module"].startswith("transformers_modules.resaved")


def test_a_folder_saved_from_remote_classes_is_complete(report, folder, resaved):
    assert {path.name for path in folder.iterdir()} == {path.name for path in resaved.iterdir()}
    original, copied = (json.loads((path / "config.json").read_text()) for path in (folder, resaved))
    assert copied["auto_map"] == original["auto_map"]
    assert copied["reparameterized"] and not original["reparameterized"]


def test_the_pipeline_works_with_the_package_too(folder, image):
    predictions = pipeline("image-classification", model=str(folder), top_k=3)(str(image))
    expected = logits_here(folder, image)[0].softmax(0)
    found = {prediction["label"]: prediction["score"] for prediction in predictions}
    assert found == pytest.approx(dict(zip(CLASS_NAMES, expected.tolist(), strict=True)), abs=1e-6)


def test_the_feature_pipeline_gives_pooled_features(folder, image):
    features = pipeline("image-feature-extraction", model=str(folder), pool=True)(str(image))
    model = RepLKNetForImageClassification.from_pretrained(folder)
    inputs = RepLKNetImageProcessor.from_pretrained(folder)(Image.open(image), return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(features), model.replknet(**inputs).pooler_output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_pipeline_works_in_half_precision(dtype, folder, image):
    predictions = pipeline("image-classification", model=str(folder), top_k=3, dtype=dtype)(str(image))
    expected = dict(zip(CLASS_NAMES, logits_here(folder, image)[0].softmax(0).tolist(), strict=True))
    # 0.02: bfloat16 keeps eight bits, and errors add up over the layers.
    assert {p["label"]: p["score"] for p in predictions} == pytest.approx(expected, abs=0.02)


def test_the_package_takes_precedence_over_the_code_in_the_folder(folder):
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    assert type(model) is RepLKNetForImageClassification


def shipped_modules() -> list[Path]:
    return [path for path in Path(seedling_hf.replknet.__file__).parent.glob("*.py") if path.name != "__init__.py"]


def test_every_shipped_module_is_in_the_folder(folder):
    assert {path.name for path in folder.glob("*.py")} == {path.name for path in shipped_modules()}


def test_shipped_modules_need_only_dependencies_of_transformers():
    required = set()
    for path in shipped_modules():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                required |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                required.add(node.module.split(".")[0])
    assert required - sys.stdlib_module_names <= {"torch", "transformers", "huggingface_hub"}
