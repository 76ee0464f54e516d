import dataclasses

import pytest
import yaml

from seedling_hf.arguments import parse_arguments, write_arguments
from seedling_hf.commands.push_to_hub import PushToHubArguments
from seedling_hf.errors import InputError
from seedling_hf.train_arguments import AugmentationArguments, TrainArguments

REQUIRED = ["--train_dir", "images", "--variant", "nano", "--output_dir", "run"]


def parse(*argv: str) -> TrainArguments:
    return parse_arguments(TrainArguments, [*argv], prog="train")


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_number_with_an_exponent_is_a_number_in_a_recipe(recipe):
    assert parse(*REQUIRED, "--config", recipe("learning_rate: 1e-3")).learning_rate == 0.001


def test_a_flag_goes_before_the_recipe_wherever_it_stands(recipe):
    path = recipe("seed: 1")
    assert parse(*REQUIRED, "--seed", "2", "--config", path).seed == 2
    assert parse("--config", path, *REQUIRED).seed == 1


@pytest.mark.parametrize("flag", [["--timm_architecture", "resnet18"], ["--timm_architecture=resnet18"]])
def test_a_network_on_the_command_line_stands_in_for_that_of_the_recipe(recipe, flag):
    path = recipe("variant: nano\nimage_size: 96")
    arguments = parse("--config", path, "--train_dir", "images", "--output_dir", "run", *flag)
    assert (arguments.variant, arguments.timm_architecture, arguments.image_size) == (None, "resnet18", 96)


def test_two_networks_in_a_recipe_are_refused(recipe):
    path = recipe("variant: nano\ntimm_architecture: resnet18")
    with pytest.raises(InputError, match="found --variant and --timm_architecture"):
        parse("--config", path, "--train_dir", "images", "--output_dir", "run")


def test_null_in_a_recipe_leaves_the_default(recipe):
    assert parse(*REQUIRED, "--config", recipe("save_total_limit: null")).save_total_limit == 2


def test_a_negative_number_in_a_recipe_is_no_flag(recipe):
    assert parse(*REQUIRED, "--config", recipe("max_steps: -1")).max_steps == -1


@pytest.mark.parametrize(
    ("words", "value"), [([], None), (["--hub_private_repo"], True), (["--hub_private_repo", "false"], False)]
)
def test_a_switch_that_may_be_unset_can_stand_alone(words, value):
    assert parse(*words, *REQUIRED).hub_private_repo is value


def test_a_list_in_a_recipe_is_a_list(recipe):
    trackers = parse(*REQUIRED, "--config", recipe("report_to: [tensorboard, wandb]")).report_to
    assert trackers == ["tensorboard", "wandb"]


def test_written_arguments_are_a_recipe_that_gives_the_same_arguments(tmp_path):
    arguments = parse(*REQUIRED, "--report_to", "wandb", "--hub_private_repo", "true", "--mixed_precision", "bf16")
    write_arguments(arguments, tmp_path / "arguments.yaml")
    assert parse("--config", str(tmp_path / "arguments.yaml")) == arguments


def test_kernels_of_another_network_than_a_replknet_are_refused():
    flags = [flag.replace("--variant", "--timm_architecture") for flag in REQUIRED]
    with pytest.raises(InputError, match="expected --variant with --kernel_sizes, found --timm_architecture"):
        parse(*flags, "--kernel_sizes", "3")
    assert parse(*REQUIRED, "--kernel_sizes", "7", "7", "7", "5").kernel_sizes == [7, 7, 7, 5]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--learning_rat", "1"], "unknown flag --learning_rat on the command line; did you mean --learning_rate"),
        (["--learn", "1"], "unknown flag --learn "),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--variant", "huge"], "invalid choice: 'huge'"),
        (["--train_val_split", "1.5"], "expected --train_val_split at least 0 and below 1, found 1.5"),
        (["--per_device_train_batch_size", "0"], "expected --per_device_train_batch_size at least 1, found 0"),
        (["--mixup_prob", "nan"], "expected --mixup_prob at least 0 and at most 1, found nan"),
        (["--dataset_name", "a/b"], "expected --train_dir or --dataset_name, found both"),
        (["--model_name_or_path", "a"], "found --model_name_or_path and --variant; give one"),
        (["--config", "nowhere.yaml"], "expected a recipe at nowhere.yaml, found none"),
    ],
)
def test_a_wrong_flag_is_refused_in_one_sentence(flags, sentence):
    with pytest.raises(InputError) as error:
        parse(*REQUIRED, *flags)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("learning_rte: 1", "unknown flag --learning_rte in the recipe; did you mean --learning_rate"),
        ("model:\n  name: x", "found nested keys; a recipe is flat"),
        ("- seed", "found a list"),
        ("seed: [1", "expected YAML in"),
        ("seed: 1.5", "argument --seed: invalid int value: '1.5'"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(recipe, text, sentence):
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        parse(*REQUIRED, "--config", recipe(text))
    assert sentence in str(error.value)


def test_a_missing_flag_is_named():
    with pytest.raises(InputError, match="required: --output_dir;"):
        parse_arguments(PushToHubArguments, [], prog="push_to_hub")


def test_help_shows_every_flag_in_its_group(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"--{field.name}" in text for field in dataclasses.fields(TrainArguments))
    assert [line for line in text.splitlines() if line in ("Data:", "Augmentation:", "Hub:")] == [
        "Data:", "Augmentation:", "Hub:"
    ]  # fmt: skip


def test_a_group_stands_by_itself():
    assert parse_arguments(AugmentationArguments, [], prog="x") == AugmentationArguments()


def test_arguments_are_plain_yaml(tmp_path):
    write_arguments(parse(*REQUIRED), tmp_path / "a.yaml")
    assert yaml.safe_load((tmp_path / "a.yaml").read_text())["lr_scheduler_type"] == "cosine"


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--seed", "-1"], "expected --seed at least 0 and at most 4294967295, found -1"),
        (["--max_grad_norm", "inf"], "expected a finite number for --max_grad_norm, found inf"),
        (["--max_steps", "-99999999999"], "expected --max_steps from -2147483647 to 2147483647"),
        (["--depths", "2", "0"], "expected --depths at least 1, found 0"),
        (["--run_name", " "], "expected a value for --run_name, found an empty one"),
        (["--split_file", ""], "expected a path for --split_file, found an empty one"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused(flags, sentence):
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        parse(*REQUIRED, *flags)
    assert sentence in str(error.value)


@pytest.mark.parametrize("output", ["images", "images/Maize/run", "link", "."])
def test_an_output_folder_must_be_apart_from_the_images(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    with pytest.raises(InputError, match=r"expected --output_dir (outside of|apart from) images"):
        parse(*REQUIRED[:-1], output)


def test_home_is_expanded_everywhere_and_variables_in_recipes_only(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = parse(*REQUIRED[:-2], "--output_dir=~/run", "--split_file=$HOME/split.csv")
    assert (arguments.output_dir, arguments.split_file) == (f"{tmp_path}/run", "$HOME/split.csv")
    arguments = parse(*REQUIRED[:-2], "--config", recipe("output_dir: ${HOME}/run\nrun_name: $HOME"))
    assert (arguments.output_dir, arguments.run_name) == (f"{tmp_path}/run", "$HOME")


def test_a_variable_that_is_not_set_is_named(recipe):
    with pytest.raises(InputError, match=r"expected \$NOWHERE to be set for output_dir"):
        parse(*REQUIRED[:-2], "--config", recipe("output_dir: $NOWHERE/run"))
