"""The model that a run trains, in float32: from scratch, from timm, or from trained weights with a head that fits."""

import copy
import logging
from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf import SHIPPED_MODEL
from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import Pretrained
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification, RepLKNetImageProcessor
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.baseline import build_timm_classifier, standard_image_processor, timm_arguments
from seedling_hf.training.freezing import freeze, train_unfrozen

logger = logging.getLogger(__name__)


def build_trainable_model(
    arguments: TrainArguments, class_names: list[str]
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The model that the flags name, or the shipped one, with a head for `class_names`; and its image processor.

    Raises:
        InputError: for a folder without a model, a model of other classes without `--ignore_mismatched_sizes`, or
            flags that do not fit the model or freeze what it does not have.
    """
    labels = {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}
    if arguments.variant:
        rate = {} if arguments.drop_path_rate is None else {"drop_path_rate": arguments.drop_path_rate}
        model = RepLKNetForImageClassification(arguments.build_variant_config(**rate, **labels))
        image_processor = RepLKNetImageProcessor.from_variant(arguments.variant)
    elif arguments.timm_architecture:
        model, image_processor = build_timm_classifier(
            arguments.timm_architecture,
            labels,
            image_size=arguments.image_size,
            drop_path_rate=arguments.drop_path_rate,
        )
    elif arguments.model_name_or_path:
        model, image_processor = _load_pretrained(arguments, labels)
    else:
        model, image_processor = _build_on_shipped(arguments, labels)
    _set_loss(model)
    _set_image_size(arguments, image_processor)
    freeze(model, arguments)
    if arguments.freeze and (arguments.variant or arguments.timm_architecture):
        logger.warning("what --freeze names keeps its random weights: --model_name_or_path starts from trained ones")
    _check_fit(arguments, model, image_processor.crop_size["height"])
    return model, image_processor


def load_replknet_config(arguments: TrainArguments, num_labels: int) -> tuple[RepLKNetConfig, int]:
    """The configuration of the RepLKNet that the flags name, and the side of its images in pixels.

    Raises:
        InputError: for another model than a RepLKNet, or a shape that no RepLKNet has.
    """
    if arguments.variant:
        config = arguments.build_variant_config(num_labels=num_labels)
        image_processor = RepLKNetImageProcessor.from_variant(arguments.variant)
    else:
        source = None if arguments.timm_architecture else _source(arguments)
        config = source and source.load_config()
        if not config or config.model_type != RepLKNetConfig.model_type:
            name = arguments.model_name_or_path or arguments.timm_architecture
            raise InputError(f"expected a RepLKNet, found {name}; give a --variant instead")
        image_processor = source.load_image_processor()
        _check_square(image_processor, source.name)
    return config, arguments.image_size or image_processor.crop_size["height"]


def needs_two_images(model: PreTrainedModel, side: int) -> bool:
    """Whether a batch of one image of this side ends in maps of one pixel, of which BatchNorm has no variance."""
    side = min(side, 1024)  # larger images end in larger maps, and may not fit into the memory
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            images = torch.zeros(1, model.config.num_channels, side, side)
            train_unfrozen(copy.deepcopy(model))(images)
    except ValueError as error:
        if "Expected more than 1 value per channel" in str(error):
            return True
        raise
    return False


def cross_entropy(labels: Tensor, pooled_logits: Tensor, config: Any = None, **kwargs: Any) -> Tensor:
    """The mean cross-entropy of logits (N, C) with class indices (N,) or the probability of each class (N, C).

    The other arguments are those that models of transformers give to their loss.
    """
    return torch.nn.functional.cross_entropy(
        pooled_logits, labels.to(pooled_logits) if labels.is_floating_point() else labels
    )


def _set_loss(model: PreTrainedModel) -> None:
    """Each image has one class: what mixing, smoothing and teachers make of it are its probabilities.

    Models of transformers take such targets for several classes in one image, train by the binary cross-entropy, and
    save that as their kind, by which a pipeline gives the sigmoid of each class.
    """
    model.config.problem_type = "single_label_classification"
    if model.config.model_type != RepLKNetConfig.model_type:  # which knows both kinds of targets
        model.loss_function = cross_entropy


def _source(arguments: TrainArguments) -> Pretrained:
    if arguments.starts_from_shipped:
        return Pretrained(str(SHIPPED_MODEL))
    return Pretrained(arguments.model_name_or_path, arguments.model_revision, arguments.trust_remote_code)


def _build_on_shipped(
    arguments: TrainArguments, labels: dict[str, Any]
) -> tuple[RepLKNetForImageClassification, BaseImageProcessor]:
    """The shipped model's features under a new head, whether or not the number of classes is the same."""
    source = _source(arguments)
    config = source.load_config()
    shipped, _ = source.load_model(config)
    config = copy.deepcopy(config)
    if arguments.drop_path_rate is not None:
        config.drop_path_rate = arguments.drop_path_rate
    config.id2label, config.label2id = labels["id2label"], labels["label2id"]
    model = RepLKNetForImageClassification(config)
    model.replknet.load_state_dict(shipped.replknet.state_dict())
    model.name_or_path = ""  # its weights will be others soon
    return model, source.load_image_processor()


def _load_pretrained(arguments: TrainArguments, labels: dict[str, Any]) -> tuple[PreTrainedModel, BaseImageProcessor]:
    source, num_labels = _source(arguments), len(labels["id2label"])
    config = source.load_config()
    image_processor = standard_image_processor(source.load_image_processor(getattr(config, "num_channels", None)))
    _check_square(image_processor, source.name)
    if config.num_labels != num_labels and not arguments.ignore_mismatched_sizes:
        raise InputError(
            f"expected a model of {num_labels} classes, found one of {config.num_labels} in {source.name}; "
            "--ignore_mismatched_sizes gives it a new head"
        )
    if getattr(config, "reparameterized", False):
        raise InputError(
            f"expected a model that can be trained, found a merged one in {source.name}; start from the unmerged one"
        )
    if arguments.drop_path_rate is not None:
        config.drop_path_rate = arguments.drop_path_rate
    if config.model_type == "timm_wrapper":
        config.model_args = timm_arguments(config.model_args, arguments.drop_path_rate)
        # As long as it is there, transformers prepares images by it and not by the processor's file.
        vars(config).pop("pretrained_cfg", None)
    config.id2label, config.label2id = labels["id2label"], labels["label2id"]
    model, untrained = source.load_model(
        config, complete=False, ignore_mismatched_sizes=arguments.ignore_mismatched_sizes
    )
    if untrained:
        logger.info("newly initialised: %s", ", ".join(untrained))
    model.name_or_path = ""  # its weights will be others soon
    return model, image_processor


def _check_square(image_processor: BaseImageProcessor, name: str) -> None:
    """Training crops squares, whose side it takes from `crop_size`."""
    try:
        sides = {image_processor.crop_size["height"], image_processor.crop_size["width"]}
        is_right = None not in sides and len(sides) == 1 and image_processor.image_mean and image_processor.image_std
    except (AttributeError, KeyError, TypeError):
        is_right = False
    if not is_right:
        raise InputError(
            f"expected an image processor with a square crop_size, image_mean and image_std in {name}, found a "
            f"{type(image_processor).__name__} without; give its preprocessor_config.json these values"
        )


def _set_image_size(arguments: TrainArguments, image_processor: BaseImageProcessor) -> None:
    if arguments.image_size or arguments.crop_pct < 1:
        # The images are cut out square already: by default nothing is cropped away.
        side = arguments.image_size or image_processor.crop_size["height"]
        image_processor.size = {"shortest_edge": round(side / arguments.crop_pct)}
        image_processor.crop_size = {"height": side, "width": side}


def _check_fit(arguments: TrainArguments, model: PreTrainedModel, side: int) -> None:
    """Refuses flags that do not fit the model or the final side of its images."""
    smallest = arguments.image_size_start or side
    if arguments.per_device_train_batch_size == 1 and not arguments.sync_bn and needs_two_images(model, smallest):
        raise InputError(
            f"expected --per_device_train_batch_size of at least 2 for images of {smallest}×{smallest} pixels, which "
            "end in maps of one pixel, of which BatchNorm needs two, found 1; use larger batches or a larger "
            "--image_size"
        )
    if arguments.layer_decay != 1 and model.config.model_type == "timm_wrapper":
        raise InputError(
            "expected --layer_decay 1 for a network of timm, whose blocks have no names here, found "
            f"{arguments.layer_decay}; remove the flag"
        )
    if arguments.image_size_start is not None and arguments.image_size_start > side:
        raise InputError(
            f"expected --image_size_start of at most {side}, the final side of the images, found "
            f"{arguments.image_size_start}"
        )
    if arguments.image_size_start and "img_size" in getattr(model.config, "model_args", {}):
        raise InputError(
            "expected a network for images of any size with --image_size_start, found one that is built for one size; "
            "remove --image_size_start"
        )
