"""Configuration of RepLKNet (Ding et al., "Scaling Up Your Kernels to 31x31", arXiv 2203.06717)."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

FORMAT_VERSION = 1
CONV_IMPLEMENTATIONS = ("plain", "direct", "dense", "fft", "implicit_gemm")
# Far above every network that has been trained: a file with a larger number is damaged, or meant to exhaust a machine.
LARGEST = {"num_channels": 1024, "kernel_sizes": 1023, "hidden_sizes": 65_536, "dw_ratio": 64, "ffn_ratio": 64}
MOST_LAYERS = 1000
MOST_LABELS = 100_000
VARIANTS: dict[str, dict[str, Any]] = {
    "31B": {},
    "31L": {"hidden_sizes": [192, 384, 768, 1536]},
    "XL": {
        "kernel_sizes": [27, 27, 27, 13],
        "hidden_sizes": [256, 512, 1024, 2048],
        "small_kernel_size": None,
        "dw_ratio": 1.5,
    },
    # Not in the paper: for machines without a GPU (3.3 M parameters with 12 classes) and for tests (0.14 M).
    "nano": {"depths": [2, 2, 6, 2], "hidden_sizes": [32, 64, 128, 256], "drop_path_rate": 0.05},
    "tiny": {
        "kernel_sizes": [15, 13, 11, 7],
        "depths": [1, 1, 2, 1],
        "hidden_sizes": [16, 32, 48, 64],
        "drop_path_rate": 0.0,
    },
}


@strict
class RepLKNetConfig(BackboneConfigMixin, PreTrainedConfig):
    """The architecture of a RepLKNet; the defaults are RepLKNet-31B (arXiv 2203.06717, section 4.1).

    Args:
        num_channels: Channels of the images.
        kernel_sizes: Side of the large depthwise kernels of each stage, odd.
        depths: Layers of each stage; a layer is a large-kernel block and a feed-forward block.
        hidden_sizes: Channels of each stage.
        small_kernel_size: Side of the odd kernel trained in parallel to each large one; None for no small kernels.
        dw_ratio: Channels inside a large-kernel block as a multiple of the stage's.
        ffn_ratio: Channels inside a feed-forward block as a multiple of the stage's.
        drop_path_rate: Probability of dropping the last layer's residuals; it grows from 0 at the first.
        norm_intermediate_features: Whether the backbone normalizes its stage features (a BatchNorm each), as the
            authors do for XL on dense prediction.
        reparameterized: Whether the small kernels are merged into the large ones, for inference.
        fused: Whether every BatchNorm next to a convolution is folded into it, for inference.
        conv_implementation: How the large depthwise convolutions are computed; None chooses for each shape and device.
        calibration_temperature: What the logits were divided by, in the classifier's weights, so that probabilities are
            right; None for a model that was not calibrated.
        confidence_threshold: The probability from which on an answer counts as sure; None where nothing is known.
        source_sha256: SHA-256 of the checkpoint file that the weights were converted from.
        format_version: Version of the names of weights and fields, so that later versions can read older folders.
        out_features: Names of the stages that the backbone returns, among `stem`, `stage1`, ….
        out_indices: The same as indices; 0 is the stem.

    Raises:
        ValueError: for an invalid value, with its name and what was expected and found.
    """

    model_type = "replknet"
    attribute_map = {"num_hidden_layers": "num_stages"}  # noqa: RUF012, the name of the library
    _auto_class = "AutoConfig"

    num_channels: int = 3
    kernel_sizes: list[int] | tuple[int, ...] = (31, 29, 27, 13)
    depths: list[int] | tuple[int, ...] = (2, 2, 18, 2)
    hidden_sizes: list[int] | tuple[int, ...] = (128, 256, 512, 1024)
    small_kernel_size: int | None = 5
    dw_ratio: float | int = 1.0
    ffn_ratio: float | int = 4.0
    drop_path_rate: float | int = 0.3
    norm_intermediate_features: bool = False
    reparameterized: bool = False
    fused: bool = False
    conv_implementation: str | None = None
    calibration_temperature: float | int | None = None
    confidence_threshold: float | int | None = None
    source_sha256: str | None = None
    format_version: int = FORMAT_VERSION
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.kernel_sizes = list(self.kernel_sizes)
        self.depths = list(self.depths)
        self.hidden_sizes = list(self.hidden_sizes)
        self.validate_architecture()
        self._check_labels(kwargs.get("num_labels"))
        out_indices = kwargs.pop("out_indices", None)
        if isinstance(out_indices, (list, tuple)) and any(
            isinstance(index, int) and index < -len(self.stage_names) for index in out_indices
        ):
            raise ValueError(f"expected out_indices of at least {-len(self.stage_names)}, found {out_indices}")
        self.set_output_features_output_indices(out_indices=out_indices, out_features=kwargs.pop("out_features", None))
        super().__post_init__(**kwargs)

    @classmethod
    def from_variant(cls, name: str, **kwargs) -> "RepLKNetConfig":
        """The configuration of a named RepLKNet (31B, 31L, XL, nano or tiny), whose values `kwargs` override.

        A single number in `kernel_sizes` holds for all stages; small kernels are never larger than the large ones.
        """
        if name not in VARIANTS:
            raise ValueError(f"expected a variant of {', '.join(VARIANTS)}, found {name!r}; give one of these names")
        values = {**VARIANTS[name], **kwargs}
        kernels = kwargs.get("kernel_sizes")
        if kernels:
            values["kernel_sizes"] = list(kernels) * (len(values.get("depths", cls.depths)) if len(kernels) == 1 else 1)
            values.setdefault("small_kernel_size", min(cls.small_kernel_size, *values["kernel_sizes"]))
        config = cls(**values)
        unknown = [field for field in kwargs if not hasattr(RepLKNetConfig(), field)]
        if unknown:  # transformers would keep them as unused attributes
            raise ValueError(f"expected fields of RepLKNetConfig, found {', '.join(unknown)}; check their names")
        return config

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    @property
    def stage_names(self) -> list[str]:
        return ["stem"] + [f"stage{number}" for number in range(1, self.num_stages + 1)]

    def validate_architecture(self) -> None:
        if self.format_version not in range(1, FORMAT_VERSION + 1):
            raise ValueError(
                f"expected format_version 1 to {FORMAT_VERSION}, found {self.format_version}: a later version wrote "
                "this model; update seedling_hf"
            )
        self._check_stages()
        if self.small_kernel_size is not None:
            if self.small_kernel_size < 1 or self.small_kernel_size % 2 == 0:
                raise ValueError(
                    f"expected small_kernel_size to be odd and positive, or None, found {self.small_kernel_size}"
                )
            if self.small_kernel_size > min(self.kernel_sizes):
                raise ValueError(
                    f"expected small_kernel_size to be at most the smallest of kernel_sizes, {min(self.kernel_sizes)}, "
                    f"found {self.small_kernel_size}"
                )
        if self.num_channels < 1:
            raise ValueError(f"expected num_channels to be positive, found {self.num_channels}")
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if (max(value) if isinstance(value, list) else value) > largest:
                raise ValueError(f"expected {name} of at most {largest:,}, found {value}")
        for name in ("dw_ratio", "ffn_ratio"):
            value = getattr(self, name)
            if not math.isfinite(value) or int(min(self.hidden_sizes) * value) < 1:
                raise ValueError(f"expected {name} to leave at least one channel, found {value}")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"expected drop_path_rate to be at least 0 and below 1, found {self.drop_path_rate}")
        temperature = self.calibration_temperature
        if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"expected calibration_temperature to be a positive number or None, found {temperature}")
        if self.confidence_threshold is not None and not 0 <= self.confidence_threshold <= 1:
            raise ValueError(
                f"expected confidence_threshold to be from 0 to 1 or None, found {self.confidence_threshold}"
            )
        if self.fused and not self.reparameterized:
            raise ValueError("expected reparameterized=True where fused=True, found False; set both or neither")
        if self.conv_implementation not in (None, *CONV_IMPLEMENTATIONS):
            raise ValueError(
                f"expected conv_implementation to be None or one of {', '.join(CONV_IMPLEMENTATIONS)}, "
                f"found {self.conv_implementation!r}"
            )

    def _check_stages(self) -> None:
        for name in ("kernel_sizes", "depths", "hidden_sizes"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"expected {name} to be positive numbers, one for each stage, found {values}")
        if sum(self.depths) > MOST_LAYERS:
            raise ValueError(f"expected depths of at most {MOST_LAYERS:,} layers together, found {sum(self.depths):,}")
        for name in ("kernel_sizes", "hidden_sizes"):
            if len(getattr(self, name)) != self.num_stages:
                raise ValueError(
                    f"expected {name} to have {self.num_stages} entries like depths, found {getattr(self, name)}"
                )
        for size in self.kernel_sizes:
            if size % 2 == 0:
                raise ValueError(f"expected kernel_sizes to be odd, found {size} in {self.kernel_sizes}")

    def _check_labels(self, num_labels: int | None) -> None:
        if num_labels is not None and (type(num_labels) is not int or not 0 <= num_labels <= MOST_LABELS):
            raise ValueError(f"expected num_labels to be a number from 0 to {MOST_LABELS:,}, found {num_labels!r}")
        names = self.id2label
        if names is None:
            return
        if not isinstance(names, dict) or len(names) > MOST_LABELS:
            found = f"{len(names):,} entries" if isinstance(names, dict) else type(names).__name__
            raise ValueError(f"expected id2label to be a dictionary of at most {MOST_LABELS:,} names, found {found}")
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise ValueError(
                f"expected id2label to name the classes 0 to {len(names) - 1}, found {', '.join(map(str, names))[:100]}"
            )
        for number, name in names.items():
            if not isinstance(name, str):
                raise ValueError(f"expected id2label to give class {number} a string as its name, found {name!r}")


__all__ = ["RepLKNetConfig"]
