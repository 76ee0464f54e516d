"""`push_to_hub`: pushes the pending snapshot of a run, or a model folder as it is."""

import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path

import yaml

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.hub.endpoint import endpoint_files
from seedling_hf.hub.outbox import CARD, Outbox, Snapshot, Target, model_files


@dataclass(kw_only=True)
class PushToHubArguments(ArgumentGroup):
    """Push a model folder, or the pending push of its run.

    Examples:
        seedling-hf push_to_hub --output_dir outputs/quickstart --hub_model_id user/seedlings
    """

    output_dir: str = option(MISSING, "model folder, such as the output folder of a run")
    hub_model_id: str | None = option(
        None, "repository, user/name (default: the target of the run, otherwise the folder's name)"
    )
    hub_private_repo: bool | None = option(None, "make a new repository private")
    hub_revision: str | None = option(None, "branch to push to")
    hub_tag: str | None = option(None, "tag of the commit")
    commit_message: str | None = option(None, "commit message")
    dry_run: bool = option(False, "only list the files")


def main(argv: Sequence[str] | None = None) -> int | None:
    """The pending snapshots, or the folder → a commit of each, or none if the Hub has the same files."""
    arguments = parse_arguments(PushToHubArguments, argv, prog="push_to_hub")

    from seedling_hf.hub.connection import hub_session
    from seedling_hf.hub.repository import push

    folder = Path(arguments.output_dir)
    outbox = Outbox(folder)
    waiting = outbox.pending()
    check_waiting(waiting)
    if not waiting:
        if not (folder / "config.json").is_file():
            raise InputError(f"expected a model folder with a config.json at {folder}, found none; choose another")
        check(arguments.output_dir)
        if not arguments.dry_run:
            write_missing_card(folder)
        files = model_files(folder) | endpoint_files(folder)
        waiting = [Snapshot(files, default_target(folder, is_named=arguments.hub_model_id is not None))]
    snapshots = [
        replace(snapshot, target=change_target(snapshot.target, arguments, is_last=snapshot is waiting[-1]))
        for snapshot in waiting
    ]
    for snapshot in snapshots:
        print(snapshot.describe())
        if arguments.dry_run:
            print(snapshot.list_files())
    if arguments.dry_run:
        return
    with hub_session():
        for former, snapshot in zip(waiting, snapshots, strict=True):
            address = push(snapshot)
            if former.folder is not None:
                outbox.remove(former)
            print(f"Pushed: {address}")


def change_target(target: Target, arguments: PushToHubArguments, *, is_last: bool) -> Target:
    """The target with what the flags change; a tag and a message belong to one commit, the last."""
    changes = {
        "repo_id": arguments.hub_model_id,
        "private": arguments.hub_private_repo,
        "revision": arguments.hub_revision,
        "tag": arguments.hub_tag if is_last else None,
        "message": arguments.commit_message if is_last else None,
    }
    return replace(target, **{name: value for name, value in changes.items() if value is not None})


def check_waiting(snapshots: Sequence[Snapshot]) -> None:
    """Raises InputError for a snapshot of a model that no command could load, unless it is on the Hub by now."""
    for snapshot in snapshots:
        if (config := snapshot.files.get("config.json")) is None:
            continue  # before its first evaluation a run has a checkpoint only
        try:
            check(str(config.parent))
        except InputError as error:
            if snapshot.exists():  # a run that goes on may just have pushed it
                raise InputError(f"{error}; without {snapshot.folder} the rest can be pushed") from error


def check(folder: str) -> None:
    """Raises InputError for a folder that no command could load."""
    from seedling_hf.inference.classifier import Pretrained
    from seedling_hf.inference.familiarity import find_familiarity

    source = Pretrained(folder)
    source.check()
    find_familiarity(source, source.load_config())


def write_missing_card(folder: Path) -> None:
    """Writes README.md for a RepLKNet without one."""
    from seedling_hf.hub.model_card import write_card

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "replknet" or (folder / CARD).exists():
        return
    try:
        write_card(folder)
    except (OSError, ValueError) as error:
        print(f"warning: the card in {folder} could not be written: {error}", file=sys.stderr)


def default_target(folder: Path, *, is_named: bool = False) -> Target:
    """The target of the run in this folder, otherwise a repository named after the folder.

    Raises:
        InputError: for damaged arguments of a run, unless the repository `is_named` by a flag.
    """
    target, path = Target(folder.resolve().name, f"Push {folder.resolve().name}"), folder / "arguments.yaml"
    if not path.exists():
        return target
    try:
        arguments = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not all(isinstance(arguments[name], str | None) for name in ("hub_model_id", "hub_revision", "hub_tag")):
            raise TypeError("a name that is no text")
        return replace(
            target,
            repo_id=arguments["hub_model_id"] or target.repo_id,
            private=arguments["hub_private_repo"],
            revision=arguments["hub_revision"],
            # The tag is for the end of the run.
            tag=arguments["hub_tag"] if (folder / "train_results.json").exists() else None,
        )
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        if is_named:
            return target
        raise InputError(
            f"expected the arguments of a run in {path}, found that they are damaged ({type(error).__name__}); name "
            "the repository with --hub_model_id"
        ) from error
