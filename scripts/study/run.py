"""A plan of training runs → a table of what helps at equal CPU time.

python scripts/study/run.py --train_dir seedlings
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.commands import run
from seedling_hf.errors import InputError


@dataclass(kw_only=True)
class StudyArguments(ArgumentGroup):
    """Trains the rows of a plan at equal CPU time, and writes a table."""

    plan: str = option("scripts/study/plan.yaml", "YAML of the rows and of the CPU minutes for each")
    train_dir: str | None = option(None, "folder of class folders; without it only the table is regenerated")
    output_dir: str = option("outputs/study", "folder for the runs")
    results_file: str | None = option(None, "CSV of the results (default: results.csv beside the plan)")
    costs_only: bool = option(False, "measure the CPU time of a step, again if it is known; train nothing")
    num_jobs: int = option(1, "runs at a time, each on one thread", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_dir is not None and not Path(self.train_dir).is_dir():
            raise InputError(f"expected --train_dir to be a folder of class folders, found none at {self.train_dir}")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Plan → runs → table."""
    arguments = parse_arguments(StudyArguments, argv, prog="run.py")

    from results import format_results, read_results
    from study import measure_costs, read_plan, run_plan

    from seedling_hf.files import write_text

    plan = read_plan(arguments.plan)
    results_file = Path(arguments.results_file or Path(arguments.plan).with_name("results.csv"))
    if arguments.costs_only:
        if arguments.train_dir is None:
            raise InputError("expected --train_dir with --costs_only, found none; give a folder of class folders")
        work_dir = Path(arguments.output_dir)
        measure_costs(plan, results_file, arguments.train_dir, work_dir, num_jobs=arguments.num_jobs, again=True)
        return
    if arguments.train_dir is None:
        results = read_results(results_file)
    else:
        results = run_plan(
            plan, results_file, arguments.train_dir, Path(arguments.output_dir), num_jobs=arguments.num_jobs
        )
    write_text(results_file.with_suffix(".md"), format_results(results))
    print(f"{len(results)} runs: {results_file.with_suffix('.md')}")


if __name__ == "__main__":
    sys.exit(run(main))
