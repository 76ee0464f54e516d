"""Which classifier answers: the flags that name it, and the way to load it."""

from dataclasses import dataclass
from typing import Any

from seedling_hf import SHIPPED_MODEL
from seedling_hf.arguments import ArgumentGroup, check_range, option


@dataclass(kw_only=True)
class ClassifierArguments(ArgumentGroup):
    """Which classifier: the flags are part of the group of whoever inherits them."""

    model_name_or_path: str | None = option(
        None, "model folder that training wrote, or repository on the Hub (default: the nano that comes along)"
    )
    model_revision: str | None = option(None, "branch, tag or commit of that repository")
    trust_remote_code: bool = option(False, "run the Python code of that repository; a RepLKNet needs none")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model_name_or_path = self.model_name_or_path or str(SHIPPED_MODEL)


@dataclass(kw_only=True)
class InferenceArguments(ClassifierArguments):
    _argument_group_name = "Inference"

    per_device_eval_batch_size: int = option(64, "images a batch on each process")
    dataloader_num_workers: int = option(0, "processes that load images, for each process")
    mixed_precision: str | None = option(None, "precision of the forward pass", choices=["no", "fp16", "bf16"])
    no_merge: bool = option(False, "keep small kernels and BatchNorms apart: slower, same answers")
    skip_bad_images: bool = option(False, "leave out images that cannot be decoded instead of refusing them")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "per_device_eval_batch_size", least=1)
        check_range(self, "dataloader_num_workers", least=0)


def load_classifier(arguments: InferenceArguments) -> tuple[Any, Any, list[str]]:
    """The model that the flags name, its image processor, and its classes in their order."""
    from seedling_hf.inference.prediction import build_model

    model, image_processor = build_model(
        arguments.model_name_or_path,
        revision=arguments.model_revision,
        trust_remote_code=arguments.trust_remote_code,
        merge=not arguments.no_merge,
    )
    return model, image_processor, [model.config.id2label[i] for i in range(model.config.num_labels)]
