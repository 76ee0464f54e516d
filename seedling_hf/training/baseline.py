"""timm networks as models of transformers: baselines for the same commands.

They are transformers' own `TimmWrapperForImageClassification`, so their folders load wherever timm is installed,
without code of this package.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from transformers import BaseImageProcessor, BitImageProcessor, PreTrainedModel

from seedling_hf.errors import InputError


def build_timm_classifier(
    architecture: str,
    labels: Mapping[str, Mapping],
    *,
    image_size: int | None = None,
    drop_path_rate: float | None = None,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A timm network such as `resnet18` with random weights drawn by timm, and the processor of its images.

    Args:
        labels: `id2label` and `label2id`.
        image_size: Side of the images in pixels, for networks that are built for one size; timm's default if None.

    Raises:
        InputError: for an unknown name, or for stochastic depth in a network without it.
    """
    import timm
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models())
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() lists the names"
        raise InputError(f"expected --timm_architecture of timm {timm.__version__}, found {architecture}{hint}")
    defaults = timm.get_pretrained_cfg(architecture)
    model_args = {"img_size": image_size} if defaults.fixed_input_size and image_size else {}
    model_args = timm_arguments(model_args, drop_path_rate) or {}
    config = TimmWrapperConfig(architecture=architecture, model_args=model_args or None, **labels)
    try:
        # transformers draws all convolutions again from one normal distribution; a fair baseline starts from timm's.
        weights = timm.create_model(architecture, num_classes=config.num_labels, **model_args).state_dict()
        model = TimmWrapperForImageClassification(config)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"expected arguments that {architecture} accepts, found {model_args}: {error}") from error
    model.timm_model.load_state_dict(weights)
    return model, _processor(image_size or defaults.input_size[-1], defaults.to_dict())


def timm_arguments(model_args: Mapping[str, Any] | None, drop_path_rate: float | None) -> dict[str, Any] | None:
    """The arguments to build a timm network with: those of its folder, and stochastic depth.

    Newer timm files include the number of classes, which the wrapper passes too, and then fails.
    """
    kept = {name: value for name, value in (model_args or {}).items() if name != "num_classes"}
    return kept | ({} if drop_path_rate is None else {"drop_path_rate": drop_path_rate}) or None


def standard_image_processor(image_processor: BaseImageProcessor) -> BaseImageProcessor:
    """A processor with sizes, mean and deviation as attributes, in place of timm's; others are returned unchanged.

    timm's wrapper keeps them in a dictionary and writes no file, so the size of the images could neither be changed
    nor saved.
    """
    data = getattr(image_processor, "data_config", None)
    return image_processor if data is None else _processor(data["input_size"][-1], data)


def _processor(side: int, data: Mapping[str, Any]) -> BaseImageProcessor:
    from timm.data.transforms import str_to_pil_interp

    return BitImageProcessor(
        size={"shortest_edge": int(side / (data.get("crop_pct") or 1))},
        crop_size={"height": side, "width": side},
        resample=int(str_to_pil_interp(data["interpolation"])),
        image_mean=list(data["mean"]),
        image_std=list(data["std"]),
    )
