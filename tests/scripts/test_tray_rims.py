"""The study of tray rims sees a bright grey rim, and counts right answers with it and without."""

import numpy as np
import tray_rims
from PIL import Image

from seedling_hf.commands import run
from seedling_hf.data.suspects import Predictions


def test_a_bright_grey_edge_is_a_rim_and_bright_leaves_are_none():
    ground = Image.new("RGB", (150, 150), (90, 75, 50))
    assert not tray_rims.shows_rim(ground)
    with_rim, with_leaf = ground.copy(), ground.copy()
    with_rim.paste((200, 205, 210), (0, 0, 150, 20))
    with_leaf.paste((160, 220, 140), (0, 0, 150, 20))
    assert tray_rims.shows_rim(with_rim) and not tray_rims.shows_rim(with_leaf)


def test_right_answers_are_counted_with_a_rim_and_without():
    files = ["a/1.png", "a/2.png", "a/3.png", "b/1.png"]
    predictions = Predictions("folds", files, ["a", "b"], np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]]))
    table = tray_rims.format_table(predictions, np.array([True, True, False, False]))
    assert table.splitlines()[2:] == [
        "| a | 3 | 67% | 50.0% of 2 | 100.0% of 1 |",
        "| b | 1 | 0% |  | 100.0% of 1 |",
    ]


def test_predictions_of_images_that_are_elsewhere_are_refused(tmp_path, capsys):
    rows = ["file,label,prediction,probability,label_probability", "a/1.png,a,a,0.9,0.9"]
    (tmp_path / "predictions.csv").write_text("\n".join(rows) + "\n")
    flags = ["--train_dir", str(tmp_path), "--predictions", str(tmp_path / "predictions.csv")]
    assert run(tray_rims.main, flags) == 2
    assert "found no" in capsys.readouterr().err
