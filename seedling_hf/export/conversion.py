"""Converts published checkpoints to folders for `from_pretrained`."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seedling_hf.errors import InputError
from seedling_hf.export.checkpoint_files import Checkpoint, read_checkpoint
from seedling_hf.export.checkpoint_layouts import official_names
from seedling_hf.files import check_new_folder, creating_folder
from seedling_hf.inference.model_files import LARGEST_SIDE
from seedling_hf.replknet import (
    RepLKNetBackbone,
    RepLKNetConfig,
    RepLKNetForImageClassification,
    RepLKNetImageProcessor,
    RepLKNetModel,
)
from seedling_hf.replknet.configuration_replknet import MOST_LABELS, VARIANTS

IMAGENETS = {1000: "ImageNet-1K", 21841: "ImageNet-22K"}  # by their number of classes
MOST_LISTED = 200


@dataclass(frozen=True)
class Conversion:
    """A converted model, and what its user should know of it.

    `image_size` is the side of the processor's images in pixels; `class_names` is the ImageNet whose names the classes
    got, None for no names; `left_out` lists the weights that are no part of a RepLKNet, by their names in the file.
    """

    model: PreTrainedModel
    image_size: int
    class_names: str | None
    left_out: list[str]


def infer_config(state_dict: Mapping[str, Tensor]) -> RepLKNetConfig:
    """Infers the configuration from the names and shapes of the weights; InputError if they are no RepLKNet's."""
    kernels = {name: tuple(tensor.shape) for name, tensor in state_dict.items() if tensor.ndim == 4}
    found = [re.match(r"stages\.(\d{1,9})\.blocks\.(\d{1,9})\.", name) for name in kernels]
    blocks = [(int(match[1]), int(match[2])) for match in found if match]
    if not blocks:
        raise InputError(
            f"expected the weights of a RepLKNet (stages.0.blocks.0.pw1.conv.weight, …), found "
            f"{', '.join(list(state_dict)[:5])}, …; convert a checkpoint of the authors' RepLKNet"
        )
    stages = range(max(stage for stage, _ in blocks) + 1)

    def shape(stage: int, kernel: str) -> tuple[int, ...]:
        for name, found in kernels.items():
            if re.fullmatch(rf"stages\.{stage}\.blocks\.{kernel}\.weight", name):
                return found
        raise InputError(f"expected kernels of each kind in stages.{stage}, found one kind missing; get the whole file")

    large = [shape(stage, r"\d+\.large_kernel\.(?:lkb_origin\.conv|lkb_reparam)") for stage in stages]
    mixing = [shape(stage, r"\d*[02468]\.pw1\.conv") for stage in stages]
    feed_forward = [shape(stage, r"\d*[13579]\.pw1\.conv") for stage in stages]
    values = {
        "num_channels": kernels.get("stem.0.conv.weight", (0, 3))[1],
        "kernel_sizes": [kernel[-1] for kernel in large],
        "depths": [max(block for s, block in blocks if s == stage) // 2 + 1 for stage in stages],
        "hidden_sizes": [kernel[1] for kernel in mixing],
        "small_kernel_size": next((k[-1] for n, k in kernels.items() if n.endswith("small_conv.conv.weight")), None),
        "dw_ratio": mixing[0][0] / mixing[0][1],
        "ffn_ratio": feed_forward[0][0] / feed_forward[0][1],
        "reparameterized": any(".lkb_reparam." in name for name in kernels),
    }
    if "head.weight" in state_dict and state_dict["head.weight"].ndim == 2:
        values["num_labels"] = len(state_dict["head.weight"])
    normalized = [stage + 1 for stage in stages if f"stages.{stage}.norm.weight" in state_dict]
    if normalized:
        values |= {"norm_intermediate_features": True, "out_indices": normalized}
    elif not any(name.startswith(("norm.", "head.")) for name in state_dict):
        values["out_indices"] = [stage + 1 for stage in stages]  # as all the authors' networks for dense prediction use
    try:
        return RepLKNetConfig(**values)
    except ValueError as error:
        raise InputError(f"the checkpoint does not have the shapes of a RepLKNet: {error}") from error


def variant_name(config: RepLKNetConfig) -> str | None:
    """The named variant with the shapes of `config`, ignoring merged small kernels; None for any other shape."""
    for name in VARIANTS:
        named = RepLKNetConfig.from_variant(name)
        same = ["kernel_sizes", "depths", "hidden_sizes", "dw_ratio", "ffn_ratio"]
        if not config.reparameterized:
            same.append("small_kernel_size")
        if all(getattr(config, field) == getattr(named, field) for field in same):
            return name
    return None


def load_model(checkpoint: Checkpoint, num_labels: int | None = None) -> PreTrainedModel:
    """The model of a checkpoint, in eval mode.

    With a head it is a classifier, with the last BatchNorm but no head the bare model, otherwise a backbone.
    `num_labels` gives it a new, untrained head. A head of as many classes as an ImageNet has gets its names.

    Raises:
        InputError: with every key that is missing, unexpected or of another shape, or for `num_labels` of a backbone.
    """
    config = infer_config(checkpoint.state_dict)
    config.source_sha256 = checkpoint.sha256
    drop_path_rate = checkpoint.arguments.get("drop_path")
    if isinstance(drop_path_rate, float) and 0 <= drop_path_rate < 1:
        config.drop_path_rate = drop_path_rate
    weights = checkpoint.state_dict
    if num_labels is not None:
        if num_labels > MOST_LABELS:
            raise InputError(f"expected num_labels of at most {MOST_LABELS:,}, found {num_labels:,}")
        if not any(name.startswith("norm.") for name in weights):
            raise InputError(
                "expected the last BatchNorm (norm.weight, …), which a classifier needs, found a network for dense "
                "prediction without one; leave out num_labels to get its backbone, or convert a classifier's file"
            )
        config.num_labels = num_labels
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    is_classifier = num_labels is not None or any(name.startswith("head.") for name in weights)
    if num_labels is None and is_classifier and config.num_labels in IMAGENETS:
        config.id2label = dict(enumerate(imagenet_class_names(config.num_labels)))
        config.label2id = {name: index for index, name in config.id2label.items()}
    has_norm = is_classifier or any(name.startswith("norm.") for name in weights)
    names = official_names(config, head=is_classifier, norm=has_norm)
    if num_labels is not None:
        names = {theirs: ours for theirs, ours in names.items() if not theirs.startswith("head.")}
    kind = RepLKNetForImageClassification if is_classifier else RepLKNetModel if has_norm else RepLKNetBackbone
    with torch.device("meta"):  # names alone could have us build what no machine can hold
        shapes = {name: tuple(tensor.shape) for name, tensor in kind(config).state_dict().items()}
    _refuse_other_weights(weights, {theirs: shapes[ours] for theirs, ours in names.items()})
    model = kind(config)
    model.load_state_dict({ours: weights[theirs] for theirs, ours in names.items()}, strict=False)
    return model.eval()


def imagenet_class_names(num_labels: int) -> list[str]:
    """The classes of the ImageNet with that many, in the order of their WordNet IDs, as timm lists them.

    Where several have one name, such as the bird and the machine called crane, the ID follows it.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo(IMAGENETS[num_labels].lower())
    names = [info.index_to_description(index) for index in range(num_labels)]
    count = Counter(names)
    return [n if count[n] == 1 else f"{n} ({info.index_to_label_name(i)})" for i, n in enumerate(names)]


def _refuse_other_weights(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    faults = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} (expected {shape}, found {tuple(weights[name].shape)})"
            for name, shape in expected.items()
            if name in weights and tuple(weights[name].shape) != shape
        ],
    }
    if any(faults.values()):
        listing = "; ".join(f"{fault}: {_list(names)}" for fault, names in faults.items() if names)
        raise InputError(f"expected the weights of one whole RepLKNet, found {listing}; convert the authors' own file")


def _list(names: list[str]) -> str:
    return ", ".join(names[:MOST_LISTED]) + (f" and {len(names) - MOST_LISTED:,} more" * (len(names) > MOST_LISTED))


def convert_checkpoint(
    checkpoint_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    num_labels: int | None = None,
    checkpoint_key: str | None = None,
    image_size: int | None = None,
) -> Conversion:
    """Writes a published checkpoint as a folder for `from_pretrained`: weights, configuration, processor, code.

    The folder, which must be new or empty, appears complete or not at all. `image_size` is the side of the processor's
    images in pixels; by default that of the authors' run, or 224. For the others see `read_checkpoint` and
    `load_model`.

    Raises:
        InputError: for a file that cannot be read or used, or a folder that is in use.
    """
    output_dir = Path(output_dir)
    check_new_folder(output_dir, "output_dir")
    for name, value in (("num_labels", num_labels), ("image_size", image_size)):
        if value is not None and value < 1:
            raise InputError(f"expected {name} to be at least 1, found {value}")
    if image_size is not None and image_size > LARGEST_SIDE:
        raise InputError(f"expected image_size of at most {LARGEST_SIDE:,} pixels, found {image_size:,}")
    checkpoint = read_checkpoint(checkpoint_path, checkpoint_key)
    model = load_model(checkpoint, num_labels)
    if image_size is None:
        image_size = checkpoint.arguments.get("input_size")
        if type(image_size) is not int or not 1 <= image_size <= LARGEST_SIDE:
            image_size = 224
    processor = RepLKNetImageProcessor.from_variant(variant_name(model.config) or "31B", image_size=image_size)
    with creating_folder(output_dir) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    has_names = hasattr(model, "classifier") and num_labels is None
    return Conversion(
        model, image_size, IMAGENETS.get(model.config.num_labels) if has_names else None, checkpoint.left_out
    )
