"""What many answers say in one line: how many images of each class, and how many of them are not sure."""

from collections import Counter
from collections.abc import Iterable

from seedling_hf.escaping import format_count, one_line
from seedling_hf.inference.answers import Answer, is_sure

MOST_CLASSES = 12


class Tally:
    """Counts answers.

    Attributes:
        images: Images or photographs with an answer.
        plants: Plants found in photographs.
    """

    def __init__(self, threshold: float | None = None, *, tiles: bool = False) -> None:
        self.threshold, self.tiles = threshold, tiles
        self.images = self.plants = 0
        self.classes: Counter[str] = Counter()
        self.not_sure: Counter[str] = Counter()

    def add(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            if answer.reason is not None:
                continue
            self.images += 1
            self.plants += len(answer.plants)
            rankings = [plant.ranking for plant in answer.plants] if self.tiles else [answer.ranking]
            for ranking in rankings:
                self.classes[ranking[0][0]] += 1
                if not is_sure(ranking, self.threshold):
                    self.not_sure[ranking[0][0]] += 1

    def describe(self) -> str:
        """One line: `3 images, 2 sure and 1 not sure: Maize 2 (1 not sure), Charlock 1`; empty for one answer or none.

        The most frequent class comes first, and the rarest of many are only counted.
        """
        total, not_sure = self.classes.total(), self.not_sure.total()
        if total < 2:
            return ""
        ranked = sorted(self.classes.items(), key=lambda pair: (-pair[1], pair[0]))
        named = []
        for name, count in ranked[:MOST_CLASSES]:
            unsure = f" ({self.not_sure[name]:,} not sure)" if self.not_sure[name] else ""
            named.append(f"{one_line(name)} {count:,}{unsure}")
        if rest := ranked[MOST_CLASSES:]:
            further = format_count(len(rest), "further class")
            named.append(f"{further} {sum(count for _, count in rest):,}")
        certainty = "" if self.threshold is None else f", {total - not_sure:,} sure and {not_sure:,} not sure"
        return f"{format_count(total, 'plant' if self.tiles else 'image')}{certainty}: {', '.join(named)}"
