"""`predict`: a model and images go in, the predicted class of each image comes out as CSV or JSON lines."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from seedling_hf.arguments import parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.files import writing
from seedling_hf.inference.predict_arguments import PredictArguments


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model and images → predictions → a file."""
    arguments = parse_arguments(PredictArguments, argv, prog="predict")

    from seedling_hf.inference.listed_run import predict_listed
    from seedling_hf.inference.prediction import build_accelerator, on_main_process
    from seedling_hf.inference.tiles import check_scikit_image
    from seedling_hf.inference.trays import build_predictor, check_boxes
    from seedling_hf.inference.watched_run import predict_watched

    if arguments.tiles:
        check_scikit_image()
    # Processes wait for each other at the end only, and one may have the larger images.
    accelerator = build_accelerator(arguments.mixed_precision, timeout=30 * 24 * 3600)
    if arguments.watch and accelerator.num_processes > 1:
        raise InputError(f"expected one process for --watch, found {accelerator.num_processes}; start it by itself")
    on_main_process(accelerator, arguments.lock_outputs)
    on_main_process(accelerator, partial(check_boxes, arguments))
    predictor = build_predictor(arguments, accelerator)
    with writing(arguments.output_file) if arguments.output_file else nullcontext():  # the journal lies beside it
        if arguments.watch:
            code = predict_watched(arguments, predictor)
        else:
            code = predict_listed(arguments, predictor, accelerator)
    accelerator.end_training()
    return code
