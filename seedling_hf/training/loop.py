"""The training loop: what a step, an evaluation and a checkpoint are, and when each is due."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import DatasetDict
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.data.images import ImageError
from seedling_hf.data.stream import StreamError
from seedling_hf.errors import InputError, WriteError
from seedling_hf.escaping import format_count
from seedling_hf.evaluation.evaluator import compute_metrics
from seedling_hf.hub.pusher import HubPusher
from seedling_hf.inference.classifier import is_on_hub, list_classes
from seedling_hf.inference.prediction import predict
from seedling_hf.progress import Progress
from seedling_hf.replknet.large_kernel_conv import choices, set_choices
from seedling_hf.signals import Stopped, StopSignal
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.balance import class_weights
from seedling_hf.training.checkpoint_files import RunState
from seedling_hf.training.checkpointing import CheckpointError, Checkpoints
from seedling_hf.training.distillation import Teachers
from seedling_hf.training.learner import Learner
from seedling_hf.training.loaders import TrainingBatches, build_eval_loader
from seedling_hf.training.readings import Readings, Step
from seedling_hf.training.resuming import (
    check_counters,
    check_same_shape,
    check_unchanged,
    compared_arguments,
    explaining_damage,
    fetch_checkpoint,
    get_random_state,
    set_random_state,
)
from seedling_hf.training.run_folder import RunFolder
from seedling_hf.training.run_log import RunLog, Timing
from seedling_hf.training.threads import restore_threads

NO_BEST = {"best_step": None, "best_accuracy": -1.0, "best_loss": math.inf, "evaluations_since_best": 0}

logger = logging.getLogger(__name__)


class Training:
    """One run: its parts, its counters, and the loop over them.

    The output folder is a model folder from the first evaluation on: it holds the best weights so far. A checkpoint
    holds the learner, the counters and the random states; the order of the images and their augmentation follow from
    seed, epoch and step.

    Args:
        model: In float32, with `id2label` in its config.
        splits: `train` and `validation`, as `dataset.load_splits` returns them.
        pusher: On the main process only.
    """

    def __init__(
        self,
        arguments: TrainArguments,
        model: PreTrainedModel,
        image_processor: BaseImageProcessor,
        splits: DatasetDict,
        accelerator: Accelerator,
        pusher: HubPusher | None = None,
    ) -> None:
        self.arguments, self.accelerator, self.pusher = arguments, accelerator, pusher
        self.image_processor, self.splits = image_processor, splits
        self.output_dir = Path(arguments.output_dir)
        self.class_names, self.eval_labels = list_classes(model.config), np.asarray(splits["validation"]["label"])
        self.timing = Timing()
        parts = (image_processor, accelerator, len(self.class_names), self.timing)
        self.batches = TrainingBatches(arguments, splits["train"], *parts)
        self.eval_loader = build_eval_loader(arguments, splits["validation"], *parts)
        teachers = None
        if arguments.teacher_model_name_or_path:
            teachers = Teachers(arguments, self.class_names, image_processor, accelerator.device)
        weights = class_weights(arguments, splits["train"], accelerator.device)
        self.learner = Learner(arguments, model, accelerator, self.batches.num_steps, teachers, weights)
        self.readings = Readings(accelerator, self.batches.list_images, teachers)
        self.run_log, self.folder = RunLog(self.output_dir, accelerator), RunFolder(arguments, splits, accelerator)
        self.checkpoints = Checkpoints(
            self.output_dir,
            arguments.save_total_limit,
            process_index=accelerator.process_index,
            gather=gather_object,
        )
        self.counters: dict[str, Any] = {"step": 0, **NO_BEST}
        self.resumed_at_step, self.is_evaluated = 0, True  # as far as it is due
        self.unsaved: str | None = None  # why the last checkpoint could not be written
        # Figures and weights of a best model that a full disk has refused.
        self.unwritten_best: tuple[dict[str, Any], dict[str, Tensor]] | None = None

    # The loop

    def run(self) -> bool:
        """Trains to the last step, or until it stops improving, or until a signal asks it to stop.

        Returns:
            Whether the run is finished; if a signal stopped it, its state is saved and `resume` continues it.
        """
        with StopSignal() as stop, self._progress() as progress:
            self.batches.waiting.stop = self.eval_loader.waiting.stop = stop
            try:
                self._train(progress)
            except Stopped:
                self.save_checkpoint()
                return False
            except (ImageError, StreamError, BrokenPipeError):
                if self.accelerator.num_processes == 1:  # others do not know of it
                    self.save_checkpoint()
                raise
            finally:
                self.batches.waiting.stop = self.eval_loader.waiting.stop = None
                self.batches.loader.close()
                self.eval_loader.close()
        self._write_best()
        if self.unwritten_best is not None:
            step = self.unwritten_best[0]["best_step"]
            raise WriteError(
                f"expected room for the best model, of step {step}, in {self.output_dir}, found none at the end of the "
                "run either; free space and resume with --resume_from_checkpoint latest"
            )
        return True

    def _train(self, progress: Progress) -> None:
        arguments, counters = self.arguments, self.counters
        steps = self.batches.steps_from(counters["step"])
        while not self._is_done():
            batches, learning_rate = next(steps), self.learner.learning_rate
            with self.timing.measure("train"):
                self.optimization_step(batches)
            counters["step"] += 1
            self.folder.keep()
            self.timing.images += self.batches.global_batch_size

            if self.readings.are_due or self._is_due(arguments.logging_steps):
                self.read_steps()
            loss, grad_norm = self.readings.loss, self.readings.grad_norm
            note = "" if loss is None else f"loss {loss:.3f}, "
            progress.update(note=f"{note}{self.timing.images_per_second:.1f} images/s")
            if self._is_due(arguments.logging_steps):
                self.log({"loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm})
            if self._is_due(arguments.eval_steps or self.batches.steps_per_epoch):
                self.evaluate()
            if self._is_save_due():
                self.save_checkpoint()

    def optimization_step(self, batches: list[dict[str, Tensor]]) -> None:
        """One step over the batches of this process; nothing waits until a GPU has done it."""
        loss, grad_norm = self.learner.accumulate_gradients(batches), self.learner.update()
        index = [batch["index"] for batch in batches]
        self.readings.add(Step(self.counters["step"] + 1, loss, grad_norm, index))

    def read_steps(self) -> None:
        """Waits for the steps, before anything of them is logged, evaluated or saved; raises as `Readings.read`."""
        with self.timing.measure("train"):
            self.readings.read()

    def evaluate(self) -> None:
        """Validates the weights that would be saved now, and saves them if they are the best so far.

        A signal ends it, and the checkpoint that is then saved says that it is to be repeated.
        """
        self.read_steps()
        self._forget_lost_model()
        if not len(self.eval_labels):
            return self._keep_last()
        started, self.is_evaluated = time.perf_counter(), False
        self.learner.share_statistics()
        logits, index = predict(self.learner.evaluated_model(), self.eval_loader, self.accelerator)
        metrics = compute_metrics(logits.softmax(-1).numpy(), self.eval_labels[index.numpy()], self.class_names)
        self.timing.evaluation += time.perf_counter() - started

        counters = self.counters
        best = self.unwritten_best[0] if self.unwritten_best else counters
        better = (metrics["accuracy"], -metrics["loss"]) > (best["best_accuracy"], -best["best_loss"])
        counters["evaluations_since_best"] = 0 if better else counters["evaluations_since_best"] + 1
        if better:
            best = {"best_step": counters["step"], "best_accuracy": metrics["accuracy"], "best_loss": metrics["loss"]}
            self.unwritten_best = best, self.learner.evaluated_weights()
        self._write_best()
        self.log({f"eval_{name}": metrics[name] for name in ("loss", "accuracy", "macro_f1")})
        if self.accelerator.is_main_process:
            print(
                f"epoch {self.epoch:6.2f}  step {counters['step']:5d}  validation loss {metrics['loss']:.4f}  "
                f"accuracy {metrics['accuracy']:6.2%}  macro-F1 {metrics['macro_f1']:.4f}  "
                f"{self.timing.images_per_second:5.1f} images/s{'  best' if better else ''}"
            )
        self.is_evaluated = True

    def _keep_last(self) -> None:
        """Saves the present weights: without validation images, the last are the best."""
        self.learner.share_statistics()
        self.unwritten_best = {**NO_BEST, "best_step": self.counters["step"]}, self.learner.evaluated_weights()
        self._write_best()
        self.is_evaluated = True

    def keep_best_model(self) -> bool:
        """Evaluates the present weights if the best ones are not in the output folder: there, these are the best."""
        self.folder.keep()
        lost = self._forget_lost_model()
        if lost:
            self.evaluate()
        return lost

    def _forget_lost_model(self) -> bool:
        """Whether the best weights are in another folder, deleted or damaged; any others are better then."""
        if self.counters["best_step"] is None:
            return False
        lost = not gather_object([not self.accelerator.is_main_process or self.folder.holds_model()])[0]
        self.counters |= NO_BEST if lost else {}
        return lost

    # Checkpoints

    def _write_best(self) -> None:
        """Writes the best model if it is not written yet; a disk that fails does not end the run."""
        if self.unwritten_best is None:
            return
        (best, weights), fault = self.unwritten_best, None
        if self.accelerator.is_main_process:
            try:
                self.learner.write_model(weights, self.output_dir, self.image_processor)
            except WriteError as error:
                fault = str(error)
                logger.warning("%s; the run continues and tries again at the next evaluation or save", error)
                # Copies, since the next step changes the weights.
                self.unwritten_best = best, {name: weight.cpu().clone() for name, weight in weights.items()}
        if not any(gather_object([fault])):
            self.unwritten_best = None
            self.counters |= best
            self.stage_push("best")

    def save_checkpoint(self) -> None:
        """Writes everything that the next step depends on; a disk that fails does not end the run."""
        self.read_steps()
        self._write_best()
        tensors, state = self.learner.state_dicts()
        state |= {
            "arguments": self._compared_arguments(),
            "counters": self.counters,
            "places": self.batches.gather_places(),
            "is_evaluated": self.is_evaluated and self.unwritten_best is None,
            "num_threads": torch.get_num_threads(),
            "conv_choices": choices(),
        }
        try:
            path = self.checkpoints.save(self.counters["step"], tensors, state, protect=self.counters["best_step"])
        except CheckpointError as error:
            self.unsaved = str(error)
            logger.warning("%s; the run continues and tries again at the next save", error)
        else:
            self.unsaved = None
            self.stage_push("save", checkpoint=path)

    def resume(self, source: str) -> None:
        """Restores the checkpoint at `source`, as `Checkpoints.load` takes it, or in a repository on the Hub.

        Raises:
            InputError: if there is none, or it belongs to a run with other arguments.
        """
        if is_on_hub(source):
            source = fetch_checkpoint(source, self.output_dir, self.accelerator)
        checkpoint = self.checkpoints.load(source, self._restore)
        self.folder.write_start()  # before anything is pushed
        if checkpoint is None:
            logger.info("no checkpoint in %s yet: the run starts at its first step", self.output_dir)
            self.run_log.cut(0)  # of a run that was killed before its first save
            return
        if len(checkpoint.random_states) != self.accelerator.num_processes:
            logger.warning(
                "the checkpoint was written by %s and is resumed by %d: images and learning rate continue "
                "unchanged, but stochastic depth draws other numbers and sums are rounded differently, so results are "
                "not bit-equal",
                format_count(len(checkpoint.random_states), "process"), self.accelerator.num_processes,
            )  # fmt: skip
        self.resumed_at_step = checkpoint.step
        self.run_log.cut(checkpoint.step)
        logger.info("resumed at step %d from %s", checkpoint.step, checkpoint.path)
        if not self.keep_best_model() and not self.is_evaluated:
            self.evaluate()
            if self._is_save_due():
                self.save_checkpoint()

    def _restore(self, checkpoint: RunState) -> None:
        """Restores a checkpoint; DamageError if it is not one of a run like this, InputError for other arguments."""
        state, random_states = checkpoint.state, checkpoint.random_states
        with explaining_damage(checkpoint):
            check_counters(state["counters"], self.counters, checkpoint.step)
            own = get_random_state()
            for random_state in random_states:
                check_same_shape("random state", random_state, own)
            self.batches.set_place(state["places"], self.accelerator)
            for change in check_unchanged(
                state["arguments"], self._compared_arguments(), allow=self.arguments.allow_changed_arguments
            ):
                logger.warning("changed: %s", change)
            self.learner.load(checkpoint)
            _report_schedule(self, max(state["scheduler"]["_last_lr"]))
            restore_threads(self.accelerator, state.get("num_threads"))
            set_choices(state.get("conv_choices", []))  # older ones have none
            if len(random_states) == self.accelerator.num_processes:
                set_random_state(random_states[self.accelerator.process_index])
        self.counters, self.is_evaluated = state["counters"], state.get("is_evaluated", True)

    def _compared_arguments(self) -> dict[str, Any]:
        return compared_arguments(self.arguments, self.splits, self.batches.global_batch_size)

    # What is reported

    def stage_push(self, event: str, checkpoint: Path | None = None) -> None:
        """Stages the current state for the Hub, if a push was requested for this event."""
        if self.pusher:
            counters = self.counters
            metrics = {} if counters["best_accuracy"] < 0 else {"accuracy": counters["best_accuracy"]}
            self.pusher.stage(event, step=counters["step"], epoch=self.epoch, metrics=metrics, checkpoint=checkpoint)

    def log(self, values: dict[str, float | None]) -> None:
        """Appends one line to metrics.jsonl, and the same to the trackers."""
        self.run_log.append(self.counters["step"], self.epoch, values)

    @property
    def epoch(self) -> float:
        return self.batches.epoch_at(self.counters["step"])

    # When something is due

    def _is_due(self, every: int) -> bool:
        return self.counters["step"] % every == 0 or self.counters["step"] == self.batches.num_steps

    def _is_save_due(self) -> bool:
        if self.arguments.save_steps:
            return self._is_due(self.arguments.save_steps)
        is_last = self.counters["step"] == self.batches.num_steps
        return self._is_due(self.batches.steps_per_epoch) and (is_last or self.checkpoints.are_affordable())

    def _is_done(self) -> bool:
        patience = self.arguments.early_stopping_patience
        out_of_patience = patience is not None and self.counters["evaluations_since_best"] >= patience
        return self.counters["step"] >= self.batches.num_steps or out_of_patience

    def _progress(self) -> Progress:
        return Progress("training", self.batches.num_steps, unit="step", done=self.counters["step"])


def _report_schedule(training: Training, former: float) -> None:
    """Says how the learning rate goes on where the schedule is not that of the checkpoint.

    Raises:
        InputError: if the run would end before the step that it has reached.
    """
    step, num_steps, rate = (
        training.learner.scheduler.last_epoch,
        training.batches.num_steps,
        training.learner.learning_rate,
    )
    if num_steps < step:
        raise InputError(
            f"expected a run of at least the {step} steps that the checkpoint has done, found one of {num_steps}; "
            "give more --num_train_epochs or --max_steps"
        )
    if rate != former and step < num_steps:
        logger.warning(
            "the learning rate goes from %.4g to %.4g: from step %d on it follows the new schedule (%s, %d steps, "
            "peak %.4g)",
            former, rate, step + 1, training.arguments.lr_scheduler_type, num_steps, training.arguments.learning_rate,
        )  # fmt: skip
