"""Kinds of faults, a file for each and a test for each case; the closing table counts the cases that went well."""

from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter) -> None:
    """One line for each kind: how many cases there are, and how many went well."""
    cases, well, skipped = Counter(), Counter(), Counter()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            file = Path(report.nodeid.split("::")[0])
            if file.parent.name == FOLDER.name and (report.when == "call" or outcome in ("error", "skipped")):
                kind = file.stem.removeprefix("test_").replace("_", " ")
                (skipped if outcome == "skipped" else cases)[kind] += 1
                well[kind] += outcome == "passed"
    if cases or skipped:
        terminalreporter.section("kinds of faults")
        for kind in sorted(cases | skipped):
            not_run = f", {skipped[kind]} not run here" if skipped[kind] else ""
            terminalreporter.line(f"{kind:32}  {well[kind]} of {cases[kind]} cases went well{not_run}")
