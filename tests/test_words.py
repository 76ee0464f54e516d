"""Images may be named without their flag, wherever they stand."""

import pytest

from seedling_hf.arguments import parse_arguments
from seedling_hf.commands import predict, run
from seedling_hf.commands.export import ExportArguments
from seedling_hf.errors import InputError
from seedling_hf.inference.predict_arguments import PredictArguments


def parse(*argv: str) -> PredictArguments:
    return parse_arguments(PredictArguments, [*argv], prog="predict")


@pytest.mark.parametrize(
    "argv",
    [
        ["a.jpg", "photos"], ["--images", "a.jpg", "photos"], ["a.jpg", "--top_k", "2", "photos"],
        ["a.jpg", "--images", "photos"], ["--images=a.jpg", "photos"], ["--tiles", "a.jpg", "photos"],
        ["--tiles", "yes", "a.jpg", "photos"], ["--no_merge", "--threshold=0.5", "a.jpg", "photos"],
        ["a.jpg", "--", "photos"], ["--top_k", "2", "--", "a.jpg", "photos"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_words_that_follow_no_flag_are_images(argv):
    assert parse(*argv).images == ["a.jpg", "photos"]


@pytest.mark.parametrize(("argv", "tiles"), [(["--tiles", "a.jpg"], True), (["--tiles", "no", "a.jpg"], False)])
def test_a_switch_takes_yes_and_no_only(argv, tiles):
    arguments = parse(*argv)
    assert (arguments.tiles, arguments.images) == (tiles, ["a.jpg"])


def test_a_word_after_two_hyphens_may_begin_with_one():
    assert parse("--", "-a.jpg", "--tiles").images == ["./-a.jpg", "./--tiles"]


def test_named_images_replace_those_of_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("images: [old, older]\ntop_k: 2")
    assert parse("--config", str(recipe)).images == ["old", "older"]
    arguments = parse("--config", str(recipe), "new")
    assert (arguments.images, arguments.top_k) == (["new"], 2)


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        ([], "required: --images"), (["--images", "--top_k", "2"], "argument --images: expected at least one"),
        (["a.jpg", "-x"], "unrecognized arguments: -x"), (["a.jpg", "--top", "2"], "unknown flag --top"),
        (["--output_format", "csv", "a.jpg"], "unknown flag --output_format"),
    ],
)  # fmt: skip
def test_what_is_no_image_and_no_flag_is_refused(argv, found):
    with pytest.raises(InputError, match=found):
        parse(*argv)


def test_a_command_without_such_a_flag_takes_no_words():
    with pytest.raises(InputError, match="unrecognized arguments: photos"):
        parse_arguments(ExportArguments, ["photos", "--output_file", "a.onnx"], prog="export")


def test_the_usage_names_the_words(capsys):
    with pytest.raises(SystemExit):
        run(predict.main, ["--help"])
    assert capsys.readouterr().out.startswith("usage: seedling-hf predict [--config RECIPE.yaml] [flags] [IMAGES …]\n")
