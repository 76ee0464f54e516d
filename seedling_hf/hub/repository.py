"""Sharing on the Hub: pushes that never hurt a run, and runs that come back from it.

A push goes from a snapshot on the disk (`outbox`), so the run may go on writing. huggingface_hub's errors have no
common base class, some of its calls retry and some do not, and it waits for ever for an answer; all of that is dealt
with here, in `push` and `explain`.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    get_token,
    hf_hub_download,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session
from huggingface_hub.utils._http import default_client_factory

from seedling_hf.errors import InputError
from seedling_hf.files import replacing
from seedling_hf.hub.cards import address_card, check_card, merge_cards
from seedling_hf.hub.outbox import (
    CARD,
    LAST_CHECKPOINT,
    PUSHED,
    Snapshot,
    Target,
    is_result,
    model_files,
    parse_hub_name,
)

REQUEST_TIMEOUT_S = 60.0
PREFLIGHT_TIMEOUT_S = 15.0
DELAY_S = 3.0
# A commit is refused if another was made since its parent: so often it is made anew at once.
COMMIT_TRIES = 5
PERMANENT = frozenset({400, 401, 403, 404, 413})
SOMEBODY_ELSE = frozenset({409, 412})
MEANINGS = {
    401: "it does not know this token; `hf auth login` or HF_TOKEN sets another",
    403: "this token may not write there",
    404: "there is no such repository, or this token may not see it",
    412: "somebody else is pushing to the repository",
}

logger = logging.getLogger(__name__)


def limit_waiting(seconds: float = REQUEST_TIMEOUT_S) -> None:
    """Gives each request to the Hub, of this process from now on, a time limit; there is none by default."""
    # A line for each request is of no use to anybody, and addresses may be signed.
    logging.getLogger("httpx2").setLevel(logging.WARNING)

    def factory():
        client = default_client_factory()
        client.timeout = seconds
        return client

    set_client_factory(factory)


def explain(error: BaseException) -> tuple[str, bool]:
    """What went wrong in a talk with the Hub, as a clause without any token, and whether trying again is in vain."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids the network", True
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if response is not None:
        status = response.status_code
        meaning = MEANINGS.get(status)
        if meaning is None:
            meaning = getattr(error, "server_message", None) or HTTPStatus(status).phrase
        return _without_token(f"the Hub answered {status}: {_first_line(meaning)}"), status in PERMANENT
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return _without_token(" ".join(str(error).split())), True
    if isinstance(error, OSError) and error.strerror and (error.filename or error.errno == errno.ENOSPC):
        return f"{error.filename or 'the disk'}: {error.strerror}", False
    return _without_token(f"the Hub cannot be reached ({type(error).__name__}: {_first_line(error)})"), False


def require_login() -> None:
    """Refuses to go on without a token of huggingface_hub's own login.

    Raises:
        InputError: with what to do.
    """
    if get_token() is None:
        raise InputError("expected a login to the Hub, found none; run `hf auth login` or set HF_TOKEN")


def full_repo_id(api: HfApi, repo_id: str) -> str:
    """`user/name` of a repository whose user may be left out."""
    return repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"


def check_access(target: Target, *, timeout_s: float = PREFLIGHT_TIMEOUT_S) -> None:
    """Makes sure that the repository is there and that this token may write to it.

    Raises:
        InputError: if not, or if the tag is taken.
        Exception: whatever huggingface_hub raises when the Hub cannot be asked.
    """
    require_login()
    api, session = HfApi(), get_session()
    former, session.timeout = session.timeout, timeout_s
    try:
        repo = {"repo_id": full_repo_id(api, target.repo_id), "repo_type": target.repo_type}
        api.create_repo(**repo, private=target.private, exist_ok=True)
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
        session.timeout = former


def push(snapshot: Snapshot, *, tries: int = 1) -> str:
    """Makes the Hub hold what the snapshot holds, in one commit or none, and sets the tag.

    What others have changed meanwhile is seen, not mixed in: the commit is bound to its parent. Files of the
    repository that are the results of other weights, and are not in the snapshot, go.

    Args:
        snapshot: Files and where they go.
        tries: How often to try, a few seconds apart, unless the error is one that time does not heal.

    Returns:
        The address of the commit.

    Raises:
        Exception: anything that huggingface_hub raises, for `explain`. A repetition goes on where this ended.
    """
    while True:
        try:
            return _push_once(snapshot)
        except Exception as error:
            tries -= 1
            if explain(error)[1] or not tries:
                raise
            time.sleep(DELAY_S)


def _push_once(snapshot: Snapshot) -> str:
    api, target = HfApi(), snapshot.target
    repo = {"repo_id": full_repo_id(api, target.repo_id), "repo_type": target.repo_type}
    sdk = {"space_sdk": "gradio"} if target.repo_type == "space" else {}
    api.create_repo(**repo, private=target.private, exist_ok=True, **sdk)
    if target.revision:
        api.create_branch(**repo, branch=target.revision, exist_ok=True)
    with_card, tries_left = True, COMMIT_TRIES
    while True:
        commit = api.repo_info(**repo, revision=target.revision).sha
        try:
            operations = _operations(api, repo, commit, snapshot, with_card)
            if not operations:
                break
            commit = api.create_commit(
                **repo, operations=operations, commit_message=target.message, revision=target.revision,
                parent_commit=commit,
            ).oid  # fmt: skip
            break
        except HfHubHTTPError as error:
            tries_left -= 1
            if error.response.status_code not in SOMEBODY_ELSE or not tries_left:
                raise
        except ValueError as error:  # one that the Hub refuses would hold up the weights too
            if not with_card or CARD not in str(error):
                raise
            with_card = False
            logger.warning("the card stays behind: %s", " ".join(str(error).split()))
    if target.tag:
        commit_of_tag = _tags(api, repo).get(target.tag)
        if commit_of_tag is None:
            api.create_tag(**repo, tag=target.tag, revision=commit)
        elif commit_of_tag != commit:
            raise InputError(
                f"the files are on the Hub, but {target.tag} is the tag of {commit_of_tag[:8]} already; "
                "push with another --hub_tag"
            )
    folder = "" if target.repo_type == "model" else f"{target.repo_type}s/"
    return f"{api.endpoint}/{folder}{repo['repo_id']}/commit/{commit}"


def _operations(api: HfApi, repo: dict[str, str], head: str, snapshot: Snapshot, with_card: bool) -> list[Any]:
    """What makes the repository, as it is at `head`, hold the snapshot; nothing for what it holds already."""
    tree = api.list_repo_tree(**repo, revision=head, recursive=True)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    files = snapshot.files
    additions = [CommitOperationAdd(name, str(path)) for name, path in files.items() if name != CARD]
    with_checkpoint = any(name.startswith(f"{LAST_CHECKPOINT}/") for name in files)
    operations = [addition for addition in additions if not _is_equal(addition, there.get(addition.path_in_repo))]
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


def _card(snapshot: Snapshot, repo_id: str, theirs: str | None, *, is_new_model: bool) -> str:
    text = snapshot.files[CARD].read_text(encoding="utf-8")
    revision = snapshot.target.tag or snapshot.target.revision
    if theirs is not None:
        text = merge_cards(theirs, text)
        # A tag that their card names is still the one of this model.
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
    # The name that git gives to a content.
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == entry.blob_id


def _tags(api: HfApi, repo: dict[str, str]) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(**repo).tags}


def download_run(name: str, output_dir: str | os.PathLike) -> Path:
    """Brings back a run that was pushed by `--hub_strategy checkpoint`, to go on with it here.

    The model, which is the best so far, and metrics.jsonl go to `output_dir` unless there is a model already.

    Args:
        name: `user/repo`, or `user/repo@revision`.
        output_dir: Folder of the run here.

    Returns:
        The folder of the checkpoint, in `output_dir`, where other machines of the run see it too.

    Raises:
        InputError: if the Hub has none there, or cannot be reached, or the disk is full.
    """
    limit_waiting()
    output_dir = Path(output_dir)
    target, building = output_dir / LAST_CHECKPOINT, output_dir / f".{LAST_CHECKPOINT}.tmp"
    repo_id, revision = parse_hub_name(name) or (name, None)
    try:
        commit = HfApi().model_info(repo_id, revision=revision).sha
        # One commit: the model and the state to go on from belong together.
        folder = Path(snapshot_download(repo_id, revision=commit, allow_patterns=[f"{LAST_CHECKPOINT}/*", *PUSHED]))
        if not (folder / LAST_CHECKPOINT).is_dir():
            raise InputError(f"expected {LAST_CHECKPOINT} in {name}, found none; --hub_strategy checkpoint pushes it")
        shutil.rmtree(building, ignore_errors=True)
        shutil.copytree(folder / LAST_CHECKPOINT, building)
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
        if not (output_dir / "config.json").exists():
            # config.json last, for its presence says that the others are there.
            names = {"config.json", CARD, "arguments.yaml", "split.csv"}
            files = [file for file in model_files(folder, results=False) if file not in names]
            for file in [*files, *(["config.json"] if (folder / "config.json").exists() else [])]:
                with replacing(output_dir / file) as temporary:
                    shutil.copyfile(folder / file, temporary)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"expected a run on the Hub at {name}, found: {explain(error)[0]}") from error
    return target


def _without_token(text: str) -> str:
    token = get_token()
    return text.replace(token, "…") if token else text


def _first_line(text: object) -> str:
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "no reason given")
