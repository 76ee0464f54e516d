from seedling_hf.inference import progress
from seedling_hf.inference.progress import Progress


def test_without_a_terminal_a_line_is_printed_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    with Progress(2000, done=1000) as shown:
        shown.update(1)
    assert capsys.readouterr().err == "1,001 of 2,000 images\n"


def test_a_quiet_process_prints_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    with Progress(2000, quiet=True) as shown:
        shown.update(1)
    assert (shown.done, capsys.readouterr().err) == (1, "")
