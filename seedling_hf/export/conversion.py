"""Converts the authors' checkpoints to folders for `from_pretrained`.

The names are those of https://github.com/DingXiaoH/RepLKNet-pytorch (MIT license).
"""

import argparse
import hashlib
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seedling_hf.errors import InputError
from seedling_hf.files import check_new_folder, creating_folder
from seedling_hf.inference.model_files import LARGEST_SIDE, check_file, check_finite
from seedling_hf.replknet import (
    RepLKNetBackbone,
    RepLKNetConfig,
    RepLKNetForImageClassification,
    RepLKNetImageProcessor,
    RepLKNetModel,
)
from seedling_hf.replknet.configuration_replknet import MOST_LABELS, VARIANTS

CHECKPOINT_KEYS = ("model", "model_ema", "state_dict")
KEY_PREFIXES = ("module.", "backbone.", "_orig_mod.")
MOST_LISTED = 200


@dataclass(frozen=True)
class Checkpoint:
    """Weights with the authors' names, and the arguments of their run."""

    state_dict: dict[str, Tensor]
    arguments: dict[str, Any]
    sha256: str


def read_checkpoint(path: str | os.PathLike, key: str | None = None) -> Checkpoint:
    """Reads a `.pth` file of the authors without executing anything in it.

    Its state dict is bare or under one of `CHECKPOINT_KEYS`: under `key`, or by default under the first one present.

    Raises:
        InputError: for any other file, or objects other than tensors, plain values and a Namespace.
    """
    path = Path(path)
    check_file(path, "a checkpoint")
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except OSError as error:
        raise InputError(f"expected a checkpoint at {path}, found none ({error.strerror}); check the path") from error
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"the object {culprit[1]}" if culprit else "something else"
        raise InputError(
            f"expected tensors, plain values and at most an argparse.Namespace in {path}, found {found}; nothing was "
            "executed: get the file from the authors, or save its state dict alone"
        ) from error
    except Exception as error:  # torch.load raises many kinds of errors for broken files
        raise InputError(f"expected a checkpoint of torch.save at {path}, found another file") from error
    content = content if isinstance(content, Mapping) else {}
    arguments = content.get("args")
    return Checkpoint(
        state_dict=_without_prefixes(_state_dict(content, key, path)),
        arguments=vars(arguments) if isinstance(arguments, argparse.Namespace) else {},
        sha256=sha256,
    )


def _state_dict(content: Mapping, key: str | None, path: Path) -> Mapping:
    present = [k for k in CHECKPOINT_KEYS if isinstance(content.get(k), Mapping)]
    if key is not None and key not in present:
        raise InputError(f"expected {key} in {path}, found {', '.join(map(str, list(content)[:10])) or 'nothing'}")
    state_dict = content[key or present[0]] if present else content
    if not state_dict or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state_dict.items()):
        raise InputError(
            f"expected a state dict in {path}, bare or under {', '.join(CHECKPOINT_KEYS)}, found "
            f"{', '.join(map(str, list(content)[:10])) or 'none'}; convert a file of weights"
        )
    _check_tensors(state_dict, path)
    return state_dict


def _check_tensors(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors that are no plain weights, or that claim more memory than the file has content."""
    storages, num_bytes = {}, 0
    for name, tensor in state_dict.items():
        counts = name.endswith("num_batches_tracked")
        if tensor.layout != torch.strided or tensor.is_quantized or not (tensor.is_floating_point() or counts):
            raise InputError(
                f"expected dense weights in floating point in {path}, found {name} in {tensor.dtype}, {tensor.layout}; "
                "convert the file as it was before it was compressed"
            )
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        num_bytes += tensor.nbytes
    if num_bytes > 2 * sum(storages.values()) + 2**20:
        raise InputError(
            f"expected the content of all weights in {path}, found {sum(storages.values()):,} bytes for weights of "
            f"{num_bytes:,}; get the authors' own file"
        )
    check_finite(state_dict, str(path))


def _without_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in KEY_PREFIXES:
        while all(name.startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    return dict(state_dict)


def official_names(config: RepLKNetConfig, head: bool = True, norm: bool = True) -> dict[str, str]:
    """Maps the authors' name of each weight of the model to its name here.

    A model without `head` is the bare model or a backbone. The last stage of the authors' backbones has no `norm`.
    """
    names = {}

    def add_norm(theirs: str, ours: str) -> None:
        for tensor in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            names[f"{theirs}.{tensor}"] = f"{ours}.{tensor}"

    def add_conv_norm(theirs: str, ours: str) -> None:
        names[f"{theirs}.conv.weight"] = f"{ours}.convolution.weight"
        add_norm(f"{theirs}.bn", f"{ours}.normalization")

    for i in range(4):
        add_conv_norm(f"stem.{i}", f"embeddings.layers.{i}")
    for stage, depth in enumerate(config.depths):
        for i in range(2 if stage > 0 else 0):
            add_conv_norm(f"transitions.{stage - 1}.{i}", f"encoder.stages.{stage}.downsampling.{i}")
        for layer in range(depth):
            theirs, ours = f"stages.{stage}.blocks.{2 * layer}", f"encoder.stages.{stage}.layers.{layer}"
            add_norm(f"{theirs}.prelkb_bn", f"{ours}.large_kernel_block.normalization")
            add_conv_norm(f"{theirs}.pw1", f"{ours}.large_kernel_block.pointwise1")
            add_conv_norm(f"{theirs}.pw2", f"{ours}.large_kernel_block.pointwise2")
            kernel, our_kernel = f"{theirs}.large_kernel", f"{ours}.large_kernel_block.large_kernel"
            if config.reparameterized:
                names[f"{kernel}.lkb_reparam.weight"] = f"{our_kernel}.merged.weight"
                names[f"{kernel}.lkb_reparam.bias"] = f"{our_kernel}.merged.bias"
            else:
                add_conv_norm(f"{kernel}.lkb_origin", f"{our_kernel}.large")
                if config.small_kernel_size is not None:
                    add_conv_norm(f"{kernel}.small_conv", f"{our_kernel}.small")
            theirs = f"stages.{stage}.blocks.{2 * layer + 1}"
            add_norm(f"{theirs}.preffn_bn", f"{ours}.feed_forward_block.normalization")
            add_conv_norm(f"{theirs}.pw1", f"{ours}.feed_forward_block.pointwise1")
            add_conv_norm(f"{theirs}.pw2", f"{ours}.feed_forward_block.pointwise2")
        if config.norm_intermediate_features and f"stage{stage + 1}" in config.out_features:
            add_norm(f"stages.{stage}.norm", f"hidden_states_norms.stage{stage + 1}")
    if norm:
        add_norm("norm", "normalization")
    if head:
        names = {theirs: f"replknet.{ours}" for theirs, ours in names.items()}
        names |= {"head.weight": "classifier.weight", "head.bias": "classifier.bias"}
    return names


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
    `num_labels` gives it a new, untrained head.

    Raises:
        InputError: with every key that is missing, unexpected or of another shape.
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
        config.num_labels = num_labels
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    is_classifier = num_labels is not None or any(name.startswith("head.") for name in weights)
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
) -> PreTrainedModel:
    """Writes a checkpoint of the authors as a folder for `from_pretrained`: weights, configuration, processor, code.

    The folder, which must be new or empty, appears complete or not at all. `image_size` is the side of the processor's
    images in pixels; by default that of the authors' run, or 224. For the others see `read_checkpoint` and
    `load_model`. Returns the model.

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
    return model
