"""The names of RepLKNet's weights: those of the authors' classifiers, and the layouts that others publish.

Theirs are those of https://github.com/DingXiaoH/RepLKNet-pytorch (MIT license); mmpretrain's are written by its
`replknet_to_mmpretrain.py`; a head under `cls_22k` is known from https://github.com/shkarupa-alex/tfreplknet.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from seedling_hf.replknet import RepLKNetConfig

WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
BACKBONE, BACKBONE_HEAD, HEAD_22K = "backbone.", "head.fc.", "head.cls_22k."


def official_names(config: RepLKNetConfig, head: bool = True, norm: bool = True) -> dict[str, str]:
    """Maps the authors' name of each weight of the model to its name here.

    A model without `head` is the bare model or a backbone; a backbone has no `norm`, and may have one after each stage.
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
        is_normalized = config.norm_intermediate_features and f"stage{stage + 1}" in config.out_features
        if is_normalized and not norm:
            add_norm(f"stages.{stage}.norm", f"hidden_states_norms.stage{stage + 1}")
    if norm:
        add_norm("norm", "normalization")
    if head:
        names = {theirs: f"replknet.{ours}" for theirs, ours in names.items()}
        names |= {"head.weight": "classifier.weight", "head.bias": "classifier.bias"}
    return names


def authors_layout(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a RepLKNet by the authors' names, and the names of the weights that are no part of it.

    Where names begin with `backbone.`, as in mmpretrain, mmsegmentation and mmdetection, these are the network and
    `head.fc` is its head; everything else belongs to another network, such as `decode_head`. A head `head.cls_22k` is
    `head`. A norm of the last stage alone is the `norm` before pooling. What would take the place of another weight
    keeps its name.
    """
    while prefix := next((p for p in WRAPPERS if state_dict and all(n.startswith(p) for n in state_dict)), None):
        state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    left_out = []
    network = {n.removeprefix(BACKBONE): tensor for n, tensor in state_dict.items() if n.startswith(BACKBONE)}
    if network:
        head = {name: tensor for name, tensor in state_dict.items() if name.startswith(BACKBONE_HEAD)}
        if not any(name.startswith("head.") for name in network):
            network |= _renamed(head, BACKBONE_HEAD, "head.")
        else:
            head = {}
        left_out = [name for name in state_dict if not name.startswith(BACKBONE) and name not in head]
        state_dict = network
    state_dict = _renamed(state_dict, HEAD_22K, "head.")
    normalized = {int(match[1]) for match in map(re.compile(r"stages\.(\d{1,9})\.norm\.").match, state_dict) if match}
    stages = {int(match[1]) for match in map(re.compile(r"stages\.(\d{1,9})\.").match, state_dict) if match}
    if normalized and normalized == {max(stages)}:
        state_dict = _renamed(state_dict, f"stages.{max(stages)}.norm.", "norm.")
    return dict(state_dict), left_out


def _renamed(state_dict: Mapping[str, Tensor], theirs: str, ours: str) -> Mapping[str, Tensor]:
    if any(name.startswith(ours) and not name.startswith(theirs) for name in state_dict):
        return state_dict
    return {re.sub(f"^{re.escape(theirs)}", ours, name): tensor for name, tensor in state_dict.items()}
