"""Segmentation and detection of transformers over `RepLKNetBackbone`."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, UperNetConfig, UperNetForSemanticSegmentation
from without_package import WITHOUT_PACKAGE

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification

ROOT = Path(__file__).parents[2]
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SIDES = (75, 101)  # no multiples of 32, nor of 4
KINDS = ("upernet", "detr")
PROGRAM = (
    WITHOUT_PACKAGE
    + """
import json, sys
import torch
from transformers import AutoBackbone, AutoConfig, DetrForObjectDetection, UperNetForSemanticSegmentation

upernet, detr, any_replknet, images = sys.argv[1:]
classes = {"upernet": (UperNetForSemanticSegmentation, upernet), "detr": (DetrForObjectDetection, detr)}
report = {"refused": {}, "logits": {}, "missing": {}}
for name, (cls, folder) in classes.items():
    try:
        cls.from_pretrained(folder, trust_remote_code=True)
    except Exception as error:
        report["refused"][name] = f"{type(error).__name__}: {error}"

config = AutoConfig.from_pretrained(any_replknet, trust_remote_code=True)
AutoConfig.register("replknet", type(config))
AutoBackbone.from_config(config, trust_remote_code=True)
for name, (cls, folder) in classes.items():
    model, loading = cls.from_pretrained(folder, output_loading_info=True)
    report["missing"][name] = sorted(loading["missing_keys"])
    with torch.no_grad():
        report["logits"][name] = model(torch.load(images, weights_only=True)).logits.tolist()
report["imported"] = sorted(name for name in sys.modules if name.split(".")[0] == "seedling_hf")
print("REPORT" + json.dumps(report))
"""
)


def build_model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "upernet":
        backbone = RepLKNetConfig.from_variant("tiny", out_features=STAGES)
        return UperNetForSemanticSegmentation(
            UperNetConfig(
                backbone_config=backbone, hidden_size=16, num_labels=2, auxiliary_in_channels=48, auxiliary_channels=16
            )
        )
    return DetrForObjectDetection(
        DetrConfig(
            backbone_config=RepLKNetConfig.from_variant("tiny", out_features=STAGES[-1:]),
            d_model=32,
            num_labels=2,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            num_queries=5,
        )
    )


def random_images() -> Tensor:
    return torch.randn(2, 3, *SIDES, generator=torch.Generator().manual_seed(0))


def labels(kind: str) -> Tensor | list[dict[str, Tensor]]:
    if kind == "upernet":
        return torch.randint(2, (2, *SIDES), generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.4]])
    return [{"class_labels": torch.tensor([number]), "boxes": boxes} for number in (0, 1)]


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(random_images()).logits


# 1e-4: loaded weights lie elsewhere in memory, where kernels may sum in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module", params=KINDS)
def trained(request) -> tuple[str, nn.Module, dict]:
    """A model after some steps of training, and what they showed."""
    model = build_model(request.param).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(4):
        loss = model(random_images(), labels=labels(request.param)).loss
        optimizer.zero_grad()
        loss.backward()
        without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        optimizer.step()
        losses.append(loss.item())
    return request.param, model, {"losses": losses, "without gradient": without, "before": before}


def test_the_loss_falls(trained):
    _, _, shown = trained
    assert shown["losses"][-1] < shown["losses"][0]


def test_training_changes_every_weight_of_the_backbone(trained):
    _, model, shown = trained
    assert shown["without gradient"] == []
    backbone = {name for name, _ in model.named_parameters() if "backbone" in name}
    assert len(backbone) >= 40  # convolutions; DETR has no BatchNorm to train
    # A layer's bias may stay where the normalization of a batch takes it away again.
    state = model.state_dict()
    assert [n for n in backbone if n.endswith("weight") and torch.equal(state[n], shown["before"][n])] == []


def test_the_answers_have_the_size_of_the_image(trained):
    kind, model, _ = trained
    assert logits(model).shape == ((2, 2, *SIDES) if kind == "upernet" else (2, 5, 3))


def test_a_saved_model_loads_with_all_its_weights(trained, tmp_path):
    _, model, _ = trained
    model.save_pretrained(tmp_path)
    again, loading = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    torch.testing.assert_close(logits(again), logits(model), **TOLERANCE)


def test_a_segmenting_model_with_a_fused_backbone_loads_if_its_configuration_says_so(tmp_path):
    model = build_model("upernet")
    expected = logits(model)
    model.backbone.fuse_batch_norms()
    model.save_pretrained(tmp_path / "untold")
    _, loading = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "untold", output_loading_info=True)
    assert any("large_kernel.large" in name for name in loading["missing_keys"])  # what the page warns of
    model.config.backbone_config = model.backbone.config
    torch.testing.assert_close(logits(model), expected, **TOLERANCE)
    model.save_pretrained(tmp_path)
    again, loading = UperNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    torch.testing.assert_close(logits(again), expected, **TOLERANCE)


def test_detr_freezes_batch_norms_which_are_then_not_merged():
    model = build_model("detr")
    with pytest.raises(ValueError, match="DetrFrozenBatchNorm2d"):
        model.model.backbone.model.fuse_batch_norms()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """What a process says that loads the models without the package."""
    root = tmp_path_factory.mktemp("dense")
    expected = {}
    for kind in KINDS:
        model = build_model(kind)
        expected[kind] = logits(model)
        model.save_pretrained(root / kind)
    RepLKNetForImageClassification(RepLKNetConfig.from_variant("tiny", num_labels=3)).save_pretrained(root / "any")
    torch.save(random_images(), root / "images.pt")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))},
        "HF_HOME": str(root / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    paths = [str(root / name) for name in (*KINDS, "any", "images.pt")]
    command = [sys.executable, "-P", "-c", PROGRAM, *paths]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    return {**json.loads(result.stdout.split("REPORT")[1]), "expected": expected}


def test_without_the_package_transformers_names_the_model_that_is_missing(report):
    # This text is in docs/dense_prediction.md, with what to do.
    assert report["refused"] == dict.fromkeys(KINDS, "KeyError: 'replknet'")


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_any_replknet_folder_loads_it_without_the_package(kind, report):
    assert report["imported"] == []
    assert report["missing"][kind] == []
    torch.testing.assert_close(torch.tensor(report["logits"][kind]), report["expected"][kind], **TOLERANCE)


def page() -> str:
    return (ROOT / "docs" / "dense_prediction.md").read_text(encoding="utf-8")


def test_the_page_says_what_transformers_says_and_what_was_run_here():
    assert "KeyError: 'replknet'" in page()
    register = 'AutoConfig.register("replknet", type(config))'
    for line in (register, "AutoBackbone.from_config(config, trust_remote_code=True)"):
        assert line in page() and line in PROGRAM


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> str:
    """What the page's programs print, one after the other, but for the one that needs a repository."""
    root = tmp_path_factory.mktemp("page")
    (root / "scripts").symlink_to(ROOT / "scripts")
    programs = re.findall(r"```python\n(.*?)```", page(), re.DOTALL)
    names, output = {}, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.chdir(root)
        for program in programs:
            if "user/seedlings" not in program:
                exec(compile(program, "dense_prediction.md", "exec"), names)
    return output.getvalue()


def test_the_example_learns_to_find_plants_as_well_as_the_page_says(printed):
    numbers = re.findall(r"\d\.\d\d", printed)
    first, last, iou, share = map(float, numbers[:4])
    assert last < 0.7 * first
    assert iou > 2 * share
    claimed = map(float, re.findall(r"\d\.\d\d", re.search(r"```text\n(.*?)```", page(), re.DOTALL)[1]))
    # 0.05: other processors sum in another order, and the steps magnify it.
    assert [first, last, iou, share] == pytest.approx(list(claimed), abs=0.05)


def test_the_weights_of_the_example_for_detection_fit(printed):
    assert "<All keys matched successfully>" in printed.splitlines()


def test_the_example_for_grad_cam_has_the_size_of_the_image(printed):
    assert printed.rstrip().endswith("torch.Size([1, 1, 128, 128])")
