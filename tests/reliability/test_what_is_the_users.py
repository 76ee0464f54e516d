"""Nothing is deleted or replaced but what is ours; outputs lie apart from what is read; paths mean what they say."""

import os
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
import yaml
from faults import COMMANDS, Started, assert_sentence, assert_well, command, contents

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def trees(images, tmp_path):
    """A copy of the images, since these commands could harm them."""
    shutil.copytree(images, tmp_path / "images")
    return tmp_path


def an_image(images: Path) -> Path:
    return sorted((images / "Maize").iterdir())[0]


def train(folder: Path, *flags: object, environment=None):
    words = [
        "train", "--variant", "tiny", "--image_size", 32, "--max_steps", 2, "--per_device_train_batch_size", 8,
        "--no_duplicate_check",
    ]  # fmt: skip
    return command([*words, *flags], folder, environment=environment)


def predict(model_dir: Path, folder: Path, *flags: object, **options):
    return command(["predict", "--model_name_or_path", model_dir, *flags], folder, **options)


def fill(folder: Path, *names: str) -> dict[str, str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}\n", encoding="utf-8")
    return contents(folder)


def assert_kept(folder: Path, former: dict[str, str]) -> None:
    now = contents(folder)
    assert {name: now.get(name) for name in former} == former


# What predict removes and replaces


@pytest.mark.parametrize("more", [(), ("--skip_bad_images",)], ids=str)
def test_a_list_of_failed_files_of_somebody_else_stays(model_dir, trees, more):
    former = fill(trees, "answers.failed.csv")
    outcome = predict(model_dir, trees, "--images", "images", "--output_file", "answers.csv", *more)
    assert_sentence(outcome, "answers.failed.csv")
    assert contents(trees) == former


def test_a_list_of_failed_files_of_an_earlier_run_is_replaced(model_dir, trees):
    (trees / "images" / "Maize" / "torn.png").write_bytes(b"torn")
    flags = ("--images", "images", "--output_file", "answers.csv", "--skip_bad_images")
    assert_well(predict(model_dir, trees, *flags))
    assert "torn.png" in (trees / "answers.failed.csv").read_text()
    (trees / "images" / "Maize" / "torn.png").unlink()
    assert_well(predict(model_dir, trees, *flags))
    assert not (trees / "answers.failed.csv").exists()


@pytest.mark.parametrize("name", ["notes.txt", "sub/notes.txt", "run.json", "images.jsonl", "answers-00000.jsonl"])
def test_the_content_of_a_folder_that_is_called_as_a_journal_stays(model_dir, trees, name):
    former = fill(trees, f"answers.csv.partial/{name}")
    predict(model_dir, trees, "--images", "images", "--output_file", "answers.csv")
    assert_kept(trees, former)


@pytest.mark.parametrize(
    "name, content",
    [
        ("labels.csv", "file,label\na.png,Maize\n"), ("labels.csv", "file,classes\n"), ("notes.csv", "mine\n"),
        ("split.csv", "file,label,split\n"), ("labels.jsonl", '{"image": 1}\n'), ("config.json", "{}\n"),
        ("data.csv", "\0\0\0\0"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_predictions_is_not_replaced(model_dir, trees, name, content):
    (trees / name).write_text(content)
    former = contents(trees)
    outcome = predict(model_dir, trees, "--images", "images", "--output_file", name)
    assert_sentence(outcome, name)
    assert contents(trees) == former


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
@pytest.mark.parametrize("more", [(), ("--threshold", 0.5), ("--top_k", 2)], ids=str)
def test_predictions_are_replaced_by_new_ones(model_dir, trees, suffix, more):
    output = trees / f"answers{suffix}"
    for _ in range(2):
        assert_well(predict(model_dir, trees, "--images", "images/Maize", "--output_file", output, *more))


def test_predictions_for_kaggle_and_empty_files_are_replaced(model_dir, trees):
    flags = ("--images", "images/Maize", "--output_file", "answers.csv", "--format", "kaggle")
    (trees / "answers.csv").touch()
    for _ in range(2):
        assert_well(predict(model_dir, trees, *flags))


# Outputs of which somebody else has the name


ONNX = "export --model_name_or_path model --format onnx --output_file out/m.onnx --images images --max_check_samples 2"
WRITES = COMMANDS | {
    "export, onnx": f"{ONNX} --int8 --train_dir images",
    "evaluate, probes": f"{COMMANDS['evaluate']} --probes",
    "benchmark, growth": f"{COMMANDS['benchmark'].replace('layers', 'layers,growth')}",
    "inspect_dataset, elsewhere": "inspect_dataset --train_dir images --output_dir out/deeper",
}
REPORT = ("report.html", "report.md", "report.json", "predictions.csv", "probabilities.npz", "confusion_matrix.png",
          "reliability.png", "coverage_risk.png")  # fmt: skip
OUTPUTS = {
    "evaluate": REPORT,
    "evaluate, probes": ("probes.png",),
    "compare": ("comparison.html", "comparison.md", "comparison.json", "predictions.csv"),
    "probe": ("probes.json", "probes.md", "probes.png", "examples.png"),
    "saliency": ("saliency.png", "Black-grass_IMAGE.png"),
    "visualize_erf": ("erf.png", "erf.csv", "erf.npz"),
    "inspect_dataset": ("inspection.html", "inspection.json"),
    "inspect_dataset, elsewhere": ("deeper/inspection.html",),
    "preview_augmentation": ("Maize.png", "each_augmentation.png", "mixed_batches.png"),
    "benchmark": ("benchmark.json", "benchmark.md"),
    "benchmark, growth": ("growth.png",),
    "describe_dataset": ("statistics.json",),
    "embed": ("features.parquet",),
    "predict": ("answers.csv", "answers.failed.csv"),
    "predict, tiles": ("a.csv", "a.failed.csv", "boxes/Black-grass/IMAGE"),
    "export, torch": ("m.pt2",),
    "export, onnx": ("m.onnx", "m.int8.onnx"),
    "export, half": ("half/config.json", "half/notes.txt"),
    "convert_checkpoint": ("converted/config.json",),
    "make_split": ("split.csv", "train/Maize/mine.png", "notes.txt"),
}
CASES = [(name, output) for name, outputs in OUTPUTS.items() for output in outputs]


@pytest.fixture
def work(images, model_dir, tmp_path) -> Path:
    """A folder in which each command of the table runs."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "images").symlink_to(images)
    (folder / "model").symlink_to(model_dir)
    shutil.copytree(model_dir, folder / "other")
    (folder / "out").mkdir()
    return folder


def place_of(work: Path, output: str) -> Path:
    first = sorted((work / "images" / "Black-grass").iterdir())[0]
    image = first.name if output.endswith("IMAGE") else first.stem
    return work / "out" / output.replace("IMAGE", image)


def write_theirs(path: Path) -> None:
    """A whole file of the kind that the suffix says, as somebody else would have it."""
    import numpy as np
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {
        ".html": '<!doctype html>\n<html>\n<head><meta name="generator" content="Hugo"><title>Report</title></head>\n',
        ".md": "# Report\n\nWritten by hand about seedling_hf.\n\n| figure | value |\n|:--|--:|\n| yield | 3 |\n",
        ".json": '{\n  "classes": {\n    "Maize": 0\n  },\n  "model": "mine"\n}\n',
        ".csv": "file,label,note\na.png,Maize,mine\n",
        ".txt": "mine\n",
        ".onnx": "\b\b\x12\x07pytorch:\x00 seedling_hf",
    }
    suffix = path.suffix.lower()
    if suffix in texts:
        path.write_text(texts[suffix], encoding="utf-8")
    elif suffix == ".npz":
        np.savez_compressed(path, probabilities=np.ones(3), labels=np.ones(3))
    elif suffix == ".parquet":
        parquet.write_table(pa.table({"embedding": [1.0]}), path)
    elif suffix == ".pt2":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/metadata.json", '{"classes": ["Maize"]}')
    elif suffix == ".png" and "boxes" not in path.parts:
        from matplotlib.figure import Figure

        Figure().savefig(path)
    else:
        Image.new("RGB", (64, 64), (90, 60, 30)).save(path)


def run_in(work: Path, name: str, *more: str):
    return command([*WRITES[name].split(), *more], work)


@pytest.mark.parametrize("name, output", CASES)
def test_a_file_of_somebody_else_with_the_name_of_an_output_stays(work, name, output):
    path = place_of(work, output)
    write_theirs(path)
    former = contents(work / "out")
    outcome = run_in(work, name)
    assert_sentence(outcome, "found", "choose another ")
    assert contents(work / "out") == former


FOLDERS = ["evaluate", "compare", "probe", "saliency", "visualize_erf", "inspect_dataset", "preview_augmentation",
           "benchmark"]  # fmt: skip


@pytest.mark.parametrize("name", [*FOLDERS, "export, torch", "export, onnx", "embed", "predict"])
@pytest.mark.parametrize("kind", ["folder", "full folder", "dangling link", "link", "pipe"])
def test_what_is_no_file_in_the_place_of_an_output_stays(work, name, kind):
    path = place_of(work, OUTPUTS[name][0])
    theirs = work / "theirs.txt"
    theirs.write_text("mine")
    if kind == "folder":
        path.mkdir()
    elif kind == "full folder":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(theirs if kind == "link" else work / "nowhere")
    outcome = run_in(work, name)
    assert_sentence(outcome, path.name)
    assert path.is_symlink() == ("link" in kind) and path.is_dir() == ("folder" in kind)
    assert theirs.read_text() == "mine" and not (work / "nowhere").exists()


@pytest.mark.parametrize("name", ["evaluate", "probe", "saliency", "embed", "predict", "export, torch", "export, half"])
def test_the_output_is_looked_at_before_the_model(work, name):
    (work / "model").unlink()
    (work / "model").mkdir()
    (work / "model" / "config.json").write_text("{")
    write_theirs(place_of(work, OUTPUTS[name][0]))
    assert_sentence(run_in(work, name), place_of(work, OUTPUTS[name][0]).relative_to(work).parts[1])


# Those that want a new folder, and growth, which takes minutes.
ONCE = {"export, half", "convert_checkpoint", "benchmark, growth"}


@pytest.mark.parametrize("name", [name for name in WRITES if name not in ONCE and not name.startswith("train")])
def test_the_same_command_over_its_own_output_works(work, name):
    code = 1 if "inspect" in name else 0  # the images have near-duplicates
    for _ in range(2):
        outcome = run_in(work, name)
        assert outcome.code in (0, code), outcome
        assert "error" not in outcome.stderr, outcome


def age(folder: Path) -> None:
    """Makes outputs those of earlier versions, which wrote no marks and knew no singular."""
    from PIL import Image, PngImagePlugin

    for path in folder.rglob("*"):
        if path.suffix in (".html", ".md"):
            text = path.read_text(encoding="utf-8").replace('<meta name="generator" content="seedling_hf">\n', "")
            text = text.replace("<!-- generator: seedling_hf -->\n", "").replace(", 1 thread, ", ", 1 threads, ")
            path.write_text(text, encoding="utf-8")
        elif path.suffix == ".png":
            text = PngImagePlugin.PngInfo()
            text.add_text("Software", "Matplotlib version3.10.0, https://matplotlib.org/")
            with Image.open(path) as image:
                image.load()
                image.save(path, pnginfo=text)
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path, "a") as archive:
                archive.comment = b""


@pytest.mark.parametrize("name", ["evaluate", "evaluate, probes", "compare", "probe", "inspect_dataset", "benchmark"])
def test_the_same_command_over_outputs_of_earlier_versions_works(work, name):
    for _ in range(2):
        outcome = run_in(work, name)
        assert outcome.code in (0, 1) and "error" not in outcome.stderr, outcome
        age(work / "out")


@pytest.mark.parametrize("name, page", [("evaluate", "report.md"), ("compare", "comparison.md"),
                                        ("probe", "probes.md"), ("benchmark", "benchmark.md")])  # fmt: skip
def test_what_people_wrote_below_a_page_of_ours_stays(work, name, page):
    assert_well(run_in(work, name))
    with open(work / "out" / page, "a") as stream:
        stream.write("\nWhat we learned: sow later.\n")
    former = contents(work / "out")
    assert_sentence(run_in(work, name), page, "free or an earlier output of seedling_hf")
    assert contents(work / "out") == former


def test_predictions_are_not_replaced_by_those_of_a_report(work):
    assert_well(command(COMMANDS["predict"].replace("answers", "predictions").split(), work))
    former = contents(work / "out")
    for name in ("evaluate", "compare"):
        assert_sentence(run_in(work, name), "predictions.csv")
        assert contents(work / "out") == former


def test_a_figure_of_somebody_else_beside_a_report_of_ours_stays(work):
    assert_well(run_in(work, "evaluate"))
    write_theirs(work / "out" / "probes.png")
    former = contents(work / "out")
    assert_sentence(run_in(work, "evaluate, probes"), "probes.png")
    assert contents(work / "out") == former
    assert_well(run_in(work, "evaluate"))
    assert contents(work / "out")["probes.png"] == former["probes.png"]


@pytest.mark.parametrize("name", FOLDERS)
def test_files_of_other_names_beside_an_output_stay(work, name):
    former = fill(work / "out", "notes.html", "report.txt", "README.md", "deeper/report.html")
    outcome = run_in(work, name)
    assert outcome.code in (0, 1) and "error" not in outcome.stderr, outcome
    assert_kept(work / "out", former)


TRAYS = [".jpg", ".JPG", ".png", ".webp", ".tif", ".bmp", ".gif", ".ppm", ".jp2", ".avif", ".dib", ".jfif"]


@pytest.fixture
def trays(work) -> Path:
    (work / "trays" / "bay").mkdir(parents=True)
    return work


def a_tray(path: Path) -> None:
    from PIL import Image

    with Image.open(ROOT / "scripts" / "sample" / "tray.jpg") as image:
        image.resize((320, 240)).save(path)


def draw(work: Path, *more: str):
    words = "predict --model_name_or_path model --images trays --tiles --boxes_dir out --output_file a.csv"
    return command([*words.split(), *more], work)


@pytest.mark.parametrize("suffix", TRAYS)
def test_photographs_are_drawn_over_drawn_ones_only(trays, suffix):
    a_tray(trays / "trays" / "bay" / f"one{suffix}")
    for _ in range(2):
        assert_well(draw(trays))
    drawn = trays / "out" / "bay" / f"one{suffix}"
    a_tray(drawn)
    former = contents(trays / "out")
    assert_sentence(draw(trays), drawn.name, "free or an earlier output of seedling_hf")
    assert contents(trays / "out") == former


@pytest.mark.parametrize("content", ["copy of the photograph", "text", "folder", "dangling link"])
def test_whatever_has_the_name_of_a_photograph_stays(trays, content):
    a_tray(trays / "trays" / "bay" / "one.jpg")
    path = trays / "out" / "bay" / "one.jpg"
    path.parent.mkdir()
    if content == "text":
        path.write_text("mine")
    elif content == "folder":
        path.mkdir()
    elif content == "dangling link":
        path.symlink_to("nowhere")
    else:
        shutil.copyfile(trays / "trays" / "bay" / "one.jpg", path)
    former = contents(trays / "out")
    assert_sentence(draw(trays), "one.jpg", "--boxes_dir")
    assert contents(trays / "out") == former and not (trays / "a.csv").exists()


def test_a_watch_leaves_a_photograph_of_somebody_else(trays):
    new, theirs, rows = trays / "trays" / "bay", trays / "out" / "bay" / "one.jpg", trays / "a.csv"
    a_tray(new / "two.jpg")
    words = "predict --model_name_or_path model --images trays --tiles --boxes_dir out --output_file a.csv --watch"
    watch = Started(words.split(), trays)
    watch.wait_for(lambda: rows.exists() and "two.jpg" in rows.read_text())
    a_tray(theirs)
    former = contents(trays / "out")
    a_tray(new / "one.jpg")
    watch.wait_for(lambda: "one.jpg" in rows.read_text())
    watch.send(signal.SIGTERM)
    outcome = watch.finish()
    assert_well(outcome)
    assert former.keys() >= {"bay/one.jpg", "bay/two.jpg"}
    assert_kept(trays / "out", {name: digest for name, digest in former.items() if "lock" not in name})
    assert outcome.stderr.count("not drawn") == 1


# Outputs that are read too, or images


@pytest.mark.parametrize(
    "words",
    [
        "predict --model_name_or_path MODEL --images IMAGE --output_file IMAGE",
        "predict --model_name_or_path MODEL --images images --output_file images/Maize/new.png",
        "predict --model_name_or_path MODEL --images images --watch --output_file images/answers.JPG",
        "predict --model_name_or_path MODEL --images list.csv IMAGE --output_file ./list.csv",
        "describe_dataset --train_dir images --output_file IMAGE",
        "describe_dataset --train_dir images --output_file notes.json",
        "embed --model_name_or_path MODEL --images images --embeddings_file IMAGE",
        "embed --model_name_or_path MODEL --images images --embeddings_file notes.json",
        "embed --model_name_or_path MODEL --images images --embeddings_file theirs.parquet",
        "export --model_name_or_path MODEL --images images --format half --output_file images",
        "convert_checkpoint --checkpoint_path x.pth --output_dir images",
        "make_split --train_dir images --output_dir images/Maize",
        "make_split --train_dir images --output_dir .",
        "make_split --train_dir images --output_dir link",
    ],
)
def test_an_output_over_what_is_read_is_refused(model_dir, trees, words):
    import pyarrow as pa
    from pyarrow import parquet

    fill(trees, "notes.json", "list.csv", "x.pth")
    parquet.write_table(pa.table({"mine": [1]}), trees / "theirs.parquet")
    (trees / "link").symlink_to("images")
    former = contents(trees)
    names = {"MODEL": str(model_dir), "IMAGE": str(an_image(trees / "images").relative_to(trees))}
    outcome = command([names.get(word, word) for word in words.split()], trees)
    assert_sentence(outcome)
    assert contents(trees) == former


WITHIN = [
    "train --variant tiny --train_dir images --max_steps 1 --output_dir PLACE",
    "train --variant tiny --train_dir other --validation_dir images --max_steps 1 --output_dir PLACE",
    "make_split --train_dir images --output_dir PLACE",
    "preview_augmentation --train_dir images --image_size 32 --output_dir PLACE",
    "inspect_dataset --train_dir images --output_dir PLACE",
    "evaluate --model_name_or_path MODEL --test_dir images --output_dir PLACE",
    "evaluate --model_name_or_path MODEL --test_dir other --calibration_dir images --output_dir PLACE",
    "compare --models MODEL MODEL2 --data_dir images --output_dir PLACE",
    "probe --model_name_or_path MODEL --test_dir images --output_dir PLACE",
    "saliency --model_name_or_path MODEL --images images --output_dir PLACE",
    "visualize_erf --model_name_or_path MODEL --images images --image_size 64 --output_dir PLACE",
    "benchmark --parts loading --train_dir images --output_dir PLACE",
    "predict --model_name_or_path MODEL --images images --tiles --boxes_dir PLACE --output_file a.csv",
]


@pytest.mark.parametrize("place", ["images", "images/Maize/out", "link/out", "images/../images/out"])
@pytest.mark.parametrize("words", WITHIN, ids=lambda words: words.split(" --output")[0][:60])
def test_an_output_folder_within_the_images_is_refused(model_dir, images, trees, words, place):
    shutil.copytree(images, trees / "other")
    shutil.copytree(model_dir, trees / "model2")
    (trees / "link").symlink_to("images")
    former = contents(trees)
    names = {"MODEL": str(model_dir), "MODEL2": "model2", "PLACE": place}
    outcome = command([names.get(word, word) for word in words.split()], trees)
    assert_sentence(outcome, place)
    assert contents(trees) == former


@pytest.mark.parametrize("place", [".", "..", "link"])
def test_an_output_folder_of_training_around_the_images_is_refused(trees, place):
    (trees / "link").symlink_to(".")
    former = contents(trees)
    outcome = train(trees, "--train_dir", "images", "--output_dir", place)
    assert_sentence(outcome, "--output_dir")
    assert contents(trees) == former


def test_predictions_beside_the_images_that_are_read_work(model_dir, trees):
    assert_well(predict(model_dir, trees, "--images", "images", "--output_file", "images/answers.csv"))


# Runs


RUN_FILES = [
    "config.json", "model.safetensors", "metrics.jsonl", "split.csv", "arguments.yaml", "report.html", "report.json",
    "predictions.csv", "curves.png", "preprocessor_config.json", "checkpoints/latest", "train_results.json",
]  # fmt: skip


@pytest.mark.parametrize("more", [(), ("--overwrite_output_dir",), ("--resume_from_checkpoint", "latest")], ids=str)
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_file_that_a_run_would_replace_stays(trees, name, more):
    former = fill(trees / "out", name)
    outcome = train(trees, "--train_dir", "images", "--output_dir", "out", *more)
    assert_sentence(outcome, "out")
    assert contents(trees / "out") == former


KEPT = ["report.html", "report.md", "predictions.csv", "probabilities.npz", "confusion_matrix.png", "curves.png"]


@pytest.mark.parametrize("more", [("--overwrite_output_dir",), ("--resume_from_checkpoint", "latest")], ids=str)
@pytest.mark.parametrize("name", KEPT)
def test_a_file_of_the_users_in_the_folder_of_an_own_run_stays(images, tmp_path, name, more):
    flags = ("--train_dir", images, "--output_dir", "out")
    assert_well(train(tmp_path, *flags))
    (tmp_path / "out" / name).unlink()
    write_theirs(tmp_path / "out" / name)
    former = contents(tmp_path / "out")
    assert_sentence(train(tmp_path, *flags, *more), name, "free or an earlier output of seedling_hf")
    assert contents(tmp_path / "out") == former


def write_notes() -> None:
    from seedling_hf.training import loop

    step = loop.Training.optimization_step

    def noting(self, *arguments):
        (Path("out") / "report.md").write_text("# My notes on this run\n", encoding="utf-8")
        return step(self, *arguments)

    loop.Training.optimization_step = noting


def test_notes_that_are_written_while_a_run_goes_on_stay(images, tmp_path):
    words = [
        "train", "--variant", "tiny", "--image_size", 32, "--max_steps", 2, "--per_device_train_batch_size", 8,
        "--no_duplicate_check", "--train_dir", images, "--output_dir", "out",
    ]  # fmt: skip
    outcome = command(words, tmp_path, before=write_notes)
    assert_sentence(outcome, "report.md", "move it, and resume with --resume_from_checkpoint latest")
    notes = tmp_path / "out" / "report.md"
    assert notes.read_text() == "# My notes on this run\n" and (tmp_path / "out" / "model.safetensors").exists()
    notes.rename(tmp_path / "notes.md")
    assert_well(command([*words, "--resume_from_checkpoint", "latest"], tmp_path))
    assert "| figure | value |" in notes.read_text(encoding="utf-8")


@pytest.mark.parametrize("place", [".", "out"])
def test_overwriting_deletes_nothing_else(images, tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    names = ("checkpoints/mine.txt", "checkpoints/step-1/a.bin", "checkpoints/step-00000002/mine.bin", "notes.md",
             "hub_outbox/notes.txt", "hub_outbox/000001-mine/a.txt")  # fmt: skip
    former = fill(tmp_path / place, *names)
    flags = ("--train_dir", images, "--output_dir", place, "--overwrite_output_dir")
    assert_well(train(tmp_path, *flags))
    texts = {path.read_bytes() for path in (tmp_path / place).rglob("*") if path.is_file()}
    assert all(f"mine: {name}\n".encode() in texts for name in former)
    assert_well(train(tmp_path, *flags))
    texts = {path.read_bytes() for path in (tmp_path / place).rglob("*") if path.is_file()}
    assert all(f"mine: {name}\n".encode() in texts for name in former)


def test_overwriting_discards_our_own_run(images, tmp_path):
    flags = ("--train_dir", images, "--output_dir", "out")
    assert_well(train(tmp_path, *flags, "--max_steps", 4))
    assert_well(train(tmp_path, *flags, "--overwrite_output_dir"))
    assert [path.name for path in sorted((tmp_path / "out" / "checkpoints").glob("step-*"))] == ["step-00000002"]
    assert '"step": 4' not in (tmp_path / "out" / "metrics.jsonl").read_text()


def test_a_card_that_people_wrote_stays_in_the_card_of_the_run(images, tmp_path):
    fill(tmp_path / "out", "README.md")
    assert_well(train(tmp_path, "--train_dir", images, "--output_dir", "out"))
    assert "mine: README.md" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("flag", ["--num_train_epochs=9", "--split_seed=3"])
def test_a_refused_resumption_changes_nothing(images, tmp_path, flag):
    flags = ("--train_dir", images, "--output_dir", "out")
    assert_well(train(tmp_path, *flags))
    former = contents(tmp_path)
    assert_sentence(train(tmp_path, *flags, flag, "--resume_from_checkpoint", "latest"), "--allow_changed_arguments")
    assert contents(tmp_path) == former


# Empty paths, home and variables


EMPTY = [
    "train --variant tiny --train_dir IMAGES --output_dir=", "train --variant tiny --train_dir= --output_dir out",
    "train --variant tiny --train_dir IMAGES --validation_dir= --output_dir out",
    "train --variant tiny --train_dir IMAGES --split_file= --output_dir out",
    "train --model_name_or_path= --train_dir IMAGES --output_dir out",
    "train --variant tiny --train_dir IMAGES --output_dir out --resume_from_checkpoint=",
    "train --variant tiny --train_dir IMAGES --output_dir out --teacher_model_name_or_path=",
    "train --config= --variant tiny --train_dir IMAGES --output_dir out",
    "describe_dataset --train_dir=", "describe_dataset --train_dir IMAGES --output_file=",
    "inspect_dataset --train_dir IMAGES --output_dir=", "make_split --train_dir IMAGES --output_dir=",
    "preview_augmentation --train_dir= --output_dir out", "preview_augmentation --train_dir IMAGES --output_dir=",
    "evaluate --test_dir= --output_dir out", "evaluate --test_dir IMAGES --output_dir=",
    "evaluate --test_dir IMAGES --calibration_dir= --output_dir out",
    "compare --models= --data_dir IMAGES --output_dir out",
    "compare --models a b --data_dir IMAGES --output_dir=", "probe --test_dir IMAGES --output_dir=",
    "predict --images=", "predict --images IMAGES --output_file=", "predict --images IMAGES --model_name_or_path=",
    "predict --images IMAGES --tiles --boxes_dir=", "embed --images IMAGES --embeddings_file=",
    "embed --embeddings_file a.parquet --query=", "demo --model_name_or_path=",
    "saliency --images IMAGES --output_dir=", "visualize_erf --images IMAGES --untrained nano --output_dir=",
    "push_to_hub --output_dir=", "push_space --model_name_or_path= --hub_space_id a/b",
    "push_dataset --train_dir= --dataset_name a/b --license mit --dry_run", "export --images IMAGES --output_file=",
    "convert_checkpoint --checkpoint_path= --output_dir out", "convert_checkpoint --checkpoint_path a --output_dir=",
    "benchmark --output_dir=", "estimate_memory --variant tiny --train_dir IMAGES --output_dir=",
]  # fmt: skip


@pytest.mark.parametrize("words", EMPTY)
@pytest.mark.parametrize("empty", ["", " "], ids=["empty", "blank"])
def test_an_empty_path_is_refused(images, tmp_path, words, empty):
    former = fill(tmp_path, "checkpoints/mine.txt", "config.json")
    arguments = [str(images) if w == "IMAGES" else f"{w}{empty}" if w.endswith("=") else w for w in words.split()]
    flag = next(word for word in words.split() if word.endswith("=")).removesuffix("=")
    assert_sentence(command(arguments, tmp_path), flag, "empty")
    assert contents(tmp_path) == former


def test_an_empty_path_in_a_recipe_is_refused(images, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"train_dir: {images}\noutput_dir: ''\n")
    assert_sentence(train(tmp_path, "--config", "recipe.yaml"), "--output_dir", "empty")


@pytest.mark.parametrize("flag", ["--output_dir=~/run", "--config=~/recipe.yaml", "--config=variable.yaml"])
def test_home_and_variables_are_expanded(images, tmp_path, flag):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    (home / "photos").symlink_to(images)
    (home / "recipe.yaml").write_text(yaml.safe_dump({"train_dir": "~/photos", "output_dir": "~/run"}))
    (here / "variable.yaml").write_text(yaml.safe_dump({"train_dir": "$PLACE/photos", "output_dir": "${PLACE}/run"}))
    data = () if "config" in flag else ("--train_dir", images)
    assert_well(train(here, flag, *data, environment={"HOME": str(home), "PLACE": str(home)}))
    assert (home / "run" / "report.html").exists()
    assert {path.name for path in here.iterdir()} == {"variable.yaml"}


def test_home_is_expanded_in_a_list_of_images(images, model_dir, tmp_path):
    (tmp_path / "photos").symlink_to(images)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"images": ["~/photos/Maize", "$HOME/photos/Charlock"], "output_file": "a.csv"}))
    outcome = predict(model_dir, tmp_path, "--config", recipe, environment={"HOME": str(tmp_path)})
    assert_well(outcome)
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 33


@pytest.mark.parametrize("path", ["$NOWHERE/run", "${NOWHERE}/run", "out/$NOWHERE"])
def test_a_variable_that_is_not_set_is_refused(images, tmp_path, path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"train_dir": str(images), "output_dir": path}))
    former = contents(tmp_path)
    assert_sentence(train(tmp_path, "--config", "recipe.yaml"), "NOWHERE", "output_dir")
    assert contents(tmp_path) == former


def test_a_folder_with_a_dollar_in_its_name_is_itself(images, tmp_path):
    (tmp_path / "$HOME").symlink_to(images)
    flags = ("--train_dir", "$HOME", "--output_dir", "$PWD")
    assert_well(train(tmp_path, *flags))
    assert (tmp_path / "$PWD" / "config.json").exists()
    again = ("--config", "$PWD/arguments.yaml", "--resume_from_checkpoint", "latest")
    assert_well(command(["train", *again], tmp_path))


# Twice the same


@pytest.mark.parametrize(
    "given",
    [
        ["images", "images"], ["images", "./images"], ["images", "ABSOLUTE"], ["images", "link"], ["link", "images"],
        ["images", "images/Maize"], ["images/Maize", "images"], ["images", "link/Maize"], ["images", "IMAGE"],
        ["IMAGE", "images"], ["images", "images/../images"],
        ["images/Black-grass", "images/Charlock", "images/Maize", "link"],
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_is_given_twice_is_read_once(model_dir, trees, given, suffix):
    (trees / "link").symlink_to("images")
    names = {"ABSOLUTE": str(trees / "images"), "IMAGE": str(an_image(trees / "images").relative_to(trees))}
    given = [names.get(name, name) for name in given]
    if suffix == ".csv":
        assert_well(predict(model_dir, trees, "--images", *given, "--output_file", "a.csv"))
        assert len((trees / "a.csv").read_text().splitlines()) == 1 + 48
    else:
        words = ["embed", "--model_name_or_path", model_dir, "--images", *given, "--embeddings_file", "a.parquet"]
        outcome = command(words, trees)
        assert_well(outcome)
        assert "48 images" in outcome.stdout


@pytest.mark.parametrize("again", ["images", "ABSOLUTE", "link", "images/."])
def test_validation_on_the_training_folder_is_refused(trees, again):
    (trees / "link").symlink_to("images")
    again = str(trees / "images") if again == "ABSOLUTE" else again
    outcome = train(trees, "--train_dir", "images", "--validation_dir", again, "--output_dir", "out")
    assert_sentence(outcome, "validation")


def test_calibration_on_the_test_folder_is_refused(model_dir, trees):
    (trees / "link").symlink_to("images")
    words = ["evaluate", "--model_name_or_path", model_dir, "--test_dir", "images", "--output_dir", "out"]
    assert_sentence(command([*words, "--calibration_dir", "link"], trees), "--calibration_dir")


def test_a_model_is_not_compared_with_itself(model_dir, trees):
    (trees / "link").symlink_to(model_dir)
    words = ["compare", "--models", model_dir, "link", "--data_dir", "images", "--output_dir", "out"]
    assert_sentence(command(words, trees), "--models")


def test_a_link_to_an_image_is_a_row_of_its_own(model_dir, trees):
    os.symlink(an_image(trees / "images"), trees / "again.png")
    given = [an_image(trees / "images"), trees / "again.png"]
    assert_well(predict(model_dir, trees, "--images", *given, "--output_file", "a.csv"))
    assert len((trees / "a.csv").read_text().splitlines()) == 3
