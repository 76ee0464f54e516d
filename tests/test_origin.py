import json
import os

import numpy as np
import pytest

from seedling_hf.errors import InputError
from seedling_hf.files import write_arrays, write_text
from seedling_hf.origin import HTML_MARK, JSON_KEYS, OLDER_ARRAYS, TEXT_MARK, check_ours, check_outputs, is_ours
from seedling_hf.plots.style import new_figure, save

OLD_REPORT = "<!doctype html>\n<style>\n:root { --ink: #22302a; --soft: #5d6b64 }</style>\n"


@pytest.mark.parametrize("name", ["a.html", "a.md", "report.json", "predictions.csv", "a.png", "a.npz", "a.onnx",
                                  "a.pt2", "a.parquet", "a.txt"])  # fmt: skip
def test_nothing_is_lost_with_an_empty_file_and_something_with_any_other(tmp_path, name):
    path = tmp_path / name
    assert is_ours(path)
    path.touch()
    assert is_ours(path)
    for content in (b"mine", b"PK\x03\x04", b"{}", b"[]", b"\x89PNG\r\n\x1a\n", os.urandom(100)):
        path.write_bytes(content)
        assert not is_ours(path)
    path.unlink()
    path.mkdir()
    assert not is_ours(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "report.html")
    assert not is_ours(tmp_path / "report.html")


def test_pages_are_known_by_their_mark(tmp_path):
    (tmp_path / "a.html").write_bytes(b"<!doctype html>\n<head>\n" + HTML_MARK)
    (tmp_path / "a.md").write_bytes(b"# Title\n\n<!-- " + TEXT_MARK + b" -->\n")
    assert is_ours(tmp_path / "a.html") and is_ours(tmp_path / "a.md")
    with open(tmp_path / "a.md", "a") as stream:
        stream.write("\nMy conclusion: sow later.\n")
    assert not is_ours(tmp_path / "a.md")


def test_figures_are_known_by_their_software(tmp_path):
    figure = new_figure(1, 1)
    figure.savefig(tmp_path / "theirs.png")
    save(figure, tmp_path / "ours.png")
    assert is_ours(tmp_path / "ours.png") and not is_ours(tmp_path / "theirs.png")


def test_older_figures_are_known_by_the_older_page_beside_them(tmp_path):
    new_figure(1, 1).savefig(tmp_path / "confusion_matrix.png")
    page = tmp_path / "report.html"
    write_text(page, OLD_REPORT)
    assert is_ours(page) and is_ours(tmp_path / "confusion_matrix.png")
    write_text(page, HTML_MARK.decode() + OLD_REPORT)  # its own figures would carry the mark too
    assert is_ours(page) and not is_ours(tmp_path / "confusion_matrix.png")
    write_text(page, "mine")
    assert not is_ours(tmp_path / "confusion_matrix.png")


def test_archives_are_known_by_their_comment_and_older_ones_by_their_arrays(tmp_path):
    path, numbers = tmp_path / "a.npz", np.arange(3)
    write_arrays(path, {"a model/of, somebody": numbers})
    assert is_ours(path) and np.array_equal(np.load(path)["a model/of, somebody"], numbers)
    np.savez_compressed(path, **{name.removesuffix(".npy"): numbers for name in OLDER_ARRAYS})
    assert is_ours(path)
    np.savez_compressed(path, probabilities=numbers, labels=numbers)
    assert not is_ours(path)


@pytest.mark.parametrize("name", JSON_KEYS)
def test_json_is_known_by_its_keys(tmp_path, name):
    path, values = tmp_path / "chosen.json", dict.fromkeys(JSON_KEYS[name])
    write_text(path, json.dumps(values | {"more": 1}))
    assert is_ours(path, name) and not is_ours(path)
    values.popitem()
    write_text(path, json.dumps(values))
    assert not is_ours(path, name)


def test_a_refusal_says_what_is_there(tmp_path):
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / "report.md").mkdir()
    (tmp_path / "curves.png").symlink_to("nowhere")
    for name, found in {"report.html": "file of another origin", "report.md": "folder", "curves.png": "link"}.items():
        with pytest.raises(InputError, match=f"{name} to be free or .* found a {found}.*choose another --output_dir"):
            check_outputs(tmp_path, ["free.md", name], "--output_dir")
    with pytest.raises(InputError, match="--output_file"):
        check_ours(tmp_path / "report.html", "--output_file", "predictions")


def test_a_file_is_read_as_the_output_that_replaces_it(tmp_path):
    from pyarrow import parquet, table

    path, features = tmp_path / "chosen", table({"embedding": [1.0]})
    parquet.write_table(features, path)
    assert not is_ours(path, "features.parquet")
    parquet.write_table(features.replace_schema_metadata({"seedling_hf": "{}"}), path)
    assert is_ours(path, "features.parquet")
