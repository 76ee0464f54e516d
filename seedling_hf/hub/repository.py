"""Repositories on the Hub: pushing snapshots in one commit, and downloading a run to resume it."""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

from seedling_hf.errors import InputError
from seedling_hf.files import replacing
from seedling_hf.hub.cards import address_card, check_card, merge_cards
from seedling_hf.hub.connection import full_repo_id, limit_waiting, require_login
from seedling_hf.hub.endpoint import ENDPOINT_FILES, is_ours
from seedling_hf.hub.outbox import CARD, LAST_CHECKPOINT, PUSHED, Snapshot, Target, is_result, model_files
from seedling_hf.inference.classifier import parse_hub_name
from seedling_hf.network import explain

if TYPE_CHECKING:
    from datasets import DatasetDict

PREFLIGHT_TIMEOUT_S = 15.0
# huggingface_hub retries for 23 s within most tries, and at the end of a run the user waits for them.
TRIES, DELAY_S = 3, 3.0
# Commits are refused when the branch has moved; they are rebuilt on its new head this many times.
COMMIT_TRIES = 5
CONFLICTS = frozenset({409, 412})

logger = logging.getLogger(__name__)


def check_access(target: Target, *, timeout_s: float = PREFLIGHT_TIMEOUT_S) -> None:
    """Makes sure that the repository exists and that this token may write to it.

    Raises:
        InputError: if not, or if the tag is taken.
        Exception: whatever huggingface_hub raises when the Hub cannot be reached.
    """
    require_login()
    session = former = None
    try:
        api, session = HfApi(), get_session()
        former, session.timeout = session.timeout, timeout_s
        repo = _create_repo(api, target)
        api.auth_check(**repo, write=True)
        if target.tag and (commit := _tags(api, repo).get(target.tag)):
            raise InputError(
                f"expected a new tag, found {target.tag} at {commit[:8]} of {repo['repo_id']}; change --hub_tag"
            )
    except InputError:
        raise
    except Exception as error:
        reason, permanent = explain(error)
        if permanent:
            raise InputError(
                f"expected a repository on the Hub to push to at {target.repo_id}, found: {reason}"
            ) from error
        raise
    finally:
        if session is not None:
            session.timeout = former


def push(snapshot: Snapshot, *, tries: int = TRIES) -> str:
    """Makes the Hub hold what the snapshot holds, in at most one commit, and sets the tag.

    The commit is bound to its parent, so concurrent changes are never overwritten unseen. Results of other weights that
    the repository holds and the snapshot does not are deleted. Returns the URL of the commit. `tries` are a few seconds
    apart; permanent errors are not retried.

    Raises:
        Exception: anything that huggingface_hub raises, for `explain`. Calling again continues where this stopped.
    """
    while True:
        try:
            return _push_once(snapshot)
        except Exception as error:
            tries -= 1
            if explain(error)[1] or not tries:
                raise
            time.sleep(DELAY_S)


def push_dataset(splits: "DatasetDict", files: Mapping[str, Path], target: Target) -> str:
    """Pushes images as Parquet, then `files`, which include the card; otherwise as `push`.

    There are two commits, since datasets writes the first one, and its part of the card, by itself.
    """
    splits.push_to_hub(target.repo_id, private=target.private, revision=target.revision, commit_message=target.message)
    return push(Snapshot(files, replace(target, message=f"Card of {target.message}")))


def _push_once(snapshot: Snapshot) -> str:
    api, target = HfApi(), snapshot.target
    repo = _create_repo(api, target)
    if target.revision:
        api.create_branch(**repo, branch=target.revision, exist_ok=True)
    commit = _commit(api, repo, snapshot)
    if target.tag:
        commit_of_tag = _tags(api, repo).get(target.tag)
        if commit_of_tag is None:
            api.create_tag(**repo, tag=target.tag, revision=commit)
        elif commit_of_tag != commit:
            raise InputError(
                f"the files are on the Hub, but the tag {target.tag} already points to {commit_of_tag[:8]}; "
                "push with another --hub_tag"
            )
    folder = "" if target.repo_type == "model" else f"{target.repo_type}s/"
    return f"{api.endpoint}/{folder}{repo['repo_id']}/commit/{commit}"


def _create_repo(api: HfApi, target: Target) -> dict[str, str]:
    """Creates the repository if it is missing; returns the arguments that name it."""
    repo = {"repo_id": full_repo_id(target.repo_id), "repo_type": target.repo_type}
    sdk = {"space_sdk": target.space_sdk} if target.repo_type == "space" else {}
    api.create_repo(**repo, private=target.private, exist_ok=True, **sdk)
    return repo


def _commit(api: HfApi, repo: dict[str, str], snapshot: Snapshot) -> str:
    """Commits what differs, rebuilt after a conflict; returns the head of the branch."""
    target, with_card, tries_left = snapshot.target, True, COMMIT_TRIES
    while True:
        head = api.repo_info(**repo, revision=target.revision).sha
        try:
            operations = _operations(api, repo, head, snapshot, with_card)
            if not operations:
                return head
            return api.create_commit(
                **repo, operations=operations, commit_message=target.message, revision=target.revision,
                parent_commit=head,
            ).oid  # fmt: skip
        except HfHubHTTPError as error:
            tries_left -= 1
            if error.response.status_code not in CONFLICTS or not tries_left:
                raise
        except ValueError as error:  # a card that the Hub refuses must not keep the weights back
            if not with_card or CARD not in str(error):
                raise
            with_card = False
            logger.warning("the card is not pushed: %s", " ".join(str(error).split()))


def _operations(api: HfApi, repo: dict[str, str], head: str, snapshot: Snapshot, with_card: bool) -> list[Any]:
    """The operations that make the repository at `head` hold the snapshot; equal files need none."""
    tree = api.list_repo_tree(**repo, revision=head, recursive=True)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    files = snapshot.files
    additions = [CommitOperationAdd(name, str(path)) for name, path in files.items() if name != CARD]
    with_checkpoint = any(name.startswith(f"{LAST_CHECKPOINT}/") for name in files)
    additions = [addition for addition in additions if not _is_equal(addition, there.get(addition.path_in_repo))]
    operations = [each for each in additions if not _is_of_people(repo, head, each.path_in_repo, files, there)]
    operations += [
        CommitOperationDelete(name)
        for name in there
        if name not in files and (is_result(name) or (with_checkpoint and name.startswith(f"{LAST_CHECKPOINT}/")))
    ]
    if with_card and CARD in files:
        theirs = None
        if CARD in there:
            theirs = Path(hf_hub_download(**repo, filename=CARD, revision=head)).read_text(encoding="utf-8")
        card = _card(snapshot, repo["repo_id"], theirs, is_new_model=bool(operations))
        if card != theirs:
            operations.append(CommitOperationAdd(CARD, card.encode()))
    return operations


def _is_of_people(
    repo: dict[str, str], head: str, name: str, files: Mapping[str, Path], there: Mapping[str, RepoFile]
) -> bool:
    """Whether the Hub has a file for the service that people wrote, in the place of which ours would come."""
    if name not in ENDPOINT_FILES or name not in there or not is_ours(files[name]):
        return False
    if is_ours(Path(hf_hub_download(**repo, filename=name, revision=head))):
        return False
    logger.warning("%s on the Hub was not written here and stays; delete it there to get ours", name)
    return True


def _card(snapshot: Snapshot, repo_id: str, theirs: str | None, *, is_new_model: bool) -> str:
    text = snapshot.files[CARD].read_text(encoding="utf-8")
    revision = snapshot.target.tag or snapshot.target.revision
    if theirs is not None:
        text = merge_cards(theirs, text)
        # The tag in the card on the Hub still belongs to this model.
        if not (is_new_model or revision) and address_card(text, repo_id, None) == address_card(theirs, repo_id, None):
            return theirs
    text = address_card(text, repo_id, revision)
    try:
        check_card(text)
    except ValueError as error:
        raise ValueError(f"{CARD}: {error}") from error
    return text


def _is_equal(addition: CommitOperationAdd, entry: RepoFile | None) -> bool:
    if entry is None or addition.upload_info.size != entry.size:
        return False
    if entry.lfs is not None:
        return addition.upload_info.sha256.hex() == entry.lfs.sha256
    with addition.as_file() as file:
        content = file.read()
    # git's hash of the content
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == entry.blob_id


def _tags(api: HfApi, repo: dict[str, str]) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(**repo).tags}


def download_run(name: str, output_dir: str | os.PathLike) -> Path:
    """Downloads a run that was pushed with `--hub_strategy checkpoint`, to resume it here.

    `name` is `user/repo` or `user/repo@revision`. The best model so far and metrics.jsonl are copied to `output_dir`
    too, unless it already holds a model. Returns the folder of the checkpoint inside, which all nodes of a run share.

    Raises:
        InputError: if the checkpoint is missing, the Hub cannot be reached, or the disk is full.
    """
    limit_waiting()
    output_dir = Path(output_dir)
    target, building = output_dir / LAST_CHECKPOINT, output_dir / f".{LAST_CHECKPOINT}.tmp"
    repo_id, revision = parse_hub_name(name) or (name, None)
    try:
        commit = HfApi().model_info(repo_id, revision=revision).sha
        # One commit, so that model and checkpoint belong together.
        folder = Path(snapshot_download(repo_id, revision=commit, allow_patterns=[f"{LAST_CHECKPOINT}/*", *PUSHED]))
        if not (folder / LAST_CHECKPOINT).is_dir():
            raise InputError(f"expected {LAST_CHECKPOINT} in {name}, found none; --hub_strategy checkpoint pushes it")
        shutil.rmtree(building, ignore_errors=True)
        shutil.copytree(folder / LAST_CHECKPOINT, building)
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
        if not (output_dir / "config.json").exists():
            files = set(model_files(folder, results=False)) - {CARD, "arguments.yaml", "split.csv"}
            # config.json last: its presence means that the model is complete.
            for file in sorted(files, key=lambda file: file == "config.json"):
                with replacing(output_dir / file) as temporary:
                    shutil.copyfile(folder / file, temporary)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"expected a run on the Hub at {name}, found: {explain(error)[0]}") from error
    return target
