"""What many answers say in one line: how many images of each class, and how far these answers can be trusted."""

from collections import Counter
from collections.abc import Iterable, Sequence

from seedling_hf.escaping import format_count, one_line
from seedling_hf.inference.answers import NOT_SURE, UNFAMILIAR, Answer

MOST_CLASSES = 12


class Tally:
    """Counts answers.

    Args:
        words: The certainties that answers may have.

    Attributes:
        images: Images or photographs with an answer.
        plants: Plants found in photographs.
    """

    def __init__(self, words: Sequence[str] = (), *, tiles: bool = False) -> None:
        self.words, self.tiles = words, tiles
        self.images = self.plants = self.total = 0
        self.classes: Counter[str] = Counter()
        self.not_sure: Counter[str] = Counter()
        self.certainties: Counter[str | None] = Counter()

    def add(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            if answer.reason is not None:
                continue
            self.images += 1
            self.plants += len(answer.plants)
            for said in answer.plants if self.tiles else [answer]:
                self.total += 1
                self.certainties[said.certainty] += 1
                if said.certainty == UNFAMILIAR:  # of no class that the model knows
                    continue
                self.classes[said.ranking[0][0]] += 1
                if said.certainty == NOT_SURE:
                    self.not_sure[said.ranking[0][0]] += 1

    def describe(self) -> str:
        """One line: `3 images, 2 sure and 1 not sure: Maize 2 (1 not sure), Charlock 1`; empty for one answer or none.

        The most frequent class comes first, and the rarest of many are only counted. What is unfamiliar has no class.
        """
        if self.total < 2:
            return ""
        ranked = sorted(self.classes.items(), key=lambda pair: (-pair[1], pair[0]))
        named = []
        for name, count in ranked[:MOST_CLASSES]:
            unsure = f" ({self.not_sure[name]:,} not sure)" if self.not_sure[name] else ""
            named.append(f"{one_line(name)} {count:,}{unsure}")
        if rest := ranked[MOST_CLASSES:]:
            further = format_count(len(rest), "further class")
            named.append(f"{further} {sum(count for _, count in rest):,}")
        counts = [f"{self.certainties[word]:,} {word}" for word in self.words]
        certainty = f", {' and '.join(filter(None, [', '.join(counts[:-1]), counts[-1]]))}" if counts else ""
        classes = f": {', '.join(named)}" if named else ""
        return f"{format_count(self.total, 'plant' if self.tiles else 'image')}{certainty}{classes}"
