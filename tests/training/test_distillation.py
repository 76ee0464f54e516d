"""Teachers predict the student's classes, in its order and its normalisation, and a run learns from them."""

import json
import re
import time

import pytest
import torch
from training_runs import Run, kill

from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.train_arguments import DistillationArguments, TrainArguments
from seedling_hf.training.distillation import Teachers

CPU = torch.device("cpu")


def teaching(names: list[str], alpha: float) -> DistillationArguments:
    return DistillationArguments(teacher_model_name_or_path=names, distillation_alpha=alpha)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def probabilities(model_dir, pixels) -> torch.Tensor:
    model, _ = load_classifier(str(model_dir), merge=False)
    with torch.no_grad():
        return model(pixel_values=pixels).logits.softmax(-1)


def test_targets_are_the_mean_of_the_teachers_and_the_labels(model_dir, pixels):
    model, image_processor = load_classifier(str(model_dir))
    names = [model.config.id2label[i] for i in range(4)]
    backwards = names[::-1]
    labels = torch.tensor([0, 3, 2])
    teachers = Teachers(teaching([str(model_dir)] * 2, 0.25), backwards, image_processor, CPU)
    expected = 0.25 * probabilities(model_dir, pixels).flip(1)
    expected[range(3), labels] += 0.75
    torch.testing.assert_close(teachers.soften(pixels, labels), expected, rtol=1e-4, atol=1e-5)
    soft = torch.full((3, 4), 0.25)
    expected = 0.25 * probabilities(model_dir, pixels).flip(1) + 0.75 * soft
    torch.testing.assert_close(teachers.soften(pixels, soft), expected, rtol=1e-4, atol=1e-5)


def test_images_are_normalised_as_the_teacher_knows_them(model_dir, pixels):
    model, image_processor = load_classifier(str(model_dir))
    names = [model.config.id2label[i] for i in range(4)]
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (image_processor.image_mean, image_processor.image_std))
    image_processor.image_mean, image_processor.image_std = [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
    raw = pixels * deviation + mean
    students = (raw - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    teachers = Teachers(teaching([str(model_dir)], 1.0), names, image_processor, CPU)
    found = teachers.soften(students, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found, probabilities(model_dir, pixels), rtol=1e-3, atol=1e-4)


def test_a_teacher_of_other_classes_is_refused(model_dir):
    _, image_processor = load_classifier(str(model_dir))
    with pytest.raises(InputError, match=r"expected a teacher of the classes a, b, found .*; choose one"):
        Teachers(teaching([str(model_dir)], 0.5), ["a", "b"], image_processor, CPU)


def test_a_teacher_that_answers_nan_is_named(model_dir, pixels):
    model, image_processor = load_classifier(str(model_dir))
    names = [model.config.id2label[i] for i in range(4)]
    teachers = Teachers(teaching([str(model_dir)], 1.0), names, image_processor, CPU)
    teachers.soften(pixels, torch.tensor([0, 1, 2]))
    teachers.check()
    message = f"expected finite probabilities of the model {re.escape(str(model_dir))}"
    with pytest.raises(InputError, match=message):  # of another process
        teachers.check(lambda sums: torch.cat([sums, torch.full_like(sums, torch.nan)]))
    weight = teachers.members[0][0].classifier.weight
    good = weight.clone()
    weight.fill_(3e38)
    assert not teachers.soften(pixels, torch.tensor([0, 1, 2])).isfinite().all()
    weight.copy_(good)
    teachers.soften(pixels, torch.tensor([0, 1, 2]))
    with pytest.raises(InputError, match=message):  # though it is found some steps later
        teachers.check()


def test_teachers_without_counted_memory_are_refused():
    with pytest.raises(InputError, match="expected no teachers with --auto_find_batch_size"):
        TrainArguments(
            train_dir="x", output_dir="y", variant="tiny", teacher_model_name_or_path=["t"], auto_find_batch_size=True
        )


def test_a_student_learns_from_a_teacher_alone_and_its_run_is_resumed(tmp_path, images):
    teacher = Run(tmp_path / "teacher", images)
    teacher.finish()
    settings = {"teacher_model_name_or_path": tmp_path / "teacher" / "run", "distillation_alpha": 1.0}
    whole = Run(tmp_path / "whole", images, **settings)
    whole.finish()
    cut = Run(tmp_path / "cut", images, **settings)
    processes = cut.start()
    while len(list((cut.folder / "run" / "checkpoints").glob("step-*"))) < 2 and processes[0].is_alive():
        time.sleep(0.05)
    kill(processes)
    cut.finish()
    assert cut.resumed_steps and cut.contents() == whole.contents()
    by_labels, by_teacher = (
        json.loads((run.folder / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for run in (teacher, whole)
    )
    assert by_labels != by_teacher
