"""The text of cards: what the Hub accepts, and how our text is merged with what people wrote on the Hub.

Generated sections stand between marks that are not displayed:

    <!-- begin results -->
    …
    <!-- end results -->
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from seedling_hf.data.splits import read_split_csv
from seedling_hf.escaping import Markdown

_SECTION = re.compile(r"<!-- begin (\S+) -->.*?<!-- end \1 -->", re.DOTALL)
_ADDRESS = re.compile(r'model="(?:[^"\\\n]|\\.)*"(, revision="[^"\n]*")?')
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def check_card(text: str) -> None:
    """Raises ValueError for a card that the Hub would refuse: metadata that are not YAML, or incomplete results."""
    if not _FRONT_MATTER.match(text):
        raise ValueError("expected a card that begins with metadata between two lines `---`, found none")
    try:
        card = ModelCard(text)
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML metadata in the card, found something else: {error}") from error
    for result in card.data.eval_results or []:
        if not isinstance(result.metric_value, int | float) or result.metric_value != result.metric_value:
            raise ValueError(f"expected a number for {result.metric_type} in the card, found {result.metric_value!r}")


def merge_cards(theirs: str, ours: str) -> str:
    """The card on the Hub with our metadata and our marked sections.

    Everything else in theirs was written by people and stays: text outside the sections, other metadata, other entries
    of lists such as `tags`, another `license`. A removed section stays removed.
    """
    data, their_data = _metadata(ours), _metadata(theirs)
    merged = {key: value for key, value in their_data.items() if key != "model-index"} | data
    for key in their_data.keys() & data.keys():
        if isinstance(data[key], list) and isinstance(their_data[key], list) and key != "model-index":
            merged[key] = data[key] + [value for value in their_data[key] if value not in data[key]]
    if "license" in their_data:
        merged["license"] = their_data["license"]

    body, their_body = _FRONT_MATTER.sub("", ours, 1), _FRONT_MATTER.sub("", theirs, 1)
    sections = {match[1]: match[0] for match in _SECTION.finditer(body)}
    if any(match[1] in sections for match in _SECTION.finditer(their_body)):
        body = _SECTION.sub(lambda match: sections.get(match[1], match[0]), their_body)
    elif their_body.strip():
        body = f"{their_body.rstrip()}\n\n{body.lstrip()}"
    if merged == their_data:
        return theirs[: len(theirs) - len(their_body)] + body
    front = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n{body}"


def address_card(text: str, repo_id: str, revision: str | None) -> str:
    """The card whose loading example, in its section `usage`, names the repository that it is pushed to."""
    address = f'model="{repo_id}"' + (f', revision="{revision}"' if revision else "")

    def fill(section: re.Match[str]) -> str:
        return _ADDRESS.sub(lambda _: address, section[0]) if section[1] == "usage" else section[0]

    return _SECTION.sub(fill, text)


def fence(text: str, language: str) -> Markdown:
    """Text as a block of code, whatever is in it; a mark of a section in it loses its meaning."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    text = text.replace("<!--", "<\u200b!--")
    return Markdown(f"{ticks}{language}\n{text}\n{ticks}")


def count_split(path: str | os.PathLike) -> dict[str, Counter[str]]:
    """Images of each class in each split of a split.csv."""
    counts: dict[str, Counter[str]] = {}
    for (_, label), split in read_split_csv(path).items():
        counts.setdefault(split, Counter())[label] += 1
    return counts


def describe_split(arguments: dict[str, Any]) -> Markdown:
    """How a split was made, in Markdown, from the flags of the run that drew it."""
    share, seed = arguments.get("train_val_split"), arguments.get("split_seed")
    strategy, fold = arguments.get("split_strategy"), arguments.get("fold")
    apart = ", near-duplicates on one side" if strategy == "grouped" else ""
    if fold:
        drawn = f"drawn at random from each class, fold {fold} for validation, seed {seed}{apart}"
    elif strategy == "mle_bench":
        drawn = "that of MLE-bench, 14% of the sorted files for validation, random state 0"
    elif strategy == "random":
        drawn = f"drawn at random from the sorted files, {share:.0%} for validation, random state {seed}"
    elif share is not None:
        drawn = f"drawn at random from each class, {share:.0%} of its images for validation, seed {seed}{apart}"
    else:
        drawn = "read from split.csv"
    name, folder = arguments.get("dataset_name"), arguments.get("train_dir")
    if arguments.get("split_file"):
        how = "The split is that of an earlier run, from its split.csv."
    elif name:
        link = f"[{Markdown.of(name)}](https://huggingface.co/datasets/{name})"
        how = f"The split is that of the dataset {link} if it has a validation split, otherwise {drawn}."
    elif share == 0:
        how = "All images were used for training, and none for validation."
    elif arguments.get("validation_dir") or (folder and Path(folder, "train").is_dir()):
        how = "The split was given: the validation images are in a folder of their own."
    else:
        how = f"The split was {drawn}."
    limits = [
        f"{arguments[key]:,} for {split}"
        for key, split in (("max_train_samples", "training"), ("max_eval_samples", "validation"))
        if arguments.get(key)
    ]
    if arguments.get("label_file"):
        how += " Labels of training images were corrected, or images left out, by a file; validation images were not."
    if arguments.get("label_map"):
        how += " Classes have other names here than in the images' folders or lists; a file gave them."
    return Markdown(how + (f" At most {' and '.join(limits)} were used." if limits else ""))


def _metadata(text: str) -> dict[str, Any]:
    match = _FRONT_MATTER.match(text)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        data = {}
    return data if isinstance(data, dict) else {}
