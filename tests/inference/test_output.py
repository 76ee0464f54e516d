from seedling_hf.inference.answers import Answer
from seedling_hf.inference.output import MOST_FILES_PRINTED, failed_path, print_failed, write_failed


def failed(count: int) -> list[Answer]:
    return [Answer(f"{i}.jpg", [], "truncated") for i in range(count)]


def test_failed_files_are_listed_beside_the_output_with_their_reasons(tmp_path):
    write_failed(tmp_path / "answers.csv", iter(failed(2)))
    assert failed_path(tmp_path / "answers.csv") == tmp_path / "answers.failed.csv"
    assert (tmp_path / "answers.failed.csv").read_text() == "file,reason\n0.jpg,truncated\n1.jpg,truncated\n"


def test_the_list_of_an_earlier_run_is_removed_if_nothing_failed(tmp_path):
    write_failed(tmp_path / "answers.csv", iter(failed(1)))
    write_failed(tmp_path / "answers.csv", iter([]))
    assert list(tmp_path.iterdir()) == []


def test_a_long_list_is_printed_up_to_a_limit_and_counted(capsys, tmp_path):
    print_failed(iter(failed(MOST_FILES_PRINTED + 3)), tmp_path / "answers.csv")
    first, *_, more, where = capsys.readouterr().err.splitlines()
    assert first == f"failed to decode: {MOST_FILES_PRINTED + 3}"
    assert more == "  and 3 more"
    assert where.endswith("answers.failed.csv")
    print_failed(iter([]))
    assert capsys.readouterr().err == ""
