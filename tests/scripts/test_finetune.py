"""The study of fine-tuning draws whole clusters, and its table has the mean over the seeds."""

from collections import Counter
from pathlib import Path

import pytest
from finetune import draw, format_table
from results import read_results

from seedling_hf.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
ROWS = [(f"{label}/{i}", label) for label in "ab" for i in range(20)]
CLUSTERS = [i // 3 if i < 12 else i for i in range(len(ROWS))]  # four of three images, the others alone


@pytest.mark.parametrize("seed", range(5))
def test_a_draw_has_its_number_of_each_class_in_whole_clusters(seed):
    chosen = draw(ROWS, CLUSTERS, 10, seed)
    assert Counter(label for _, label in chosen) == {"a": 10, "b": 10}
    sides = {(cluster, row in chosen) for row, cluster in zip(ROWS, CLUSTERS, strict=True)}
    assert len(sides) == len(set(CLUSTERS))
    assert draw(ROWS, CLUSTERS, 10, seed) == chosen != draw(ROWS, CLUSTERS, 10, seed + 1)


@pytest.mark.parametrize("count", [20, 21])
def test_a_draw_that_leaves_nothing_to_test_is_refused(count):
    with pytest.raises(InputError, match=f"expected more than {count} images"):
        draw(ROWS, CLUSTERS, count, 0)


def test_the_table_of_the_documentation_is_that_of_the_results():
    table = format_table(read_results(ROOT / "scripts" / "study" / "finetune.csv"))
    assert len(table.splitlines()) == 5
    assert table in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
