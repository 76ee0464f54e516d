"""`push_to_hub`: what waits in a run's folder, or a model folder as it is, goes to the Hub."""

import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path

import yaml

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.hub.outbox import CARD, Outbox, Snapshot, Target, model_files


@dataclass(kw_only=True)
class PushToHubArguments(ArgumentGroup):
    output_dir: str = option(MISSING, "model folder, such as the output folder of a run")
    hub_model_id: str | None = option(
        None, "repository, user/name (default: where the run was to be pushed, else the folder's name)"
    )
    hub_private_repo: bool | None = option(None, "make a new repository private")
    hub_revision: str | None = option(None, "branch to push to")
    hub_tag: str | None = option(None, "tag of the commit")
    commit_message: str | None = option(None, "message of the commit")
    dry_run: bool = option(False, "only list what would be pushed")


def main(argv: Sequence[str] | None = None) -> int | None:
    """The snapshot that waits, or the folder → one commit, or none where the Hub has the same files."""
    arguments = parse_arguments(
        PushToHubArguments, argv, prog="push_to_hub", description="Pushes a model folder, or what waits in it."
    )

    from seedling_hf.hub.connection import hub_session
    from seedling_hf.hub.repository import push

    folder = Path(arguments.output_dir)
    outbox = Outbox(folder)
    snapshot = outbox.newest()
    if snapshot is None:
        if not (folder / "config.json").is_file():
            raise InputError(f"expected a model folder with a config.json at {folder}, found none; name another")
        if not arguments.dry_run:
            write_missing_card(folder)
        snapshot = Snapshot(model_files(folder), default_target(folder))
    changes = {
        "repo_id": arguments.hub_model_id,
        "private": arguments.hub_private_repo,
        "revision": arguments.hub_revision,
        "tag": arguments.hub_tag,
        "message": arguments.commit_message,
    }
    target = replace(snapshot.target, **{name: value for name, value in changes.items() if value is not None})
    snapshot = replace(snapshot, target=target)

    print(snapshot.describe())
    if arguments.dry_run:
        print(snapshot.list_files())
        return
    with hub_session():
        address = push(snapshot)
    if snapshot.folder is not None:
        outbox.remove(snapshot)
    print(f"Pushed: {address}")


def write_missing_card(folder: Path) -> None:
    """Writes README.md for a RepLKNet that has none."""
    from seedling_hf.hub.model_card import write_card

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "replknet" or (folder / CARD).exists():
        return
    try:
        write_card(folder)
    except (OSError, ValueError) as error:
        print(f"warning: no card could be written into {folder}: {error}", file=sys.stderr)


def default_target(folder: Path) -> Target:
    """Where the run of this folder was to be pushed, else a repository named as the folder."""
    target = Target(folder.resolve().name, f"Push {folder.resolve().name}")
    try:
        arguments = yaml.safe_load((folder / "arguments.yaml").read_text(encoding="utf-8"))
        return replace(
            target,
            repo_id=arguments["hub_model_id"] or target.repo_id,
            private=arguments["hub_private_repo"],
            revision=arguments["hub_revision"],
            # The tag is for the end of the run.
            tag=arguments["hub_tag"] if (folder / "train_results.json").exists() else None,
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return target
