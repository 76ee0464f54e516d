"""`train`: a folder of seedlings goes in, a model folder with its report comes out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

    from seedling_hf.hub.pusher import HubPusher
    from seedling_hf.train_arguments import TrainArguments
    from seedling_hf.training.folds import Folds


def main(argv: Sequence[str] | None = None) -> int | None:
    """A run, or one for each fold, by the same flags."""
    from seedling_hf.arguments import parse_arguments
    from seedling_hf.train_arguments import TrainArguments

    arguments = parse_arguments(TrainArguments, argv, prog="train")

    # Its first import draws from Python's generator: within the loop, a resumed run would draw once more.
    import sklearn.metrics  # noqa: F401

    from seedling_hf.hub.pusher import HubPusher
    from seedling_hf.training.threads import choose_threads

    accelerator = prepare(arguments)
    choose_threads(accelerator)
    if arguments.num_folds is not None:
        return train_folds(arguments, accelerator)
    pusher = HubPusher.from_arguments(arguments) if arguments.push_to_hub and accelerator.is_main_process else None
    code = train(arguments, accelerator, pusher=pusher)
    accelerator.end_training()
    if pusher:
        pusher.finish()
    return code


def train_folds(arguments: "TrainArguments", accelerator: "Accelerator") -> int | None:
    """Each fold is an ordinary run in a folder of its own; at the end come the figures of all images."""
    from accelerate.utils import release_memory

    from seedling_hf.training.folds import Folds

    folds, code = Folds(arguments, accelerator), None
    for run in folds.unfinished():
        code = train(run, prepare(run), folds=folds)
        if code is not None:
            break
        release_memory()
    else:
        folds.report()
    accelerator.end_training()
    return code


def train(
    arguments: "TrainArguments",
    accelerator: "Accelerator",
    *,
    pusher: "HubPusher | None" = None,
    folds: "Folds | None" = None,
) -> int | None:
    """Images → splits → model → training → a model folder with report, curves and card; an exit code if stopped."""
    from accelerate.utils import set_seed

    from seedling_hf.data.dataset import load_splits
    from seedling_hf.data.hub_dataset import load_streamed
    from seedling_hf.training.batch_size import fit_batch_size
    from seedling_hf.training.conv_choices import settle_choices
    from seedling_hf.training.finetuning import fit_batch_to_images
    from seedling_hf.training.loop import Training
    from seedling_hf.training.memory import check_step_memory
    from seedling_hf.training.models import build_trainable_model
    from seedling_hf.training.output_dir import report_run, report_start, report_stop
    from seedling_hf.training.precedents import read_precedents
    from seedling_hf.training.resuming import advising_to_resume
    from seedling_hf.training.trackers import start_trackers

    set_seed(arguments.seed)
    splits = load_streamed(arguments) if arguments.streaming else load_splits(arguments)
    if folds is not None:
        folds.check_images(splits)
    class_names = splits["train"].features["label"].names
    precedents = read_precedents(arguments, class_names)
    arguments = fit_batch_to_images(arguments, splits, accelerator)
    model, image_processor = build_trainable_model(arguments, class_names)
    check_step_memory(arguments, model, image_processor, splits, accelerator)
    if arguments.auto_find_batch_size:
        arguments = fit_batch_size(arguments, model, image_processor.crop_size["height"], accelerator)
    training = Training(arguments, model, image_processor, splits, accelerator, pusher)
    report_start(training)
    start_trackers(accelerator, arguments)

    # The weights are the same on every process; from here on stochastic depth may differ.
    set_seed(arguments.seed, device_specific=True)
    if arguments.resume_from_checkpoint:
        training.resume(arguments.resume_from_checkpoint)
    settle_choices(training)
    with advising_to_resume():
        finished = training.run()
        if finished:
            report_run(training, precedents)
    training.run_log.trackers.finish()
    return None if finished else report_stop(training, training.output_dir if folds is None else folds.output_dir)


def prepare(arguments: "TrainArguments") -> "Accelerator":
    """Trackers, processes, logging, sharding and the output folder: each may refuse the run before it costs much."""
    from seedling_hf.inference.prediction import build_accelerator
    from seedling_hf.training.compilation import compile_plugin, configure_compilation
    from seedling_hf.training.output_dir import prepare_output_dir
    from seedling_hf.training.sharding import configure_sharding
    from seedling_hf.training.trackers import check_trackers
    from seedling_hf.verbosity import hide_library_bars

    hide_library_bars()
    check_trackers(arguments.report_to)
    accelerator = build_accelerator(
        mixed_precision=arguments.mixed_precision,
        timeout=arguments.ddp_timeout,
        log_with=arguments.report_to or None,
        project_dir=arguments.output_dir,
        dynamo_plugin=compile_plugin(arguments),
    )
    configure_sharding(accelerator, arguments)
    configure_compilation(accelerator, arguments)
    prepare_output_dir(arguments, accelerator)
    return accelerator
