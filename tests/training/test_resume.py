"""A run that was killed at any moment and resumed ends as an uninterrupted one: every file is equal to the last bit.

Each run is killed by SIGKILL at random moments, and resumed, again and again.
"""

import json

import pytest
from faults import contents
from training_runs import NUM_STEPS, Run, killed_again_and_again

SETTINGS = {
    "one process": {},
    "one process, two workers": {"num_workers": 2},
    "one process, Muon": {"optim": "muon"},
    "one process, frozen, balanced sampler": {"freeze": "stage2", "balanced_sampler": "true"},
    "two processes": {"num_processes": 2},
    "two processes, frozen, balanced sampler": {
        "num_processes": 2, "num_workers": 1, "freeze": "stem", "freeze_bn_statistics": "true",
        "balanced_sampler": "true",
    },
    "two processes, frozen, class weights": {"num_processes": 2, "freeze": "backbone", "class_weights": "balanced"},
    "two processes, two workers": {"num_processes": 2, "num_workers": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", [
    "one process", "one process, Muon", "one process, frozen, balanced sampler",
    pytest.param("one process, two workers", marks=pytest.mark.slow),
    pytest.param("two processes", marks=pytest.mark.slow),
    pytest.param("two processes, frozen, balanced sampler", marks=pytest.mark.slow),
    pytest.param("two processes, frozen, class weights", marks=pytest.mark.slow), "two processes, two workers",
])  # fmt: skip
def test_a_run_killed_a_few_times_ends_as_an_uninterrupted_one(tmp_path, images, name):
    assert killed_again_and_again(lambda folder: Run(tmp_path / folder, images, **SETTINGS[name]), kills=3, seed=0)


def test_a_run_killed_before_its_first_save_logs_each_step_once(tmp_path, images):
    run = Run(tmp_path / "run", images)
    (run.folder / "run").mkdir()
    (run.folder / "run" / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.25, "loss": 2.5}\n{"step": 2, "ep')
    run.finish()
    steps = [json.loads(line)["step"] for line in (run.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [step for step, following in zip(steps, [*steps[1:], None], strict=True) if step != following]
    assert losses == list(range(1, NUM_STEPS + 1))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_killed_at_thirty_moments_ends_as_an_uninterrupted_one(tmp_path, images, name):
    steps = killed_again_and_again(lambda folder: Run(tmp_path / folder, images, **SETTINGS[name]), kills=30, seed=1)
    print(sorted(steps))
    assert len({*steps}) > 5  # the kills were spread


def test_a_finished_run_resumed_into_another_folder_leaves_a_model_there(tmp_path, images):
    run = Run(tmp_path / "run", images)
    run.finish()
    run.finish(
        "--output_dir", "other", "--resume_from_checkpoint", f"run/checkpoints/step-{NUM_STEPS:08d}"
    )  # fmt: skip
    results = json.loads((run.folder / "other" / "train_results.json").read_text())
    assert results["best_step"] == NUM_STEPS
    assert (run.folder / "other" / "model.safetensors").exists() and (run.folder / "other" / "report.html").exists()


def test_a_run_with_corrected_labels_resumes_with_the_same_and_not_with_others(tmp_path, images):
    run = Run(tmp_path / "run", images, label_file="labels.csv")
    labels = run.folder / "labels.csv"
    first = sorted(f"{file.parent.name}/{file.name}" for file in images.glob("Maize/*"))
    text = "file,label\n" + "".join(f"{file},Charlock\n" for file in first[:6])
    labels.write_text(text)
    run.finish("--max_steps", "4")
    split = (run.folder / "run" / "split.csv").read_text()
    corrected = [line for line in split.splitlines() if line.startswith("Maize/") and ",Charlock,train" in line]
    assert corrected and f"{len(corrected)} training images corrected, 0 left out" in run.output

    assert (run.folder / "run" / "corrections.csv").read_text() == text
    labels.write_text(text.replace("Charlock", ""))
    before = contents(run.folder / "run")
    run.finish("--max_steps", "4", expected=2)
    assert "split (the images and their labels, after --split_file and --label_file) was '" in run.output
    assert contents(run.folder / "run") == before

    labels.rename(labels.with_name("moved.csv")).write_text(text)
    run.finish("--max_steps", "4", "--label_file", "moved.csv")
