import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import run as study_command
import study
import yaml
from processes import run_python
from results import format_results, interval_of, read_results, write_results
from study import flags_of, read_plan

from seedling_hf.commands import run
from seedling_hf.errors import InputError

PLAN = {
    "name": "trial",
    "minutes": 0.02,
    "seeds": [0],
    "base": {"variant": "tiny", "image_size": 32, "no_duplicate_check": True, "max_train_samples": 48,
             "max_eval_samples": 24, "per_device_train_batch_size": 8},
    "rows": {"base": None, "kernels 3": {"kernel_sizes": [3]}},
    "evaluations": {"eight": {"row": "base", "symmetries": True}, "soup": {"row": "base", "combine": "weights"}},
}  # fmt: skip
THREE = [(0, 0.5), (1, 0.6), (2, 0.7)]


def result(row, seed, accuracy, plan="trial"):
    return {
        "plan": plan, "row": row, "seed": seed, "cpu_minutes": 6.0, "steps": 400, "images": 12800,
        "images_per_cpu_second": 35.5, "validation_images": 1000, "right": round(1000 * accuracy),
        "accuracy": accuracy, "macro_f1": 0.5, "loss": 1.0, "device": "Some CPU",
        "command": f"seedling-hf train --seed {seed} --x '[3, 4]'",
        "right_images": np.packbits(np.arange(1000) < 1000 * accuracy).tobytes().hex(),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def forked(tmp_path, monkeypatch) -> None:
    """The runs of a plan are forked from a process that has the imports done."""

    def run(command, env, **_):
        return run_python(command, env, tmp_path)

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=run))


@pytest.fixture
def plan_file(tmp_path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN, sort_keys=False))
    return path


def test_a_row_overrides_flags_of_the_base():
    plan = {
        **PLAN,
        "rows": {
            "timm": {
                "variant": None,
                "timm_architecture": "resnet18",
                "kernel_sizes": [3, 5],
                "teacher_model_name_or_path": ["{runs}/base_{seed}"],
            }
        },
    }
    flags = " ".join(flags_of(plan, "timm", 7, Path("runs")))
    assert "--variant" not in flags
    assert "--timm_architecture resnet18" in flags and "--kernel_sizes 3 5" in flags and "--seed 7" in flags
    assert "--teacher_model_name_or_path runs/base_7" in flags
    assert "--no_duplicate_check --max_train_samples 48" in flags


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"evaluations": {"x": {"row": "base", "combine": "all"}}}, "expected a row of the plan with"),
        ({"evaluations": {"x": "base"}}, "for the evaluation x in"),
        ({"evaluations": {"x": {"row": "other", "symmetries": True}}}, "for the evaluation x in"),
        ({"minutes": "long"}, "check minutes"),
        ({"rows": []}, "check rows"),
        ({"colour": 1}, "check colour"),
    ],
)
def test_a_file_that_is_not_a_plan_is_refused(tmp_path, change, sentence, capsys):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, **change}))
    assert run(study_command.main, ["--plan", str(path)]) == 2
    assert sentence in capsys.readouterr().err
    with pytest.raises(InputError, match="expected a plan in"):
        read_plan(tmp_path / "nowhere.yaml")


def test_results_are_read_as_they_were_written(tmp_path):
    results = [result("base", 0, 0.5), result('kernels "3", all', 1, 0.25)]
    write_results(tmp_path / "results.csv", results)
    assert read_results(tmp_path / "results.csv") == results


def test_the_table_has_the_best_row_first_with_the_mean_over_the_seeds_and_its_interval():
    text = format_results([result("base", s, a) for s, a in THREE] + [result("better", 0, 0.9)])
    assert text.index("| better | 1 | 90.0% |") < text.index("| base | 3 | 60.0% |")
    # Student's t of two degrees of freedom is 4.303, the standard error 0.1 / sqrt(3).
    assert np.allclose(interval_of([result("base", s, a) for s, a in THREE]), (0.3516, 0.8484), atol=1e-4)
    assert "35.2% to 84.8%" in text
    assert "- base: `seedling-hf train --seed 0" in text
    assert "| +400 −0, p 7.7e-121 |" in text  # 0.5 ** 399, of images that only `better` has right


def test_a_plan_is_trained_row_by_row_and_resumes_where_it_stopped(
    plan_file, tmp_path, sample_dir, monkeypatch, capsys
):
    monkeypatch.setattr(study, "CALIBRATION_STEPS", 4)
    measure = study._cpu_seconds_of_a_step
    # However busy the machine, there are enough steps for a rotated image to have another loss.
    monkeypatch.setattr(study, "_cpu_seconds_of_a_step", lambda *arguments: min(measure(*arguments), 0.02))
    flags = ["--plan", str(plan_file), "--train_dir", str(sample_dir), "--output_dir", str(tmp_path / "runs")]
    assert run(study_command.main, flags) == 0
    results = read_results(tmp_path / "results.csv")
    assert [r["row"] for r in results] == ["base", "kernels 3", "eight", "soup"]
    assert results[3]["right_images"] == results[0]["right_images"] and results[3]["loss"] == results[0]["loss"]
    assert "eight symmetries" in results[2]["command"] and results[2]["loss"] != results[0]["loss"]
    for row in results:
        assert np.unpackbits(np.frombuffer(bytes.fromhex(row["right_images"]), np.uint8)).sum() == row["right"]
    costs = json.loads((tmp_path / "results_costs.json").read_text())
    assert len(costs) == 2 and all("--variant tiny" in flags for flags in costs)
    for row, cost in zip(results[:2], costs.values(), strict=True):
        assert row["steps"] == max(1, int(PLAN["minutes"] * 60 / cost))
        assert abs(row["cpu_minutes"] - row["steps"] * cost / 60) < 1e-4
    for row in results[:2]:
        assert row["steps"] >= 1 and row["images"] == 8 * row["steps"]
        assert row["validation_images"] == 24 and abs(row["accuracy"] - row["right"] / 24) < 1e-4
        assert row["command"].startswith("seedling-hf train --train_dir seedlings ")
    config = json.loads((tmp_path / "runs" / "trial_kernels_3_0" / "config.json").read_text())
    assert config["kernel_sizes"] == [3, 3, 3, 3]
    assert "| kernels 3 | 1 |" in (tmp_path / "results.md").read_text()

    monkeypatch.setattr(study, "train_row", None)  # nothing is left to train
    assert run(study_command.main, flags) == 0
    assert read_results(tmp_path / "results.csv") == results


def test_the_cost_of_a_step_is_measured_once_for_all_rows_that_do_the_same_work(tmp_path, monkeypatch):
    plan = {
        **PLAN,
        "rows": {
            "base": None, "slow": {"kernel_sizes": [31]}, "other rate": {"learning_rate": 1.0},
            "growing": {"image_size": 64, "image_size_start": 32},
        },
    }  # fmt: skip
    seconds, runs = iter([40, 80, 20, 60, 80, 40, 20, 20]), []

    def train(flags, **variables):
        assert variables == {"CUDA_VISIBLE_DEVICES": ""}
        runs.append(flags)
        folder = Path(flags[flags.index("--output_dir") + 1])
        folder.mkdir(exist_ok=True)
        (folder / "train_results.json").write_text(json.dumps({"train_cpu_time": next(seconds)}))

    monkeypatch.setattr(study, "_train", train)
    # Growing images: two thirds of the epochs between the first size and the last, one third at the last.
    expected = {"base": 1.0, "slow": 2.0, "other rate": 1.0, "growing": 2 / 3 * (0.5 + 1.5) / 2 + 1.5 / 3}
    measure = [plan, tmp_path / "results.csv", "images", tmp_path / "runs"]
    costs = study.measure_costs(*measure)
    assert len(runs) == 4 and costs == pytest.approx(expected, abs=1e-4)
    assert study.measure_costs(*measure) == costs and len(runs) == 4
    again = study.measure_costs(*measure, again=True)  # 2, 1 and 0.5 seconds: the smaller ones stay
    assert len(runs) == 8 and again == pytest.approx({**expected, "slow": 1.0, "growing": 0.5}, abs=1e-4)


def test_a_row_is_measured_when_its_turn_comes_and_once_for_all_seeds(tmp_path, monkeypatch):
    """A teacher that is another row does not exist before that row is trained."""
    taught = {"teacher_model_name_or_path": ["{runs}/trial_base_{seed}"]}
    plan = {**PLAN, "seeds": [0, 1], "rows": {"base": None, "taught": taught}, "evaluations": {}}
    events = []

    def cost(plan, row, train_dir, work_dir):
        events.append(f"measure {row}")
        return 1.0

    def train(plan, row, seed, train_dir, work_dir, cost):
        events.append(f"train {row} {seed}")
        return result(row, seed, 0.5)

    monkeypatch.setattr(study, "_cpu_seconds_of_a_step", cost)
    monkeypatch.setattr(study, "train_row", train)
    study.run_plan(plan, tmp_path / "results.csv", "images", tmp_path / "runs")
    expected = ["measure base", "train base 0", "measure taught", "train taught 0", "train base 1", "train taught 1"]
    assert events == expected


def test_only_costs_are_measured_if_only_they_are_requested(plan_file, tmp_path, sample_dir, monkeypatch, capsys):
    monkeypatch.setattr(study, "CALIBRATION_STEPS", 2)
    flags = ["--plan", str(plan_file), "--costs_only", "--output_dir", str(tmp_path / "runs")]
    assert run(study_command.main, flags) == 2
    assert "expected --train_dir with --costs_only" in capsys.readouterr().err
    assert run(study_command.main, [*flags, "--train_dir", str(sample_dir)]) == 0
    assert "base: 0." in capsys.readouterr().out
    assert (tmp_path / "results_costs.json").exists() and not (tmp_path / "results.csv").exists()


def test_a_failed_run_is_reported_with_its_own_error(plan_file, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    flags = ["--plan", str(plan_file), "--train_dir", str(tmp_path / "empty"), "--output_dir", str(tmp_path / "runs")]
    assert run(study_command.main, flags) == 2
    assert "error: expected at least two classes in" in capsys.readouterr().err
