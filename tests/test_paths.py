import pytest

from seedling_hf.errors import InputError
from seedling_hf.paths import check_file_apart, expand_variables


def test_a_path_that_exists_keeps_its_dollar(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", "elsewhere")
    assert expand_variables("$PLACE/a", "--a") == "elsewhere/a"
    (tmp_path / "$PLACE").mkdir()
    assert expand_variables("$PLACE", "--a") == "$PLACE"


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.webp"])
def test_an_output_file_is_no_image(tmp_path, name):
    with pytest.raises(InputError, match="to be no image"):
        check_file_apart(str(tmp_path / name), "--output_file", [])


def test_an_output_file_is_not_read_too(tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "link").symlink_to("a.csv")
    with pytest.raises(InputError, match="apart from --split_file"):
        check_file_apart(str(tmp_path / "link"), "--output_file", [("--split_file", str(tmp_path / "a.csv"))])
