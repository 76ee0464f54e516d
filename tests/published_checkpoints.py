"""Checkpoints in the layouts in which RepLKNet's weights are published, renamed from a model of our own."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from seedling_hf.export.checkpoint_layouts import official_names
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification

GOLDEN = Path(__file__).parent / "golden"
Weights = dict[str, torch.Tensor]


def saved(content: object, folder: Path, **flags) -> Path:
    path = folder / "checkpoint.pth"
    torch.save(content, path, **flags)
    return path


def random_model(variant: str, **values) -> RepLKNetForImageClassification:
    """A classifier in which every weight and statistic counts."""
    torch.manual_seed(0)
    model = RepLKNetForImageClassification(RepLKNetConfig.from_variant(variant, **values)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.num_batches_tracked.fill_(7)
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.1, 0.1)
    return model


def authors_weights(model: RepLKNetForImageClassification) -> Weights:
    """The weights of a classifier by the authors' names."""
    tensors = model.state_dict()
    return {theirs: tensors[ours] for theirs, ours in official_names(model.config).items()}


def training_checkpoint(weights: Weights) -> dict:
    """As the authors' `utils.save_model` writes it: the schedule's learning rates are NumPy numbers."""
    group = {"lr": np.float64(4e-3), "weight_decay": np.float64(0.05), "lr_scale": 1.0, "params": [0]}
    state = {0: {"step": 3, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}}
    arguments = argparse.Namespace(
        input_size=64, drop_path=0.25, output_dir=Path("/checkpoint/replknet"), data_set="IMNET"
    )
    return {
        "model": weights,
        "optimizer": {"state": state, "param_groups": [group]},
        "epoch": 299,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 1},
        "args": arguments,
    }


def mmpretrain(weights: Weights) -> dict:
    """Renamed by the rules of its `replknet_to_mmpretrain.py`."""
    renamed, last = {}, max(name.split(".")[1] for name in weights if name.startswith("stages."))
    for name, tensor in weights.items():
        first, _, rest = name.partition(".")
        prefix = {"norm": f"backbone.stages.{last}.norm", "head": "head.fc"}.get(first, f"backbone.{first}")
        renamed[f"{prefix}.{rest}"] = tensor
    return {"meta": {"mmcls_version": "0.24.1"}, "state_dict": renamed}


def backbone_of(weights: Weights) -> Weights:
    return {f"backbone.{n}": tensor for n, tensor in weights.items() if not n.startswith(("norm.", "head."))}


def segmentation(weights: Weights) -> dict:
    """mmsegmentation's UperNet: a palette may be an array, and the best score is a NumPy number."""
    heads = {
        "decode_head.conv_seg.weight": torch.rand(150, 8, 1, 1),
        "decode_head.conv_seg.bias": torch.rand(150),
        "decode_head.fpn_bottleneck.bn.num_batches_tracked": torch.tensor(1),
        "auxiliary_head.conv_seg.weight": torch.rand(150, 8, 1, 1),
    }
    meta = {
        "mmseg_version": "0.20.2", "CLASSES": ("wall", "sky"), "PALETTE": np.arange(6).reshape(2, 3),
        "hook_msgs": {"best_score": np.float32(0.499)}, "iter": 160_000,
    }  # fmt: skip
    optimizer = {"state": {}, "param_groups": [{"lr": np.float64(0.0), "params": []}]}
    return {"meta": meta, "state_dict": backbone_of(weights) | heads, "optimizer": optimizer}


def detection(weights: Weights) -> dict:
    """mmdetection's Cascade Mask R-CNN."""
    heads = {
        "neck.lateral_convs.0.conv.weight": torch.rand(4, 16, 1, 1),
        "rpn_head.rpn_cls.weight": torch.rand(3, 4, 1, 1),
        "roi_head.bbox_head.0.fc_cls.weight": torch.rand(81, 4),
        "roi_head.mask_head.0.conv_logits.bias": torch.rand(80),
    }
    return {"meta": {"epoch": 36}, "state_dict": backbone_of(weights) | heads}


def head_22k(weights: Weights) -> Weights:
    return {name.replace("head.", "head.cls_22k."): tensor for name, tensor in weights.items()}


CLASSIFIERS: dict[str, Callable[[Weights], dict]] = {
    "bare": lambda w: w,
    "model": lambda w: {"model": w},
    "ema only": lambda w: {"model_ema": w, "epoch": 3},
    "state_dict": lambda w: {"state_dict": w, "meta": {}},
    "module.": lambda w: {"model": {f"module.{k}": v for k, v in w.items()}},
    "module.module.": lambda w: {"model_ema": {f"module.module.{k}": v for k, v in w.items()}},
    "_orig_mod.module.": lambda w: {"model": {f"_orig_mod.module.{k}": v for k, v in w.items()}},
    "training checkpoint": training_checkpoint,
    "mmpretrain": mmpretrain,
    "mmpretrain, bare": lambda w: mmpretrain(w)["state_dict"],
    "module.backbone.": lambda w: {f"module.{k}": v for k, v in mmpretrain(w)["state_dict"].items()},
    "head.cls_22k": head_22k,
}
DENSE: dict[str, Callable[[Weights], dict]] = {"segmentation": segmentation, "detection": detection}
