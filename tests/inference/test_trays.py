"""`predict --tiles`: photographs of whole trays go in, a row for each plant comes out."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_client import wait_until
from PIL import Image
from predict_runs import contents, finish, flags, lines_in, read_csv, start, wait_for_rows

from seedling_hf.commands import predict, run
from seedling_hf.inference.answers import Answer, Plant
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.inference.judgement import Judgement
from seedling_hf.inference.tiles import find_plants
from seedling_hf.inference.trays import Tray, TrayLoader, TrayPredictor, draw_answer, write_image

pytest.importorskip("skimage", reason="scikit-image finds the plants: pip install 'seedling-hf[all]'")
pytestmark = pytest.mark.usefixtures("unsettled_precision")

TRAY = Path(__file__).resolve().parents[2] / "scripts" / "sample" / "tray.jpg"
PLACE = ("left", "top", "right", "bottom")


@pytest.fixture
def trays(tmp_path) -> Path:
    """Two folders with photographs of the same name, one of bare ground, and a broken file."""
    folder = tmp_path / "trays"
    for day, box in (("monday", (0, 0, 618, 640)), ("tuesday", (618, 210, 1240, 640))):
        (folder / day).mkdir(parents=True)
        Image.open(TRAY).crop(box).save(folder / day / "tray.png")
    Image.new("RGB", (300, 200), (120, 110, 100)).save(folder / "monday" / "bare.png")
    (folder / "tuesday" / "torn.jpg").write_bytes(TRAY.read_bytes()[:3000])
    return folder


def predict_tiles(model_dir: Path, images: Path | list[Path], output: Path, **further) -> int | None:
    further = {"tiles": True, "skip_bad_images": True, "per_device_eval_batch_size": 4} | further
    images = images if isinstance(images, list) else [images]
    return run(predict.main, flags(model_name_or_path=model_dir, images=images, output_file=output, **further))


def boxes(rows: list[dict]) -> list[tuple[int, ...]]:
    return [tuple(int(row[edge]) for edge in PLACE) for row in rows]


@pytest.mark.parametrize("further", [{}, {"test_time_augmentation": True}])
def test_each_plant_is_predicted_as_its_crop_alone(model_dir, tmp_path, further):
    assert predict_tiles(model_dir, TRAY, tmp_path / "a.csv", **further) == 0
    rows = read_csv((tmp_path / "a.csv").read_text())
    assert list(rows[0]) == ["file", "plant", *PLACE, "class", "probability"]
    assert [row["plant"] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    assert {row["file"] for row in rows} == {str(TRAY)}
    photograph = Image.open(TRAY)
    assert boxes(rows) == find_plants(photograph)
    (tmp_path / "cut").mkdir()
    for number, box in enumerate(boxes(rows)):
        photograph.crop(box).save(tmp_path / "cut" / f"{number:02d}.png")
    assert predict_tiles(model_dir, tmp_path / "cut", tmp_path / "b.csv", **further, tiles=False) == 0
    alone = read_csv((tmp_path / "b.csv").read_text())
    assert [row["class"] for row in rows] == [row["class"] for row in alone]
    # Batches of another size sum float32 in another order: the seventh digit differs.
    expected = [float(row["probability"]) for row in alone]
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected, abs=2e-6)
    assert len({row["class"] for row in rows}) > 1


def test_each_plant_of_the_sample_tray_has_a_box_of_its_own():
    """The tray is composed of eighteen, six in each row."""
    found = find_plants(Image.open(TRAY))
    assert len(found) == 18
    cells = {
        (int((left + right) / 2 * 6 // 1240), int((top + bottom) / 2 * 3 // 640)) for left, top, right, bottom in found
    }
    assert len(cells) == 18


def test_boxes_are_in_pixels_of_the_upright_photograph(model_dir, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned: upright after a quarter turn to the right
    (tmp_path / "in").mkdir()
    Image.open(TRAY).rotate(90, expand=True).save(tmp_path / "in" / "tray.png", exif=turned)
    assert predict_tiles(model_dir, tmp_path / "in", tmp_path / "a.csv", boxes_dir=tmp_path / "drawn") == 0
    assert boxes(read_csv((tmp_path / "a.csv").read_text())) == find_plants(Image.open(TRAY))
    drawn = Image.open(tmp_path / "drawn" / "tray.png")
    assert drawn.size == Image.open(TRAY).size
    assert 0x0112 not in drawn.getexif()


def test_jsonl_has_the_same_with_top_k_and_certainty(model_dir, tmp_path):
    further = {"top_k": 2, "threshold": 0.6}
    for name in ("a.csv", "a.jsonl"):
        assert predict_tiles(model_dir, TRAY, tmp_path / name, **further) == 0
    rows = read_csv((tmp_path / "a.csv").read_text())
    objects = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert boxes(objects) == boxes(rows[::2])
    keys = ("plant", "class", "certainty")
    assert [[str(o[key]) for key in keys] for o in objects] == [[row[key] for key in keys] for row in rows[::2]]
    assert [o["top_k"][1]["class"] for o in objects] == [row["class"] for row in rows[1::2]]
    assert {row["certainty"] for row in rows[::2]} == {"sure", "not sure"}
    assert {row["certainty"] for row in rows[1::2]} == {""}


def test_photographs_without_plants_are_printed_and_failed_ones_are_listed(model_dir, trays, tmp_path, capsys):
    assert predict_tiles(model_dir, trays, tmp_path / "a.csv") == 0
    said = capsys.readouterr()
    rows = read_csv((tmp_path / "a.csv").read_text())
    assert {Path(row["file"]).name for row in rows} == {"tray.png"}
    assert f"{len(rows)} plants in 3 photographs are in" in said.out
    assert f"no plant found: 1\n  {trays / 'monday' / 'bare.png'}\n" in said.err
    assert [row["file"] for row in read_csv((tmp_path / "a.failed.csv").read_text())] == [
        str(trays / "tuesday/torn.jpg")
    ]


def test_photographs_without_any_plant_are_not_an_error(model_dir, trays, tmp_path, capsys):
    assert predict_tiles(model_dir, trays / "monday" / "bare.png", tmp_path / "a.csv") == 0
    assert (tmp_path / "a.csv").read_text() == "file,plant,left,top,right,bottom,class,probability\n"
    said = capsys.readouterr()
    assert said.out == f"predictions for 0 plants in 1 photograph are in {tmp_path / 'a.csv'}\n"
    assert "no plant found: 1" in said.err


def test_broken_photographs_are_refused_by_name(model_dir, trays, tmp_path, capsys):
    words = flags(model_name_or_path=model_dir, images=[trays], output_file=tmp_path / "out" / "a.csv", tiles=True,
                  boxes_dir=tmp_path / "drawn")  # fmt: skip
    assert run(predict.main, words) == 2
    assert "torn.jpg" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "drawn").exists()


def test_photographs_of_one_name_are_drawn_apart_and_whole(model_dir, trays, tmp_path):
    drawn = tmp_path / "drawn"
    days = [trays / "monday", trays / "tuesday"]
    assert predict_tiles(model_dir, days, tmp_path / "a.csv", boxes_dir=drawn) == 0
    names = sorted(str(path.relative_to(drawn)) for path in drawn.rglob("*") if path.is_file())
    assert names == ["monday/bare.png", "monday/tray.png", "tuesday/tray.png"]
    rows = read_csv((tmp_path / "a.csv").read_text())
    for day in days:
        before, after = (np.asarray(Image.open(folder / day.name / "tray.png")) for folder in (trays, drawn))
        corners = [box[:2] for box in boxes([row for row in rows if day.name in row["file"]])]
        assert corners
        assert all((before[top, left] != after[top, left]).any() for left, top in corners)
    assert predict_tiles(model_dir, days[0] / "tray.png", tmp_path / "b.csv", boxes_dir=tmp_path / "one") == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["tray.png"]


def test_a_killed_run_resumes_to_the_very_same_files(model_dir, trays, tmp_path):
    for number in range(12):
        (trays / f"{number:02d}.png").symlink_to(trays / ("monday" if number % 3 else "tuesday") / "tray.png")

    def words(out: Path) -> list[str]:
        return flags(model_name_or_path=model_dir, images=[trays], output_file=out / "a.csv", tiles=True,
                     boxes_dir=out / "drawn", skip_bad_images=True)  # fmt: skip

    def files(out: Path) -> dict[str, bytes]:
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(tmp_path, words(whole)).returncode == 0
    part = killed / "a.csv.partial" / "answers-00000.jsonl"
    process = start(tmp_path, words(killed))
    wait_until(lambda: lines_in(part) >= 3 or process.status is not None)
    process.kill()
    assert process.finish().returncode == -signal.SIGKILL
    assert 3 <= lines_in(part) < 16
    resumed = finish(tmp_path, words(killed))
    assert resumed.returncode == 0, resumed.stdout
    assert "resuming after" in resumed.stdout
    assert files(killed) == files(whole)
    assert len(read_csv((whole / "a.csv").read_text())) > 50


def test_a_watched_folder_is_answered_plant_by_plant(model_dir, tmp_path):
    inbox, output = tmp_path / "inbox", tmp_path / "out" / "a.csv"
    inbox.mkdir()
    process = start(tmp_path, flags(model_name_or_path=model_dir, images=[inbox], output_file=output, tiles=True,
                                    watch=True))  # fmt: skip
    for name, image in (("bare.png", Image.new("RGB", (99, 99))), ("tray.png", Image.open(TRAY))):
        image.save(tmp_path / name)
        os.utime(tmp_path / name, (1e9, 1e9))  # long ago: writing has ended
        (tmp_path / name).rename(inbox / name)
    wait_for_rows(process, output, 18)
    os.kill(process.id, signal.SIGTERM)
    finished = process.finish()
    assert finished.returncode == 0, finished.stdout
    assert f"no plant found: 1\n  {inbox / 'bare.png'}" in finished.stdout
    assert "predictions for 2 photographs are in" in finished.stdout
    assert boxes(read_csv(output.read_text())) == find_plants(Image.open(TRAY))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"format": "kaggle"}, "expected no --tiles for Kaggle's file"),
        ({"tiles": False, "boxes_dir": "drawn"}, "expected --tiles for --boxes_dir"),
        ({"tiles": False, "min_plant_side": 0.1}, "expected --tiles for --min_plant_side"),
        ({"min_plant_side": 0}, "expected --min_plant_side above 0 and at most 1, found 0"),
        ({"boxes_dir": TRAY.parent}, f"expected --boxes_dir apart from {TRAY}"),
        ({"boxes_dir": TRAY}, "expected --boxes_dir in a writable folder"),
        (
            {"images": [TRAY.parent], "boxes_dir": TRAY.parent / "drawn"},
            f"expected --boxes_dir outside of {TRAY.parent}",
        ),
    ],
)
def test_impossible_flags_are_refused_in_one_sentence(tmp_path, capsys, monkeypatch, wrong, named):
    monkeypatch.chdir(tmp_path)
    values = {"images": [TRAY], "output_file": "a.csv", "tiles": True} | wrong
    assert run(predict.main, flags(**{name: value for name, value in values.items() if value is not False})) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_scikit_image_it_is_refused_before_any_work(model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    assert predict_tiles(model_dir, TRAY, tmp_path / "a.csv") == 2
    assert 'pip install "seedling-hf[all]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_smaller_plants_are_skipped_on_request(model_dir, tmp_path):
    assert predict_tiles(model_dir, TRAY, tmp_path / "a.csv", min_plant_side=0.2) == 0
    rows = read_csv((tmp_path / "a.csv").read_text())
    assert boxes(rows) == find_plants(Image.open(TRAY), min_side=0.2)
    assert 0 < len(rows) < 18


def test_plants_go_through_the_model_in_batches(model_dir):
    sizes = []

    def classify(pixel_values: torch.Tensor) -> list[Judgement]:
        sizes.append(len(pixel_values))
        return [Judgement([("Maize", 1.0)], "unfamiliar")] * len(pixel_values)

    load = TrayLoader(load_classifier(str(model_dir))[1], min_side=0.02)
    batch = load.collate([str(TRAY), "torn.jpg"], [load(str(TRAY)), load("torn.jpg")])
    whole, torn = TrayPredictor(classify, load, plants_at_once=5)(batch)
    assert sizes == [5, 5, 5, 3]
    assert [plant.certainty for plant in whole.plants] == 18 * ["unfamiliar"]
    assert torn.plants == [] and torn.reason


def test_a_class_that_is_not_sure_has_a_question_mark_and_an_unfamiliar_plant_no_class(monkeypatch):
    drawn = []
    monkeypatch.setattr("seedling_hf.inference.trays.draw_boxes", lambda image, boxes, names: drawn.append(names))
    ranking = [("Charlock", 0.5)]
    words = ("sure", "not sure", "unfamiliar", None)
    plants = [Plant((0, 0, 5, 5), ranking, word) for word in words]
    tray = Tray(Image.new("RGB", (9, 9)), [plant.box for plant in plants])
    labels = {"Charlock": "class 2"}
    draw_answer(tray, Answer("a.jpg", [], None, plants), labels)
    assert drawn == [["1  class 2", "2  class 2?", "3  unfamiliar", "4  class 2"]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.JPG", "JPEG"), ("a.png", "PNG"), ("a.gif", "GIF"), ("a.tif", "TIFF"), ("a.pgm", "PPM"), ("a.jfif", "JPEG"),
     ("a", "JPEG")],
)  # fmt: skip
def test_a_photograph_is_written_in_the_format_of_its_name(tmp_path, name, expected):
    write_image(Image.new("RGB", (8, 8)), tmp_path / "new" / name)
    assert Image.open(tmp_path / "new" / name).format == expected
    assert list(contents(tmp_path / "new")) == [name]
