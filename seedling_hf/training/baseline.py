"""Networks of timm as models of transformers: baselines that train, evaluate and predict by the same commands.

They are transformers' own `TimmWrapperForImageClassification`, so their folders load anywhere where timm is, without
code of this package.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from transformers import BaseImageProcessor, BitImageProcessor, PreTrainedModel

from seedling_hf.errors import InputError

NAMES_SHOWN = 3


def build_timm_classifier(
    architecture: str,
    labels: Mapping[str, Mapping],
    *,
    image_size: int | None = None,
    drop_path_rate: float | None = None,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A timm network with timm's own random weights, and the processor of its images.

    Args:
        architecture: timm's name of it, such as `resnet18`.
        labels: `id2label` and `label2id`.
        image_size: Side of the images in pixels, for networks that are built for one size; timm's if None.
        drop_path_rate: Stochastic depth of the last block; timm's default if None.

    Raises:
        InputError: for a name that timm does not know, or a network without stochastic depth that is asked for it.
    """
    import timm
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=NAMES_SHOWN)
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() has the names"
        raise InputError(f"expected --timm_architecture of timm {timm.__version__}, found {architecture}{hint}")
    defaults = timm.get_pretrained_cfg(architecture)
    model_args = {"img_size": image_size} if defaults.fixed_input_size and image_size else {}
    model_args = timm_arguments(model_args, drop_path_rate) or {}
    config = TimmWrapperConfig(architecture=architecture, model_args=model_args or None, **labels)
    try:
        # transformers draws all convolutions anew from one normal distribution; a baseline is owed its own weights.
        weights = timm.create_model(architecture, num_classes=config.num_labels, **model_args).state_dict()
        model = TimmWrapperForImageClassification(config)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"expected arguments that {architecture} takes, found {model_args}: {error}") from error
    model.timm_model.load_state_dict(weights)
    return model, _processor(image_size or defaults.input_size[-1], defaults.to_dict())


def timm_arguments(model_args: Mapping[str, Any] | None, drop_path_rate: float | None) -> dict[str, Any] | None:
    """The arguments that a network of timm is built with: stochastic depth over what its folder says.

    Newer files of timm name the number of classes among them, which the wrapper gives too, and then fails.
    """
    kept = {name: value for name, value in (model_args or {}).items() if name != "num_classes"}
    return kept | ({} if drop_path_rate is None else {"drop_path_rate": drop_path_rate}) or None


def standard_image_processor(image_processor: BaseImageProcessor) -> BaseImageProcessor:
    """A processor with sizes, mean and deviation to read, in place of timm's; any other is given back as it is.

    timm's wrapper keeps them in a dictionary and writes no file of its own, so the size of the images could neither
    be changed nor saved.
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
