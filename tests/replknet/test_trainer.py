"""`transformers.Trainer` trains, evaluates, resumes and saves our models by the steps of its example."""

from pathlib import Path

import pytest
import torch
from datasets.utils.logging import disable_progress_bar
from official_example import collated, fine_tuning
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForImageClassification, Trainer, pipeline

from seedling_hf.inference.classifier import Pretrained
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification, RepLKNetImageProcessor


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A model of other classes, with stochastic depth."""
    disable_progress_bar()
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    config = RepLKNetConfig.from_variant("tiny", num_labels=12, drop_path_rate=0.2)
    RepLKNetForImageClassification(config).save_pretrained(folder)
    RepLKNetImageProcessor.from_variant("tiny", image_size=32).save_pretrained(folder)
    return folder


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_trainer_takes_the_steps_of_a_plain_loop(start, images, tmp_path):
    arguments = {
        "is_augmented": False, "per_device_train_batch_size": 36, "num_train_epochs": 4, "eval_strategy": "no",
        "save_strategy": "no", "max_grad_norm": 5.0, "weight_decay": 0.1,
    }  # fmt: skip
    trainer = fine_tuning(start, images, tmp_path / "run", **arguments)
    for module in trainer.model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    initial = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    found = losses(trainer)

    model = RepLKNetForImageClassification(trainer.model.config).train()
    model.load_state_dict(initial)
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    batch = collated([trainer.train_dataset[i] for i in range(36)])
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if name.endswith("bias") == is_bias],
            "weight_decay": decay,
        }
        for is_bias, decay in ((False, 0.1), (True, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    expected = []
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (4 - step) / 4  # the linear schedule
        loss = nn.functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert len(set(expected)) == 4
    # The order of the images in the batch is another, and Adam divides small gradients by small ones.
    assert found == pytest.approx(expected, rel=1e-3)


def test_an_evaluation_is_that_of_the_saved_folder(start, images, tmp_path):
    trainer = fine_tuning(start, images, tmp_path / "run")
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    names = ["Black-grass", "Charlock", "Maize"]
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert type(model) is RepLKNetForImageClassification
    assert [model.config.id2label[i] for i in range(3)] == names
    Pretrained(str(tmp_path / "run")).check()  # our commands take it, with the example's strings for numbers too
    batch = collated([trainer.eval_dataset[i] for i in range(12)])
    with torch.no_grad():
        outputs = model(**batch)
    assert metrics["eval_accuracy"] == (outputs.logits.argmax(-1) == batch["labels"]).double().mean().item()
    assert metrics["eval_loss"] == pytest.approx(outputs.loss.item(), rel=1e-4)  # the mean over batches of 9 and 3
    answers = pipeline("image-classification", model=str(tmp_path / "run"))(str(next((images / "Maize").iterdir())))
    assert {answer["label"] for answer in answers} == set(names)


def test_a_run_resumed_after_an_epoch_ends_in_the_same_bits(start, images, tmp_path):
    whole = fine_tuning(start, images, tmp_path / "whole", num_train_epochs=3)
    whole.train()
    resumed = fine_tuning(start, images, tmp_path / "resumed", num_train_epochs=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    assert len(set(losses(whole))) == 12
    assert losses(resumed) == losses(whole)
    for one, other in zip(whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1])


def test_a_trainer_trains_and_saves_an_adapter(start, images, tmp_path):
    def adapted(model: RepLKNetForImageClassification) -> PeftModel:
        targets = ["pointwise1.convolution", "pointwise2.convolution"]
        return get_peft_model(
            model, LoraConfig(r=4, target_modules=targets, modules_to_save=["classifier", "normalization"])
        )

    trainer = fine_tuning(start, images, tmp_path / "run", adapted=adapted)
    frozen = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    assert all(torch.equal(p, frozen[name]) for name, p in trainer.model.named_parameters() if name in frozen)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    base = RepLKNetForImageClassification.from_pretrained(start, num_labels=3, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(base, tmp_path / "run").eval()
    batch = collated([trainer.eval_dataset[i] for i in range(12)])
    with torch.no_grad():
        outputs = model(**batch)
    assert metrics["eval_loss"] == pytest.approx(outputs.loss.item(), rel=1e-4)
    assert metrics["eval_accuracy"] == (outputs.logits.argmax(-1) == batch["labels"]).double().mean().item()
