"""RepLKNet (Ding et al., "Scaling Up Your Kernels to 31x31", arXiv 2203.06717).

The arithmetic follows the authors' code, https://github.com/DingXiaoH/RepLKNet-pytorch (MIT license). Activations are
(N, C, H, W) in the memory format channels_last throughout. Sums and ReLU work in place: first touches of fresh memory
take longer than the arithmetic, and no gradient needs what they overwrite. Where hooks may keep it, they take a copy.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithNoAttention,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_replknet import RepLKNetConfig
from .downsampling_conv import DownsamplingConv2d
from .large_kernel_conv import DepthwiseConv2d, in_fast_format
from .pointwise_conv import PointwiseConv2d, gelu

AUTO_MAP = {
    "AutoConfig": "configuration_replknet.RepLKNetConfig",
    "AutoModel": "modeling_replknet.RepLKNetModel",
    "AutoBackbone": "modeling_replknet.RepLKNetBackbone",
    "AutoModelForImageClassification": "modeling_replknet.RepLKNetForImageClassification",
}

# What can be merged, by its name.
MERGED_LAYERS = {"convolution": nn.Conv2d, "normalization": (nn.BatchNorm2d, nn.SyncBatchNorm, nn.Identity)}


class RepLKNetConvNorm(nn.Module):
    """A convolution and its BatchNorm; with a folded BatchNorm the convolution has a bias instead."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.normalization = nn.BatchNorm2d(convolution.out_channels) if convolution.bias is None else nn.Identity()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.normalization(self.convolution(hidden_states))

    def relu(self, hidden_states: Tensor) -> Tensor:
        """Computes `F.relu(self(hidden_states))`."""
        return F.relu_(_writable(self(hidden_states), self))

    def gelu(self, hidden_states: Tensor) -> Tensor:
        """Computes `F.gelu(self(hidden_states))`, in one operation if the BatchNorm is folded."""
        if isinstance(self.normalization, nn.Identity) and not _are_hooked(self):
            return self.convolution(hidden_states, activation="gelu")
        return gelu(self(hidden_states))

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution that includes the BatchNorm at inference, in float64 on the CPU."""
        weight, bias = self.convolution.weight.to("cpu", torch.float64), self.convolution.bias
        if bias is not None:
            return weight, bias.to("cpu", torch.float64)
        scale, shift = _affine(self.normalization)
        return weight * scale[:, None, None, None], shift


class RepLKNetDropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, each sample's residual is dropped with a probability."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.drop_prob == 0 or not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        return hidden_states * hidden_states.new_empty(len(hidden_states), 1, 1, 1).bernoulli_(keep_prob).div(keep_prob)

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class RepLKNetEmbeddings(nn.Module):
    """The stem (section 4.1): (N, num_channels, H, W) images -> (N, hidden_sizes[0], H / 4, W / 4)."""

    def __init__(self, config: RepLKNetConfig) -> None:
        super().__init__()
        channels = config.hidden_sizes[0]
        self.num_channels = config.num_channels
        self.layers = nn.ModuleList(
            [
                RepLKNetConvNorm(nn.Conv2d(config.num_channels, channels, 3, 2, 1, bias=config.fused)),
                RepLKNetConvNorm(_depthwise(channels, 3, bias=config.fused)),
                RepLKNetConvNorm(PointwiseConv2d(channels, channels, 1, bias=config.fused)),
                RepLKNetConvNorm(DownsamplingConv2d(channels, channels, 3, 2, 1, groups=channels, bias=config.fused)),
            ]
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"expected pixel_values of shape (N, {self.num_channels}, H, W), found {tuple(pixel_values.shape)}; "
                "pass images with num_channels of the configuration"
            )
        hidden_states = pixel_values.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            hidden_states = layer.relu(hidden_states)
        return hidden_states


class RepLKNetLargeKernel(nn.Module):
    """A large depthwise convolution and a small one in parallel (section 3, guideline 3), or both merged."""

    def __init__(self, config: RepLKNetConfig, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.large = self.small = self.merged = None
        implementation = config.conv_implementation
        if config.reparameterized:
            self.merged = _depthwise(channels, kernel_size, implementation, bias=True)
            return
        self.large = RepLKNetConvNorm(_depthwise(channels, kernel_size, implementation))
        if config.small_kernel_size is not None:
            self.small = RepLKNetConvNorm(_depthwise(channels, config.small_kernel_size, implementation))

    def forward(self, hidden_states: Tensor, relu: bool = False) -> Tensor:
        if isinstance(self.merged or self.large.convolution, DepthwiseConv2d):  # once for both convolutions
            hidden_states = in_fast_format(hidden_states)
        if self.merged is not None:
            return self.merged(hidden_states, relu=relu)
        output = _writable(self.large(hidden_states), self.large)
        if self.small is not None:
            output = output.add_(self.small(hidden_states))
        return F.relu_(output) if relu else output

    @torch.no_grad()
    def reparameterize(self) -> None:
        if self.merged is not None:
            return
        weight, bias = self.large.folded()
        if self.small is not None:
            small_weight, small_bias = self.small.folded()
            margin = (weight.shape[-1] - small_weight.shape[-1]) // 2
            weight = weight + F.pad(small_weight, [margin] * 4)
            bias = bias + small_bias
        old = self.large.convolution
        self.merged = _depthwise(old.out_channels, old.kernel_size[0], old.implementation, bias=True).to(old.weight)
        self.merged.weight.copy_(weight)
        self.merged.bias.copy_(bias)
        self.merged.train(self.training)
        self.large = self.small = None


class RepLKNetLargeKernelBlock(nn.Module):
    """Mixes positions: BatchNorm, 1x1, large depthwise convolution, 1x1, around a shortcut."""

    def __init__(self, config: RepLKNetConfig, channels: int, kernel_size: int, drop_prob: float) -> None:
        super().__init__()
        inner = int(channels * config.dw_ratio)
        self.normalization = nn.Identity() if config.fused else nn.BatchNorm2d(channels)
        self.pointwise1 = RepLKNetConvNorm(PointwiseConv2d(channels, inner, 1, bias=config.fused))
        self.large_kernel = RepLKNetLargeKernel(config, inner, kernel_size)
        self.pointwise2 = RepLKNetConvNorm(PointwiseConv2d(inner, channels, 1, bias=config.fused))
        self.drop_path = RepLKNetDropPath(drop_prob)

    def forward(self, hidden_states: Tensor) -> Tensor:
        residual = hidden_states
        hidden_states = self.normalization(hidden_states)
        hidden_states = self.pointwise1.relu(hidden_states)
        hidden_states = self.large_kernel(hidden_states, relu=True)
        hidden_states = self.pointwise2(hidden_states)
        return _writable(self.drop_path(hidden_states), self.pointwise2, self.drop_path).add_(residual)


class RepLKNetFeedForwardBlock(nn.Module):
    """Mixes channels: BatchNorm, 1x1, GELU, 1x1, around a shortcut."""

    def __init__(self, config: RepLKNetConfig, channels: int, drop_prob: float) -> None:
        super().__init__()
        inner = int(channels * config.ffn_ratio)
        self.normalization = nn.Identity() if config.fused else nn.BatchNorm2d(channels)
        self.pointwise1 = RepLKNetConvNorm(PointwiseConv2d(channels, inner, 1, bias=config.fused))
        self.pointwise2 = RepLKNetConvNorm(PointwiseConv2d(inner, channels, 1, bias=config.fused))
        self.drop_path = RepLKNetDropPath(drop_prob)

    def forward(self, hidden_states: Tensor) -> Tensor:
        residual = hidden_states
        hidden_states = self.normalization(hidden_states)
        hidden_states = self.pointwise1.gelu(hidden_states)
        hidden_states = self.pointwise2(hidden_states)
        return _writable(self.drop_path(hidden_states), self.pointwise2, self.drop_path).add_(residual)


class RepLKNetLayer(GradientCheckpointingLayer):
    """A large-kernel block and a feed-forward block."""

    def __init__(self, config: RepLKNetConfig, channels: int, kernel_size: int, drop_prob: float) -> None:
        super().__init__()
        self.large_kernel_block = RepLKNetLargeKernelBlock(config, channels, kernel_size, drop_prob)
        self.feed_forward_block = RepLKNetFeedForwardBlock(config, channels, drop_prob)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.feed_forward_block(self.large_kernel_block(hidden_states))


class RepLKNetStage(nn.Module):
    """Halves height and width (except in the first stage), then runs its layers."""

    def __init__(self, config: RepLKNetConfig, index: int, drop_probs: list[float]) -> None:
        super().__init__()
        channels = config.hidden_sizes[index]
        self.downsampling = nn.ModuleList()
        if index > 0:
            previous = config.hidden_sizes[index - 1]
            self.downsampling.append(RepLKNetConvNorm(PointwiseConv2d(previous, channels, 1, bias=config.fused)))
            convolution = DownsamplingConv2d(channels, channels, 3, 2, 1, groups=channels, bias=config.fused)
            self.downsampling.append(RepLKNetConvNorm(convolution))
        self.layers = nn.ModuleList(
            [RepLKNetLayer(config, channels, config.kernel_sizes[index], drop_prob) for drop_prob in drop_probs]
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        for layer in self.downsampling:
            hidden_states = layer.relu(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


class RepLKNetPreTrainedModel(PreTrainedModel):
    """Initialization, saving and the two forms for inference, shared by all RepLKNet models."""

    config: RepLKNetConfig
    base_model_prefix = "replknet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["RepLKNetLayer", "RepLKNetEmbeddings"]  # noqa: RUF012, the name of the library
    _input_embed_layer = "embeddings"
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.Linear)):  # torch's own initialization, which the authors keep
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, every_n_layers: int = 1
    ) -> None:
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, every_n_layers)
        for layer in self.modules():
            if isinstance(layer, RepLKNetLayer):
                layer._gradient_checkpointing_func = partial(_checkpoint, gradient_checkpointing_func, layer)

    def reparameterize(self) -> "RepLKNetPreTrainedModel":
        """Merges the small kernels and the BatchNorms behind them into the large kernels, in place, for inference.

        The merged model has the same outputs in eval mode (it uses the running statistics), and saves and loads as
        merged. It can no longer be trained. A merged model stays unchanged. Call it on the whole model, outside any
        wrapper, since optimizers and wrappers hold the parameters that it replaces.

        Returns:
            The model itself.

        Raises:
            ValueError: if the weights are not there (on the meta device), or an adapter (PEFT) is on what is merged.
        """
        if not self.config.reparameterized:
            self._refuse_meta_device()
            self._refuse_adapters(RepLKNetLargeKernel)
            for module in self.modules():
                if isinstance(module, RepLKNetLargeKernel):
                    module.reparameterize()
            self._change_config(reparameterized=True)
        return self

    def fuse_batch_norms(self) -> "RepLKNetPreTrainedModel":
        """Merges like `reparameterize`, then folds every BatchNorm next to a convolution into it, in place.

        Folding is exact: the BatchNorms before a block precede 1x1 convolutions, which have no padding. The BatchNorm
        before pooling and those of `norm_intermediate_features` stay.

        Raises:
            ValueError: as `reparameterize` does; the model is unchanged then.
        """
        if not self.config.fused:
            self._refuse_meta_device()
            self._refuse_adapters(RepLKNetConvNorm, RepLKNetLargeKernelBlock, RepLKNetFeedForwardBlock)
        self.reparameterize()
        if not self.config.fused:
            for module in self.modules():
                if isinstance(module, RepLKNetConvNorm):
                    _fuse(module)
            for module in self.modules():
                if isinstance(module, (RepLKNetLargeKernelBlock, RepLKNetFeedForwardBlock)):
                    _fuse_before(module)
            self._change_config(fused=True)
        return self

    def _refuse_meta_device(self) -> None:
        if any(parameter.is_meta for parameter in self.parameters()):
            raise ValueError("expected weights to merge, found parameters on the meta device; load the weights first")

    def _refuse_adapters(self, *merged: type[nn.Module]) -> None:
        """Refuses layers inside `merged` that PEFT, or another library, has put its own in place of."""
        for name, module in self.named_modules():
            if not isinstance(module, merged):
                continue
            for child_name, child in module.named_modules(prefix=name):
                kinds = MERGED_LAYERS.get(child_name.rsplit(".", 1)[-1])
                if kinds and not isinstance(child, kinds):
                    raise ValueError(
                        f"expected a layer to merge in {child_name}, found {type(child).__module__}."
                        f"{type(child).__name__}; if it is an adapter's, merge that first, with merge_and_unload() of "
                        "PEFT"
                    )

    def _change_config(self, **changes: bool) -> None:
        # A copy, since another model may share the configuration; one copy for all parts of this model.
        config = copy.deepcopy(self.config)
        for name, value in changes.items():
            setattr(config, name, value)
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.config = config

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Saves like `PreTrainedModel.save_pretrained`, with the code and an `auto_map` for all Auto classes."""
        for name, module in self.named_modules():
            if isinstance(module, RepLKNetPreTrainedModel) and (
                module.config.reparameterized != self.config.reparameterized or module.config.fused != self.config.fused
            ):
                raise ValueError(
                    f"expected {name} to be merged like the whole model, found it merged alone; call "
                    "reparameterize() or fuse_batch_norms() on the whole model before saving"
                )
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, **kwargs)


class RepLKNetEncoder(RepLKNetPreTrainedModel):
    main_input_name = "hidden_states"
    _can_record_outputs = {"hidden_states": RepLKNetStage}  # noqa: RUF012, the name of the library

    def __init__(self, config: RepLKNetConfig) -> None:
        super().__init__(config)
        config.validate_architecture()  # values may have changed since the configuration was created
        drop_probs = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").split(config.depths)
        self.stages = nn.ModuleList(
            [RepLKNetStage(config, index, probs.tolist()) for index, probs in enumerate(drop_probs)]
        )
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, hidden_states: Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutputWithNoAttention:
        if self.config.reparameterized and self.training and torch.is_grad_enabled():
            raise ValueError(
                "expected a model in its training form, found a merged one (reparameterized=True) without BatchNorms; "
                "train the model from before reparameterize(), or call eval() to use this one"
            )
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        return BaseModelOutputWithNoAttention(last_hidden_state=hidden_states)


class RepLKNetModel(RepLKNetPreTrainedModel):
    """RepLKNet without a head: features of the last stage, and their normalized mean."""

    _auto_class = "AutoModel"

    def __init__(self, config: RepLKNetConfig) -> None:
        super().__init__(config)
        self.embeddings = RepLKNetEmbeddings(config)
        self.encoder = RepLKNetEncoder(config)
        self.normalization = nn.BatchNorm2d(config.hidden_sizes[-1])
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Computes features.

        Args:
            pixel_values: Normalized images, (N, num_channels, H, W); multiples of 32 need no padding.

        Returns:
            `last_hidden_state` (N, hidden_sizes[-1], H / 32, W / 32 with four stages), not normalized;
            `pooler_output` (N, hidden_sizes[-1]); with `output_hidden_states`, the outputs of stem and stages.
        """
        if pixel_values is None:
            raise ValueError("expected pixel_values, found None; pass the images")
        outputs = self.encoder(self.embeddings(pixel_values), **kwargs)
        pooled = self.normalization(outputs.last_hidden_state).mean((-2, -1))  # (N, C, H, W) -> (N, C)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=outputs.last_hidden_state, pooler_output=pooled, hidden_states=outputs.hidden_states
        )


class RepLKNetForImageClassification(RepLKNetPreTrainedModel):
    """RepLKNet with a linear classifier on the pooled features."""

    _auto_class = "AutoModelForImageClassification"
    accepts_loss_kwargs = False

    def __init__(self, config: RepLKNetConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.replknet = RepLKNetModel(config)
        self.classifier = (
            nn.Linear(config.hidden_sizes[-1], config.num_labels) if config.num_labels > 0 else nn.Identity()
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutputWithNoAttention:
        """Classifies images.

        Args:
            pixel_values: Normalized images, (N, num_channels, H, W).
            labels: Class indices (N,), or the probability of each class (N, num_labels) for the cross-entropy with
                soft targets; `problem_type` of the configuration selects other losses, as in transformers.

        Returns:
            `loss` if there are labels, `logits` (N, num_labels), and `hidden_states` if requested.
        """
        outputs = self.replknet(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            if self._are_soft(labels):
                loss = F.cross_entropy(logits, labels.to(logits))
            else:
                loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def _are_soft(self, labels: Tensor) -> bool:
        return (
            self.config.problem_type in (None, "single_label_classification")
            and labels.is_floating_point()
            and labels.ndim == 2
            and labels.shape[1] == self.num_labels > 1
        )


class RepLKNetBackbone(BackboneMixin, RepLKNetPreTrainedModel):
    """RepLKNet as the backbone of detection or segmentation: the features of chosen stages."""

    _auto_class = "AutoBackbone"
    has_attentions = False

    def __init__(self, config: RepLKNetConfig) -> None:
        super().__init__(config)
        self.embeddings = RepLKNetEmbeddings(config)
        self.encoder = RepLKNetEncoder(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.hidden_states_norms = nn.ModuleDict()
        for name, channels in zip(self.out_features, self.channels, strict=True):
            if config.norm_intermediate_features and name != "stem":
                self.hidden_states_norms[name] = nn.BatchNorm2d(channels)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Computes the features of `out_features`, each (N, channels of the stage, H / stride, W / stride).

        Args:
            pixel_values: Normalized images, (N, num_channels, H, W).

        Returns:
            `feature_maps` in the order of `out_features`, and `hidden_states` if requested.
        """
        hidden_states = self.encoder(self.embeddings(pixel_values), **kwargs).hidden_states
        feature_maps = []
        for name, hidden_state in zip(self.stage_names, hidden_states, strict=True):
            if name in self.out_features:
                norms = self.hidden_states_norms
                feature_maps.append(norms[name](hidden_state) if name in norms else hidden_state)
        return BackboneOutput(feature_maps=tuple(feature_maps), hidden_states=hidden_states)


def _depthwise(
    channels: int, kernel_size: int, implementation: str | None = None, bias: bool = False
) -> DepthwiseConv2d:
    padding = kernel_size // 2
    return DepthwiseConv2d(
        channels, channels, kernel_size, padding=padding, groups=channels, bias=bias, implementation=implementation
    )


def _writable(output: Tensor, *modules: nn.Module) -> Tensor:
    """The output of the last module, or a copy where hooks may keep it, so that the caller may overwrite it."""
    return output.clone() if _are_hooked(*modules) else output


def _are_hooked(*modules: nn.Module) -> bool:
    """Whether the modules or their parts have hooks that see outputs."""
    for module in modules:  # private: PyTorch has no public way to ask
        for part in (module, *module._modules.values()):
            if part._forward_hooks or part._backward_hooks or part._backward_pre_hooks:
                return True
    return bool(nn.modules.module._has_any_global_hook())


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a BatchNorm at inference, in float64 on the CPU."""
    weight, bias, mean, variance = (
        tensor.to("cpu", torch.float64) for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = weight / torch.sqrt(variance + norm.eps)
    return scale, bias - mean * scale


@torch.no_grad()
def _fuse(module: RepLKNetConvNorm) -> None:
    """Folds the BatchNorm behind a convolution into it."""
    weight, bias = module.folded()
    convolution = module.convolution
    convolution.weight.copy_(weight)
    convolution.bias = nn.Parameter(bias.to(convolution.weight))
    module.normalization = nn.Identity()


@torch.no_grad()
def _fuse_before(block: RepLKNetLargeKernelBlock | RepLKNetFeedForwardBlock) -> None:
    """Folds the BatchNorm before a block into the block's first 1x1 convolution: W (a x + b) = (W a) x + W b."""
    scale, shift = _affine(block.normalization)
    convolution = block.pointwise1.convolution
    weight = convolution.weight.to("cpu", torch.float64)
    bias = convolution.bias.to("cpu", torch.float64) + weight.flatten(1) @ shift
    convolution.bias.copy_(bias)
    convolution.weight.copy_(weight * scale[:, None, None])
    block.normalization = nn.Identity()


def _checkpoint(function: Callable, layer: nn.Module, forward: Callable, *args):
    """Checkpoints `forward`; its second run must not update the running statistics."""
    is_first_run = True

    def run(*args):
        nonlocal is_first_run
        if is_first_run:
            is_first_run = False
            return forward(*args)
        with _scratch_statistics(layer):
            return forward(*args)

    return function(run, *args)


@contextmanager
def _scratch_statistics(module: nn.Module) -> Iterator[None]:
    """Lets BatchNorms update copies of their statistics, and restores the statistics."""
    # private: the common class of all BatchNorms
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: buffer.clone() for name, buffer in norm._buffers.items() if buffer is not None})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


__all__ = [
    "RepLKNetBackbone",
    "RepLKNetForImageClassification",
    "RepLKNetModel",
    "RepLKNetPreTrainedModel",
]
