"""The steps of transformers' example run_image_classification.py, on one of our models."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torchvision.transforms import v2
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

TRUST = {"trust_remote_code": True}


def fine_tuning(
    model_dir: str | Path,
    train_dir: str | Path,
    output_dir: str | Path,
    *,
    is_augmented: bool = True,
    adapted: Callable[[PreTrainedModel], torch.nn.Module] = lambda model: model,
    **arguments: Any,
) -> Trainer:
    """A Trainer of what `adapted` makes of the model with a new head for the class folders of `train_dir`."""
    training = {
        "output_dir": str(output_dir), "do_train": True, "do_eval": True, "remove_unused_columns": False, "seed": 7,
        "per_device_train_batch_size": 9, "per_device_eval_batch_size": 9, "learning_rate": 1e-3, "logging_steps": 1,
        "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch", "report_to": "none",
        "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    cache = str(Path(output_dir).parent / "datasets")
    dataset = load_dataset("imagefolder", data_files={"train": str(Path(train_dir) / "**")}, cache_dir=cache)
    dataset = dataset["train"].train_test_split(0.25, seed=0, stratify_by_column="label")
    names = dataset["train"].features["label"].names
    torch.manual_seed(0)  # of the new head
    config = AutoConfig.from_pretrained(
        model_dir, num_labels=len(names), label2id={name: str(i) for i, name in enumerate(names)},
        id2label={str(i): name for i, name in enumerate(names)}, finetuning_task="image-classification", **TRUST,
    )  # fmt: skip
    model = AutoModelForImageClassification.from_pretrained(
        model_dir, config=config, ignore_mismatched_sizes=True, **TRUST
    )
    processor = AutoImageProcessor.from_pretrained(model_dir, **TRUST)
    return Trainer(
        model=adapted(model),
        args=TrainingArguments(**{**training, **arguments}),
        train_dataset=dataset["train"].with_transform(Transformed(processor, is_augmented)),
        eval_dataset=dataset["test"].with_transform(Transformed(processor, False)),
        compute_metrics=accuracy,
        processing_class=processor,
        data_collator=collated,
    )


class Transformed:
    """The example's augmentation, or its preprocessing."""

    def __init__(self, processor: Any, is_augmented: bool) -> None:
        height, width = processor.crop_size["height"], processor.crop_size["width"]
        shape = [
            v2.RandomResizedCrop((height, width)), v2.RandomHorizontalFlip()
        ] if is_augmented else [v2.Resize(processor.size["shortest_edge"]), v2.CenterCrop((height, width))]  # fmt: skip
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        self.transform = v2.Compose([*shape, *to_tensor, v2.Normalize(processor.image_mean, processor.image_std)])

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        return {
            "pixel_values": [self.transform(image.convert("RGB")) for image in batch["image"]],
            "label": batch["label"],
        }


def collated(examples: list[dict]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["label"] for example in examples]),
    }


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(model_dir: str, train_dir: str, output_dir: str, repo_id: str) -> None:
    """Trains, evaluates and pushes."""
    trainer = fine_tuning(model_dir, train_dir, output_dir, push_to_hub=True, hub_model_id=repo_id)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.push_to_hub(finetuned_from="nano", tasks="image-classification", tags=["image-classification", "vision"])
    print("METRICS" + json.dumps(metrics))


if __name__ == "__main__":
    main(*sys.argv[1:])
