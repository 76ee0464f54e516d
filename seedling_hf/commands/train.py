"""`train`: a folder of seedlings goes in, a model folder with its report comes out."""

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int | None:
    """Images → splits → model → training → the folder of the model, with report and curves."""
    from seedling_hf.arguments import TrainArguments, parse_arguments, write_arguments

    arguments = parse_arguments(TrainArguments, argv, prog="train", description="Trains a RepLKNet on seedlings.")

    # Its first import draws from Python's generator: within the loop, a resumed run would draw once more.
    import sklearn.metrics  # noqa: F401
    from accelerate.utils import set_seed
    from transformers.utils.logging import disable_progress_bar

    from seedling_hf.data.dataset import describe_splits, load_splits
    from seedling_hf.data.hub_dataset import load_streamed
    from seedling_hf.data.inspection import SHARED_IMAGES, report_shared_images
    from seedling_hf.data.splits import write_split_csv
    from seedling_hf.evaluation.evaluator import Evaluator
    from seedling_hf.evaluation.report import evaluate_model
    from seedling_hf.evaluation.report_files import format_report, write_report
    from seedling_hf.hub.model_card import write_card
    from seedling_hf.hub.pusher import HubPusher
    from seedling_hf.inference.classifier import load_classifier
    from seedling_hf.inference.prediction import build_accelerator
    from seedling_hf.plots import plot_curves
    from seedling_hf.signals import RESUMABLE_EXIT_CODE
    from seedling_hf.training.batch_size import fit_batch_size
    from seedling_hf.training.checkpointing import UNSAVED_EXIT_CODE
    from seedling_hf.training.loop import Training, prepare_output_dir
    from seedling_hf.training.models import build_trainable_model
    from seedling_hf.training.sharding import settle_sharding

    output_dir = Path(arguments.output_dir)
    accelerator = build_accelerator(
        mixed_precision=arguments.mixed_precision,
        timeout=arguments.ddp_timeout,
        log_with=arguments.report_to or None,
        project_dir=output_dir,
    )
    disable_progress_bar()
    logging.basicConfig(level=logging.INFO if accelerator.is_main_process else logging.ERROR, format="%(message)s")
    set_seed(arguments.seed)

    settle_sharding(accelerator, auto_find_batch_size=arguments.auto_find_batch_size, optim=arguments.optim)
    prepare_output_dir(arguments, accelerator)
    pusher = None
    if arguments.push_to_hub and accelerator.is_main_process:
        pusher = HubPusher(
            output_dir,
            arguments.hub_model_id or output_dir.resolve().name,
            private=arguments.hub_private_repo,
            revision=arguments.hub_revision,
            strategy=arguments.hub_strategy,
            tag=arguments.hub_tag,
            timeout_s=arguments.hub_timeout,
        )
        pusher.preflight()
    splits = load_streamed(arguments) if arguments.streaming else load_splits(arguments)
    class_names = splits["train"].features["label"].names
    model, image_processor = build_trainable_model(arguments, class_names)
    if arguments.auto_find_batch_size:
        arguments = fit_batch_size(arguments, model, image_processor.crop_size["height"], accelerator)
    training = Training(arguments, model, image_processor, splits, accelerator, pusher)

    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_arguments(arguments, output_dir / "arguments.yaml")
        if not arguments.streaming:
            write_split_csv(splits, output_dir / "split.csv")
        if not (arguments.resume_from_checkpoint or arguments.streaming):
            report_shared_images(splits, output_dir / SHARED_IMAGES, look=not arguments.no_duplicate_check)
        print(describe_splits({"validation": splits["validation"]} if arguments.streaming else splits))
        print(training.description)
    accelerator.wait_for_everyone()
    accelerator.init_trackers(arguments.run_name or output_dir.name)

    # Same weights on every process until here; stochastic depth may differ from now on.
    set_seed(arguments.seed, device_specific=True)
    if arguments.resume_from_checkpoint:
        training.resume(arguments.resume_from_checkpoint)
    if not training.run():
        accelerator.end_training()
        if pusher:
            pusher.finish()
        if training.unsaved:
            return UNSAVED_EXIT_CODE
        if accelerator.is_main_process:
            print(f"Stopped at step {training.counters['step']} of {training.num_steps}. Go on with\n")
            print(f"  {resume_line(output_dir)}\n")
        return RESUMABLE_EXIT_CODE

    # What is reported is what was saved: the folder is loaded as its users will load it.
    model, image_processor = load_classifier(str(output_dir))
    report = evaluate_model(
        Evaluator(
            model,
            image_processor,
            accelerator,
            arguments.per_device_eval_batch_size,
            arguments.dataloader_num_workers,
        ),
        splits["validation"],
        data_name=f"the validation images of {arguments.train_dir or arguments.dataset_name}",
    )
    if accelerator.is_main_process:
        write_report(report, output_dir, splits["validation"])
        records = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
        plot_curves(records, output_dir / "curves.png")
        training.write_results(output_dir / "train_results.json")
        try:
            write_card(output_dir)
        except ValueError as error:  # a model without a card is still a model
            print(f"warning: no card could be written into {output_dir}: {error}", file=sys.stderr)
        image = training.example_image
        print(format_report(report))
        print(f"\n{training.share_of_time_waiting:.1%} of the time of training was spent waiting for images.")
        print(f"\nThe model and its report are in {output_dir}: open {output_dir / 'report.html'}.")
        print("Name the species of an image with\n")
        print(f"  {predict_line(output_dir, image)}\n")
        training.stage_push("end")
    accelerator.end_training()
    if pusher:
        pusher.finish()


def predict_line(output_dir: Path, image: str) -> str:
    """The command that names the species of one image with the model just trained."""
    words = ["python", "scripts/predict.py"] if _is_script() else ["seedling-hf", "predict"]
    return shlex.join([*words, "--model_name_or_path", str(output_dir), "--images", image])


def resume_line(output_dir: Path) -> str:
    """The command that goes on with a run that was stopped."""
    words = ["accelerate", "launch", "scripts/train.py"] if _is_script() else ["seedling-hf", "train"]
    return shlex.join([*words, "--config", str(output_dir / "arguments.yaml"), "--resume_from_checkpoint", "latest"])


def _is_script() -> bool:
    return Path(sys.argv[0]).parent.name == "scripts"
