"""`push_space`: publishes the demo, or a page that needs no server, as a Space on the Hub."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.data.formats import is_image
from seedling_hf.errors import InputError, require_package
from seedling_hf.files import check_new_folder, creating_folder
from seedling_hf.hub.outbox import Snapshot, Target
from seedling_hf.inference.classifier import check_model_name, parse_hub_name
from seedling_hf.network import without_proxies
from seedling_hf.progress import Progress

PAGE, RUNTIME = "page", "runtime"
MOST_IMAGES = 200  # to compare on
THRESHOLD = 0.5  # of models that name none, as in the demo


@dataclass(kw_only=True)
class PushSpaceArguments(ArgumentGroup):
    """Publish the demo as a Space on the Hub, or with --static a page that classifies in the browser.

    Examples:
        seedling-hf push_space --model_name_or_path user/seedlings --hub_space_id user/seedlings-demo
        seedling-hf push_space --model_name_or_path outputs/run --hub_space_id user/page --static --images seedlings
    """

    model_name_or_path: str = option(MISSING, "repository of the model on the Hub, or a model folder to include")
    model_revision: str | None = option(None, "branch, tag or commit of that repository")
    hub_space_id: str | None = option(None, "the Space, user/name")
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
    static: bool = option(False, "a page that classifies in the browser and sends nothing anywhere; needs npm")
    images: list[str] = option(
        list, "for --static: images to compare its model with PyTorch on (default: the model folder's examples)",
        images=True,
    )  # fmt: skip
    onnxruntime_web: str | None = option(None, "for --static without npm: the .tgz that npm pack made elsewhere")
    output_dir: str | None = option(
        None, "for --static: write the page to this folder, and push nothing", writable=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_place()
        check_model_name(self.model_name_or_path, self.model_revision)
        is_folder = (Path(self.model_name_or_path) / "config.json").is_file()
        if not is_folder and parse_hub_name(self.model_name_or_path) is None:
            raise InputError(
                f"expected a repository user/name or a model folder with a config.json, found "
                f"{self.model_name_or_path}; give one of them as --model_name_or_path"
            )

    def _check_place(self) -> None:
        given = [name for name in ("images", "onnxruntime_web", "output_dir") if getattr(self, name)]
        if given and not self.static:
            raise InputError(f"expected --static with --{given[0]}, found none; add it, or leave --{given[0]} out")
        if (self.hub_space_id is None) == (self.output_dir is None):
            found = "neither" if self.hub_space_id is None else "both"
            raise InputError(
                f"expected --hub_space_id, or --output_dir with --static, found {found}; say where the Space goes"
            )
        if self.output_dir:
            check_new_folder(Path(self.output_dir), "--output_dir")


def main(argv: Sequence[str] | None = None) -> int | None:
    """App or page, requirements, card and code → one commit of a Space."""
    arguments = parse_arguments(PushSpaceArguments, argv, prog="push_space")
    from seedling_hf.hub.connection import hub_session
    from seedling_hf.hub.repository import push

    with tempfile.TemporaryDirectory(prefix="space-") as folder:
        files = (write_page if arguments.static else write_app)(arguments, Path(folder))
        if arguments.output_dir:
            with creating_folder(Path(arguments.output_dir)) as building:
                shutil.copytree(Path(folder, PAGE), building, dirs_exist_ok=True)
            where = arguments.output_dir
            print(f"The page is in {where}; look at it with python -m http.server -d {where}")
            return
        sdk = "static" if arguments.static else "gradio"
        target = Target(
            arguments.hub_space_id, "Push the demo", arguments.hub_private_repo, repo_type="space", space_sdk=sdk
        )
        snapshot = Snapshot(files, target)
        print(snapshot.describe())
        if arguments.dry_run:
            print(snapshot.list_files())
            return
        with hub_session():
            print(f"Pushed: {push(snapshot)}")


def write_app(arguments: PushSpaceArguments, folder: Path) -> dict[str, Path]:
    """The files of a Space that runs the demo."""
    with without_proxies():  # gradio makes its clients when it is imported
        require_package("gradio", "the version of the Space")
    from seedling_hf.hub.space import write_space
    from seedling_hf.inference.classifier import Pretrained, load_classifier
    from seedling_hf.inference.judgement import add_familiarity

    if Path(arguments.model_name_or_path).is_dir():  # as the Space will
        model, _ = load_classifier(arguments.model_name_or_path)
        add_familiarity(model, Pretrained(arguments.model_name_or_path))
    return write_space(
        folder,
        arguments.model_name_or_path,
        revision=arguments.model_revision,
        threshold=arguments.threshold,
        title=arguments.title,
    )


def write_page(arguments: PushSpaceArguments, folder: Path) -> dict[str, Path]:
    """The files of a Space that answers in the browser: ONNX Runtime, model, page."""
    from seedling_hf.data.images import select_images
    from seedling_hf.demo.facts import example_files, read_facts
    from seedling_hf.export.onnx_program import check_packages
    from seedling_hf.export.preprocessing import describe_preprocessing
    from seedling_hf.export.programs import export_classifier, format_rows
    from seedling_hf.hub.onnxruntime_web import unpack_runtime
    from seedling_hf.hub.static_space import MODEL_FILE, check_preprocessing, write_static_space
    from seedling_hf.inference.classifier import Pretrained, load_classifier
    from seedling_hf.inference.judgement import add_familiarity, choose_certainty
    from seedling_hf.verbosity import hide_library_bars

    hide_library_bars()
    check_packages()
    name, local = arguments.model_name_or_path, Path(arguments.model_name_or_path)
    images = arguments.images or [str(path) for path in example_files(local) if is_image(path.name)]
    if not images:
        raise InputError(
            f"expected images to compare the page's model with PyTorch on, found no examples in {name}; give --images"
        )
    files = select_images(images, MOST_IMAGES)
    (folder / RUNTIME).mkdir()
    with Progress("fetching ONNX Runtime for browsers"):
        runtime = unpack_runtime(folder / RUNTIME, arguments.onnxruntime_web)
    model, image_processor = load_classifier(name, revision=arguments.model_revision)
    preprocessing = describe_preprocessing(image_processor)
    check_preprocessing(preprocessing)
    source = Pretrained(name, arguments.model_revision)
    facts = read_facts(source, model, image_processor)
    model = add_familiarity(model, source)
    (folder / PAGE).mkdir()
    rows = export_classifier(
        model, image_processor, folder / PAGE / MODEL_FILE, check_files=files, include_preprocessing=True
    )
    print(format_rows(rows))
    return write_static_space(
        folder / PAGE,
        runtime,
        facts=facts,
        certainty=choose_certainty(model, arguments.threshold, otherwise=THRESHOLD),
        preprocessing=preprocessing,
        title=arguments.title,
        repo_id=None if local.is_dir() else name,
    )
