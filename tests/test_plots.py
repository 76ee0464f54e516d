"""Figures hold what they are given, and leave matplotlib alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedling_hf.escaping import width_of
from seedling_hf.plots import curves, fonts, style
from seedling_hf.plots.curves import _smooth, plot_curves
from seedling_hf.plots.images import plot_contact_sheet, plot_saliency
from seedling_hf.plots.quality import plot_confusion_matrix, plot_probes
from seedling_hf.plots.receptive_fields import plot_erf


def training_line(step: int, loss: float) -> dict:
    return {"step": step, "epoch": step / 10, "loss": loss, "learning_rate": 1e-3 * step, "grad_norm": 1.0}


def evaluation_line(step: int, accuracy: float) -> dict:
    return {
        "step": step,
        "epoch": step / 10,
        "eval_loss": 1.0,
        "eval_accuracy": accuracy,
        "eval_macro_f1": accuracy - 0.1,
    }


LINES = [training_line(1, 2.5), training_line(2, 2.0), evaluation_line(2, 0.3), training_line(3, 1.8)]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def share_of_green(path: Path) -> float:
    red, green, blue = np.moveaxis(pixels(path), -1, 0)
    return float(((green - red > 40) & (green - blue > 20)).mean())


def share_of_orange(path: Path) -> float:
    red, _, blue = np.moveaxis(pixels(path), -1, 0)
    return float((red - blue > 40).mean())


def test_curves_are_three_panels_in_a_wide_image(tmp_path):
    plot_curves(LINES, tmp_path / "curves.png")
    height, width, _ = pixels(tmp_path / "curves.png").shape
    assert width > 3 * height


def test_the_ticks_of_the_curves_are_numbers(tmp_path, monkeypatch):
    from matplotlib.text import Text

    figures = []
    monkeypatch.setattr(curves, "save", lambda figure, path: (figures.append(figure), style.save(figure, path)))
    plot_curves(LINES, tmp_path / "curves.png")
    texts = [text.get_text() for text in figures[0].findobj(Text)]
    assert "0.003" in texts  # of the learning rate
    assert [text for text in texts if "$" in text] == []


def test_the_later_line_of_a_step_counts(tmp_path):
    plot_curves(LINES, tmp_path / "once.png")
    plot_curves([training_line(2, 9.0), evaluation_line(2, 0.9), *LINES], tmp_path / "resumed.png")
    assert (pixels(tmp_path / "once.png") == pixels(tmp_path / "resumed.png")).all()


def test_accuracy_is_part_of_the_curves(tmp_path):
    plot_curves(LINES, tmp_path / "one.png")
    plot_curves([*LINES, evaluation_line(3, 0.9)], tmp_path / "other.png")
    assert (
        pixels(tmp_path / "one.png").shape != pixels(tmp_path / "other.png").shape
        or (pixels(tmp_path / "one.png") != pixels(tmp_path / "other.png")).any()
    )


@pytest.mark.parametrize("lines", [[], LINES[:1], LINES[2:3]], ids=["nothing", "no evaluation", "no training"])
def test_a_run_that_has_just_begun_has_curves_too(tmp_path, lines, recwarn):
    plot_curves(lines, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").size
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning | UserWarning)]


def test_smoothing_keeps_a_straight_line_straight():
    line = np.linspace(3, 1, 90)
    # 1e-12: sums of 90 numbers in float64.
    np.testing.assert_allclose(_smooth(line)[3:-3], line[3:-3], atol=1e-12)


def test_smoothing_removes_noise():
    noise = np.random.default_rng(0).normal(size=300)
    assert _smooth(noise).std() < noise.std() / 3


def test_correct_predictions_are_green_and_mistakes_orange(tmp_path):
    plot_confusion_matrix([[5, 0], [0, 5]], ["Maize", "Charlock"], tmp_path / "right.png")
    plot_confusion_matrix([[0, 5], [5, 0]], ["Maize", "Charlock"], tmp_path / "wrong.png")
    # Half of the cells are full; half of the image or more is names and margins.
    assert share_of_green(tmp_path / "right.png") > 0.1
    assert share_of_orange(tmp_path / "right.png") < 0.01
    assert share_of_orange(tmp_path / "wrong.png") > 0.1


def test_a_matrix_with_twelve_long_names_or_sixty_classes_can_be_drawn(tmp_path):
    for count in (12, 60):
        names = [f"Small-flowered Cranesbill {i}" for i in range(count)]
        plot_confusion_matrix(np.eye(count, dtype=int) * 1234, names, tmp_path / f"{count}.png")
        height, width, _ = pixels(tmp_path / f"{count}.png").shape
        assert 1000 < height < 5000
        assert 1000 < width < 5000


def test_a_class_without_images_draws_an_empty_row(tmp_path, recwarn):
    plot_confusion_matrix([[3, 0], [0, 0]], ["Maize", "Charlock"], tmp_path / "matrix.png")
    assert not list(recwarn)
    assert share_of_green(tmp_path / "matrix.png") > 0.05


def test_an_old_figure_is_replaced_and_no_other_file_remains(tmp_path):
    (tmp_path / "curves.png").write_bytes(b"old")
    plot_curves(LINES, tmp_path / "curves.png")
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    assert pixels(tmp_path / "curves.png").size


def test_plots_leave_the_global_state_of_matplotlib_alone(tmp_path):
    code = (
        "import sys; from seedling_hf.plots.quality import plot_confusion_matrix as plot; "
        f"plot([[1]], ['Maize'], {str(tmp_path / 'm.png')!r}); print('matplotlib.pyplot' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def ring_of_scores(side: int) -> tuple[np.ndarray, list[dict]]:
    scores = np.zeros((64, 64))
    scores[32 - side // 2 : 33 + side // 2, 32 - side // 2 : 33 + side // 2] = 100.0
    rows = [{"threshold": t, "side": side, "area_ratio": side**2 / 64**2} for t in (0.5, 0.99)]
    return scores, rows


def test_a_wide_receptive_field_has_more_green_than_a_narrow_one(tmp_path):
    for side in (9, 41):
        scores, rows = ring_of_scores(side)
        plot_erf({"model": scores}, [{"model": "model", **row} for row in rows], tmp_path / f"{side}.png")
    assert share_of_green(tmp_path / "41.png") > 3 * share_of_green(tmp_path / "9.png")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_receptive_fields_of_any_number_of_models_are_drawn(count, tmp_path):
    scores, rows = ring_of_scores(21)
    names = [f"model {i}" for i in range(count)]
    plot_erf(dict.fromkeys(names, scores), [{"model": n, **row} for n in names for row in rows], tmp_path / "erf.png")
    assert pixels(tmp_path / "erf.png").std() > 10


def test_a_saliency_figure_has_image_map_and_overlay(tmp_path):
    image = Image.new("RGB", (30, 30), (200, 120, 60))
    plot_saliency(image, np.zeros((4, 4)), image, tmp_path / "s.png", title="Maize, 97.0%", subtitle="a.png")
    shown = pixels(tmp_path / "s.png")
    share = (np.abs(shown - (200, 120, 60)).max(-1) < 3).mean()
    assert 0.35 < share < 0.75  # two of three panels


def test_a_bar_is_as_long_as_the_accuracy_under_the_probe(tmp_path):
    def row(group, accuracy):
        return {
            "title": group,
            "group": group,
            "accuracy": accuracy,
            "interval": [accuracy, accuracy],
            "num_examples": 9,
        }

    for accuracy in (0.2, 0.8):
        plot_probes([row("plain", 0.9), row("shape", accuracy)], tmp_path / f"{accuracy}.png", chance=0.1)
    assert share_of_green(tmp_path / "0.8.png") > 3 * share_of_green(tmp_path / "0.2.png")


def only_default_fonts(monkeypatch) -> None:
    import matplotlib.font_manager as manager

    entries = [entry for entry in manager.fontManager.ttflist if "DejaVu" in entry.name]
    monkeypatch.setattr(manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(manager, "findSystemFonts", lambda *arguments: [])
    monkeypatch.setattr(fonts, "_said", set())
    fonts._find_fonts.cache_clear()


@pytest.fixture
def without_fonts(monkeypatch):
    """A machine with the font that comes with matplotlib only."""
    with monkeypatch.context() as patched:
        only_default_fonts(patched)
        yield
    fonts._find_fonts.cache_clear()


def test_names_without_a_font_are_numbers_and_one_warning_says_which(without_fonts, caplog):
    for _ in range(2):
        assert fonts.draw_names(["Maize", "小麦", "$x$", "a\nb", "قمح"]) == ["Maize", "class 2", "$x$", "a\\nb", "قمح"]
    assert [record.getMessage() for record in caplog.records] == [
        "no font of this machine has the characters of some names: figures show class 2 for 小麦; install a font such "
        "as Noto Sans CJK"
    ]


def test_the_warning_of_many_names_is_short(without_fonts, caplog):
    assert fonts.draw_names(["小麦"] * 600, "image")[-1] == "image 600"
    assert caplog.records[0].getMessage().count("小麦") == 20
    assert "580 more by their number" in caplog.records[0].getMessage()


def test_a_text_that_is_no_name_is_written_out_where_there_is_no_font(without_fonts):
    from seedling_hf.plots.style import _take_texts_literally, new_figure

    figure = new_figure(2, 2)
    text = figure.suptitle("小$x$")
    _take_texts_literally(figure)
    assert text.get_text() == "\\u5c0f$x$"


@pytest.mark.parametrize("name", ["x" * 99, "小" * 30, "e\u0301" * 50, "a小" * 20], ids=repr)
def test_a_long_name_is_shortened_to_columns(name):
    assert 36 <= width_of(fonts.shorten(name)) <= 40


def test_lines_are_as_wide_as_their_columns():
    assert fonts.wrap("Small-flowered Cranesbill", 18) == "Small-flowered\nCranesbill"
    assert fonts.wrap("小麦小麦小麦", 8) == "小麦小麦\n小麦"
    assert fonts.wrap("89% a\n3% b", 8) == "89% a\n3% b"


def test_a_text_is_split_where_its_font_ends():
    parts = fonts.split_by_font("7 Пшеница?")
    assert [text for text, _ in parts] == ["7 Пшеница?"]  # matplotlib's own font holds all of it
    assert Path(parts[0][1]).name == "DejaVuSans.ttf"


def test_names_below_the_images_of_a_sheet_stay_apart(tmp_path):
    image = np.full((8, 8, 3), 255, np.uint8)
    names = ["小麦" * 20, "Small-flowered Cranesbill and more", "x" * 60]
    plot_contact_sheet([[image] * 3], tmp_path / "a.png", title="", columns=names, captions=[names])
    dark = (pixels(tmp_path / "a.png").min(-1) < 200).any(0)
    runs = np.diff(np.flatnonzero(np.diff(dark.astype(int))))
    assert (runs > 8).any()
