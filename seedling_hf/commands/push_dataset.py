"""`push_dataset`: publishes class folders with their split and a card as a dataset on the Hub."""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path

from seedling_hf.arguments import option, parse_arguments
from seedling_hf.train_arguments import SplitArguments


@dataclass(kw_only=True)
class PushDatasetArguments(SplitArguments):
    """Publish class folders as a dataset on the Hub.

    Examples:
        seedling-hf push_dataset --train_dir seedlings --dataset_name user/seedlings --license cc-by-sa-4.0
    """

    dataset_name: str = option(MISSING, "dataset on the Hub, user/name, as for `train --dataset_name`")
    license: str = option(MISSING, "license of the images for the card, such as cc-by-sa-4.0")
    source: str | None = option(None, "where the images come from: a sentence for the card")
    hub_private_repo: bool | None = option(None, "make a new repository private")
    hub_revision: str | None = option(None, "branch to push to")
    hub_tag: str | None = option(None, "tag of the commit")
    dry_run: bool = option(False, "only print the card")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Class folders → split → duplicates → Parquet with the images, split.csv and the card on the Hub."""
    arguments = parse_arguments(PushDatasetArguments, argv, prog="push_dataset")

    from seedling_hf.data.dataset import describe_splits, load_splits
    from seedling_hf.data.splits import hash_split, write_split_csv
    from seedling_hf.hub.connection import full_repo_id, hub_session
    from seedling_hf.hub.dataset_card import find_duplicates, render_dataset_card
    from seedling_hf.hub.outbox import CARD, Target
    from seedling_hf.hub.repository import push_dataset

    splits = load_splits(arguments)
    print(describe_splits(splits))
    with tempfile.TemporaryDirectory() as folder, nullcontext() if arguments.dry_run else hub_session():
        repo_id = arguments.dataset_name if arguments.dry_run else full_repo_id(arguments.dataset_name)
        card, split = Path(folder, CARD), Path(folder, "split.csv")
        write_split_csv(splits, split)
        split_hash = hash_split(split)
        text = render_dataset_card(
            splits,
            repo_id,
            split_hash=split_hash,
            duplicates=find_duplicates(splits),
            # The card describes the split by the flags of `train`, where dataset_name is a source, not a target.
            arguments=asdict(arguments) | {"dataset_name": None},
        )
        if arguments.dry_run:
            print(text)
            return
        card.write_text(text, encoding="utf-8")
        message = f"{sum(map(len, splits.values())):,} images, split {split_hash[:12]}"
        where = arguments.hub_private_repo, arguments.hub_revision, arguments.hub_tag
        target = Target(repo_id, message, *where, repo_type="dataset")
        address = push_dataset(splits.remove_columns("index"), {CARD: card, "split.csv": split}, target)
    print(f"Pushed: {address}\nTrain on it with --dataset_name {repo_id}")
