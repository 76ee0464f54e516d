"""`push_space`: publishes the demo as a Space on the Hub."""

import tempfile
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.errors import InputError, require_package
from seedling_hf.hub.outbox import Snapshot, Target
from seedling_hf.inference.classifier import check_model_name, parse_hub_name
from seedling_hf.network import without_proxies


@dataclass(kw_only=True)
class PushSpaceArguments(ArgumentGroup):
    """Publish the demo as a Space on the Hub.

    Examples:
        seedling-hf push_space --model_name_or_path user/seedlings --hub_space_id user/seedlings-demo
    """

    model_name_or_path: str = option(MISSING, "repository of the model on the Hub, or a model folder to include")
    model_revision: str | None = option(None, "branch, tag or commit of that repository")
    hub_space_id: str = option(MISSING, "the Space, user/name")
    hub_private_repo: bool | None = option(None, "make a new Space private")
    threshold: float | None = option(
        None,
        "probability below which the demo answers that it is not sure (default: the confidence_threshold of the "
        "model, or else 0.5)",
        least=0,
        most=1,
    )
    title: str | None = option(None, "title of the Space (default: Which seedling is it?)")
    dry_run: bool = option(False, "only list the files")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model_name(self.model_name_or_path, self.model_revision)
        is_folder = (Path(self.model_name_or_path) / "config.json").is_file()
        if not is_folder and parse_hub_name(self.model_name_or_path) is None:
            raise InputError(
                f"expected a repository user/name or a model folder with a config.json, found "
                f"{self.model_name_or_path}; give one of them as --model_name_or_path"
            )


def main(argv: Sequence[str] | None = None) -> int | None:
    """App, requirements, card and code → one commit of a Space."""
    arguments = parse_arguments(PushSpaceArguments, argv, prog="push_space")
    with without_proxies():  # gradio makes its clients when it is imported
        require_package("gradio", "the version of the Space")

    from seedling_hf.hub.connection import hub_session
    from seedling_hf.hub.repository import push
    from seedling_hf.hub.space import write_space
    from seedling_hf.inference.classifier import Pretrained, load_classifier
    from seedling_hf.inference.judgement import add_familiarity

    if Path(arguments.model_name_or_path).is_dir():  # as the Space will
        model, _ = load_classifier(arguments.model_name_or_path)
        add_familiarity(model, Pretrained(arguments.model_name_or_path))
    with tempfile.TemporaryDirectory(prefix="space-") as folder:
        files = write_space(
            Path(folder),
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            threshold=arguments.threshold,
            title=arguments.title,
        )
        target = Target(arguments.hub_space_id, "Push the demo", private=arguments.hub_private_repo, repo_type="space")
        snapshot = Snapshot(files, target)
        print(snapshot.describe())
        if arguments.dry_run:
            print(snapshot.list_files())
            return
        with hub_session():
            print(f"Pushed: {push(snapshot)}")
