"""The training loop: what a step, an evaluation and a checkpoint are, and when each is due."""

import copy
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, fsdp2_prepare_model, gather_object, send_to_device
from datasets import DatasetDict
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.arguments import TrainArguments
from seedling_hf.data.collator import Collator
from seedling_hf.data.image_cache import (
    FromCache,
    PreparedTransform,
    cache_training_images,
    cache_validation_images,
)
from seedling_hf.data.sampler import EpochSampler
from seedling_hf.data.stream import ImageStream, Place, pop_place
from seedling_hf.data.transforms import ExampleTransform, build_eval_transform, build_train_transform
from seedling_hf.errors import InputError
from seedling_hf.evaluation.evaluator import compute_metrics
from seedling_hf.files import write_text
from seedling_hf.hub.outbox import Outbox
from seedling_hf.hub.pusher import HubPusher
from seedling_hf.hub.repository import download_run
from seedling_hf.inference.classifier import list_classes, parse_hub_name
from seedling_hf.inference.prediction import predict
from seedling_hf.machine import device_name
from seedling_hf.signals import StopSignal
from seedling_hf.training.checkpointing import CheckpointError, Checkpoints
from seedling_hf.training.distillation import Teachers
from seedling_hf.training.optimization import ExponentialMovingAverage, build_optimizer, build_scheduler
from seedling_hf.training.resuming import check_unchanged, set_random_state
from seedling_hf.training.sharding import gather, load_model_state, load_optimizer_state

NO_BEST = {"best_step": None, "best_accuracy": -1.0, "best_loss": math.inf, "evaluations_since_best": 0}

logger = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss is infinite or not a number; the message names the images of the batch."""


def prepare_output_dir(arguments: TrainArguments, accelerator: Accelerator) -> None:
    """Makes the output folder, or refuses one that holds another run or cannot be written to.

    Raises:
        InputError: with what to do.
    """
    output_dir = Path(arguments.output_dir)
    holds_a_run = (output_dir / "metrics.jsonl").exists() or (output_dir / "config.json").exists()
    accelerator.wait_for_everyone()  # everybody has looked before the main process writes
    if holds_a_run and not (arguments.overwrite_output_dir or arguments.resume_from_checkpoint):
        raise InputError(
            f"expected a new folder for --output_dir, found a run in {output_dir}; go on with it by "
            "--resume_from_checkpoint latest, or lose it by --overwrite_output_dir"
        )
    if accelerator.is_main_process:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"expected a folder that can be written at {output_dir}, found: {error.strerror}"
            ) from error
        if arguments.overwrite_output_dir and not arguments.resume_from_checkpoint:
            (output_dir / "metrics.jsonl").unlink(missing_ok=True)
            shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)
            Outbox(output_dir).clear(keep=None)


class TimedLoader:
    """Batches of `loader`; the seconds spent waiting for them, its start among them, are added to `timing[name]`."""

    def __init__(self, loader: DataLoader, timing: dict[str, float], name: str) -> None:
        self.loader, self.timing, self.name = loader, timing, name
        self.dataset = loader.dataset

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        started = time.perf_counter()
        for batch in self.loader:
            self.timing[self.name] += time.perf_counter() - started
            yield batch
            started = time.perf_counter()


class Training:
    """One run: its parts, its counters, and the loop over them.

    The output folder is a model folder from the first evaluation on: it holds the best weights so far. Everything that
    a later step depends on is in `state_dict()`: the order of the images and their augmentation follow from seed,
    epoch and place, and need no state.

    Args:
        arguments: The flags of `train`.
        model: In float32, with `id2label` in its config.
        image_processor: What the saved model is used with; evaluation uses it too.
        splits: `train` and `validation`, as `dataset.load_splits` gives them.
        accelerator: Decides about devices, processes and precision.
        pusher: What carries the run to the Hub, on the main process only.
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
        self.pusher = pusher
        self.arguments, self.accelerator, self.image_processor = arguments, accelerator, image_processor
        self.output_dir = Path(arguments.output_dir)
        self.class_names = list_classes(model.config)

        train, validation = splits["train"], splits["validation"]
        kept = [validation] if arguments.streaming else [train, validation]
        self.split = [row for split in kept for row in zip(split["file"], split["label"], strict=True)]
        self.eval_labels = np.asarray(validation["label"])
        self.image_size = image_processor.crop_size["height"]
        self.train_transform = ExampleTransform(build_train_transform(arguments, image_processor), seed=arguments.seed)
        self.collator = Collator(len(self.class_names), arguments, seed=arguments.seed)
        # A generator of their own: each start of an iteration draws from it, and a run that is resumed within an epoch
        # starts one more.
        loader = partial(
            DataLoader,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=accelerator.device.type == "cuda",
            generator=torch.Generator(),
        )
        self.timing = {"train": 0.0, "wait": 0.0, "evaluation": 0.0, "evaluation_wait": 0.0, "cpu": 0.0, "images": 0}
        self.global_batch_size = (
            arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * accelerator.num_processes
        )
        # Images are dealt to the processes by these, so the loader is not for accelerate to divide again.
        shares = {
            "batch_size": arguments.per_device_train_batch_size,
            "num_processes": accelerator.num_processes,
            "process_index": accelerator.process_index,
            "seed": arguments.seed,
        }
        self.sampler = self.stream = None
        if arguments.streaming:
            self.stream = ImageStream(
                train, self.train_transform, self.collator, skip_bad_images=arguments.skip_bad_images, **shares
            )
            self.train_loader = loader(self.stream, batch_size=None)
            self.steps_per_epoch = arguments.max_steps  # how long a pass is, is not known
        else:
            self.files = train["file"]
            self.sampler = EpochSampler(len(train), accumulation=arguments.gradient_accumulation_steps, **shares)
            if arguments.cache_images is None:
                images = train.with_transform(self.train_transform)
            else:
                images = cache_training_images(train, arguments.cache_images, image_processor)
                images = images.with_transform(FromCache(self.train_transform))
            self.train_loader = loader(images, batch_sampler=self.sampler, collate_fn=self.collator)
            self.steps_per_epoch = self.sampler.steps_per_epoch
        self.validation = validation
        if arguments.cache_images is None:
            eval_transform = ExampleTransform(build_eval_transform(image_processor), seed=arguments.seed)
        else:
            validation, eval_transform = cache_validation_images(validation, image_processor), PreparedTransform()
            loader = partial(loader, num_workers=0)  # to start one takes longer than to read
        eval_loader = accelerator.prepare(
            loader(
                validation.with_transform(eval_transform),
                batch_size=arguments.per_device_eval_batch_size,
                collate_fn=Collator(len(self.class_names)),
            )
        )
        self.eval_loader = TimedLoader(eval_loader, self.timing, "evaluation_wait")

        self.num_steps = arguments.max_steps
        if self.num_steps <= 0:
            self.num_steps = math.ceil(arguments.num_train_epochs * self.steps_per_epoch)
        warmup = arguments.warmup_steps or math.ceil(arguments.warmup_ratio * self.num_steps)

        if arguments.gradient_checkpointing:
            model.activation_checkpointing_enable()
        self.teachers = None
        if arguments.teacher_model_name_or_path:
            self.teachers = Teachers(
                arguments.teacher_model_name_or_path, self.class_names, image_processor,
                alpha=arguments.distillation_alpha, device=accelerator.device,
            )  # fmt: skip
        self.ema = ExponentialMovingAverage(model, arguments.ema_decay) if arguments.ema_decay else None
        self.blank = None  # a sharded model has another class, and cannot be saved as the one that it was
        if accelerator.is_fsdp2:
            self.blank = copy.deepcopy(model).to("meta")
        if self.ema and accelerator.is_fsdp2:
            fsdp2_prepare_model(accelerator, self.ema.model)
        elif self.ema:
            self.ema.model.to(accelerator.device)
        if arguments.sync_bn and accelerator.device.type == "cuda" and accelerator.num_processes > 1:
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        optimizer = build_optimizer(model, arguments)
        self.scheduler = build_scheduler(
            optimizer, num_steps=self.num_steps, num_warmup_steps=warmup, kind=arguments.lr_scheduler_type
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

        self.counters: dict[str, Any] = {"step": 0, **NO_BEST}
        self.checkpoints = Checkpoints(
            self.output_dir,
            arguments.save_total_limit,
            process_index=accelerator.process_index,
            gather=gather_object,
        )
        self.place = Place()  # in the stream, if there is one
        self.unsaved: str | None = None
        self.resumed_at_step = 0  # what is timed are the steps since

    # The loop

    def run(self) -> bool:
        """Trains to the last step, or until it has not got better for too long, or until a signal asks to stop.

        Returns:
            Whether the run is done; if a signal stopped it, its state is saved and `resume` goes on with it.
        """
        arguments, counters = self.arguments, self.counters
        with StopSignal() as stop, self._progress_bar() as bar:
            while not self._is_done():
                epoch, first_step = divmod(counters["step"], self.steps_per_epoch)
                for batches in self._global_batches(epoch, first_step):
                    with self._timed("train"):
                        loss, grad_norm, stopped = self.optimization_step(batches, stop)
                    counters["step"] += 1
                    self.timing["images"] += self.global_batch_size
                    bar.update()

                    if self._is_due(arguments.logging_steps):
                        self.log({"loss": loss, "learning_rate": self.last_learning_rate, "grad_norm": grad_norm})
                        bar.set_postfix(loss=f"{loss:.3f}")
                    if self._is_due(arguments.eval_steps or self.steps_per_epoch):
                        self.evaluate()
                    if stopped or self._is_save_due():
                        self.save_checkpoint()
                    if stopped and not self._is_done():
                        return False
                    if self._is_done():
                        break
        return True

    def optimization_step(
        self, batches: list[dict[str, torch.Tensor]], stop: StopSignal
    ) -> tuple[float, float | None, bool]:
        """One step over the batches of this process.

        Returns:
            The mean loss over all processes, the norm of the gradient, and whether any process was asked to stop.

        Raises:
            NonFiniteLossError: on every process, with the files of the images.
        """
        self.model.train()
        total = torch.zeros((), device=self.accelerator.device)
        for i, batch in enumerate(batches):
            # Gradients travel between processes once a step, with the last of its batches; under FSDP with each of
            # them, since what has not travelled is whole.
            is_last = i == len(batches) - 1
            with nullcontext() if is_last or self.accelerator.is_fsdp2 else self.accelerator.no_sync(self.model):
                pixel_values, labels = batch["pixel_values"], batch["labels"]
                with self.accelerator.autocast():  # FSDP leaves it to us
                    if self.teachers:
                        labels = self.teachers.soften(pixel_values, labels)
                    loss = self.model(pixel_values=pixel_values, labels=labels).loss / len(batches)
                total += loss.detach()
                self.accelerator.backward(loss)
        # One message between processes: every one must know of a bad loss, and stop at the same step.
        messages = self.accelerator.gather(
            torch.stack([total, torch.full_like(total, stop.received is not None)])[None]
        )
        losses, stopped = messages[:, 0], bool(messages[:, 1].any())
        if not losses.isfinite().all():
            self._refuse_batch(batches, losses)
        grad_norm = None
        if self.arguments.max_grad_norm > 0:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
            grad_norm = float(gather(norm))
        self.last_learning_rate = max(self.scheduler.get_last_lr())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        if self.ema:
            self.ema.update(self.accelerator.unwrap_model(self.model))
        return losses.mean().item(), grad_norm, stopped

    def evaluate(self) -> dict[str, float]:
        """Validates the weights that would be saved now, and saves them if none were better."""
        started = time.perf_counter()
        model = self.evaluated_model()
        # BatchNorm's statistics are each process's own; those of process 0 are saved, so those are evaluated.
        for buffer in model.buffers():
            broadcast(buffer)
        logits, index = predict(model, self.eval_loader, self.accelerator)
        metrics = compute_metrics(logits.softmax(-1).numpy(), self.eval_labels[index], self.class_names)
        self.timing["evaluation"] += time.perf_counter() - started

        counters = self.counters
        better = (metrics["accuracy"], -metrics["loss"]) > (counters["best_accuracy"], -counters["best_loss"])
        if better:
            counters |= {"best_step": counters["step"], "best_accuracy": metrics["accuracy"],
                         "best_loss": metrics["loss"], "evaluations_since_best": 0}  # fmt: skip
            self.save_model()
            self.stage_push("best")
        else:
            counters["evaluations_since_best"] += 1
        values = {f"eval_{name}": metrics[name] for name in ("loss", "accuracy", "macro_f1")}
        self.log(values)
        if self.accelerator.is_main_process:
            tqdm.write(
                f"epoch {self.epoch:6.2f}  step {counters['step']:5d}  validation loss {metrics['loss']:.4f}  "
                f"accuracy {metrics['accuracy']:6.2%}  macro-F1 {metrics['macro_f1']:.4f}  "
                f"{self.images_per_second:5.1f} images/s{'  best' if better else ''}"
            )
        return values

    # What is written

    def evaluated_model(self) -> PreTrainedModel:
        """The averaged weights if there are any, else the trained ones, unwrapped and in evaluation mode."""
        return self.ema.model if self.ema else self.accelerator.unwrap_model(self.model).eval()

    def save_model(self) -> None:
        """Puts the evaluated model and its processor into the output folder, file by file, each whole."""
        model = self.evaluated_model()
        weights = gather(model.state_dict(), keep=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            staging = self.output_dir / ".model.tmp"
            shutil.rmtree(staging, ignore_errors=True)
            (self.blank or model).save_pretrained(staging, state_dict=weights)
            self.image_processor.save_pretrained(staging)
            for file in staging.iterdir():
                os.replace(file, self.output_dir / file.name)
            staging.rmdir()
        self.accelerator.wait_for_everyone()

    def save_checkpoint(self) -> None:
        """Writes everything that the next step depends on; a disk that fails does not end the run."""
        scaler, is_main = self.accelerator.scaler, self.accelerator.is_main_process
        tensors = {"model": gather(self.accelerator.unwrap_model(self.model).state_dict(), keep=is_main)}
        if self.ema:
            tensors["ema"] = gather(self.ema.model.state_dict(), keep=is_main)
        state = {
            "arguments": self._compared_arguments(),
            "counters": self.counters,
            "optimizer": gather(self.optimizer.state_dict(), keep=is_main),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "ema_updates": self.ema.updates if self.ema else None,
            "places": gather_object([tuple(self.place)]) if self.stream else None,
        }
        try:
            path = self.checkpoints.save(self.counters["step"], tensors, state, protect=self.counters["best_step"])
        except CheckpointError as error:
            self.unsaved = str(error)
            logger.warning("%s; the run goes on and tries again at the next save", error)
        else:
            self.unsaved = None
            self.stage_push("save", checkpoint=path)

    def stage_push(self, event: str, checkpoint: Path | None = None) -> None:
        """Puts what there is now aside for the Hub, if a push was asked for at this event."""
        if self.pusher:
            counters = self.counters
            metrics = {} if counters["best_step"] is None else {"accuracy": counters["best_accuracy"]}
            self.pusher.stage(event, step=counters["step"], epoch=self.epoch, metrics=metrics, checkpoint=checkpoint)

    def resume(self, source: str) -> None:
        """Goes back to the checkpoint at `source`, as `Checkpoints.load` takes it, or in a repository on the Hub.

        Raises:
            InputError: if there is none, or it belongs to a run with other arguments.
        """
        if parse_hub_name(source):
            source = self._download(source)
        checkpoint = self.checkpoints.load(source)
        if checkpoint is None:
            logger.info("no checkpoint in %s yet: the run starts at its first step", self.output_dir)
            if self.accelerator.is_main_process:
                self._cut_metrics(0)  # of a run that was killed before its first save
            return
        state, rank = checkpoint.state, self.accelerator.process_index
        if self.stream:
            places = state["places"] or []
            if len(places) != self.accelerator.num_processes:
                raise InputError(
                    f"expected {len(places)} processes, as many as read the stream when the checkpoint was written, "
                    f"found {self.accelerator.num_processes}; start as many"
                )
            self.place = Place(*places[rank])
        for change in check_unchanged(
            state["arguments"], self._compared_arguments(), allow=self.arguments.allow_changed_arguments
        ):
            logger.warning("changed: %s", change)
        load_model_state(self.accelerator.unwrap_model(self.model), checkpoint.tensors["model"])
        if self.ema:
            load_model_state(self.ema.model, checkpoint.tensors["ema"])
            self.ema.updates = state["ema_updates"]
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if len(checkpoint.random_states) == self.accelerator.num_processes:
            set_random_state(checkpoint.random_states[rank])
        else:
            logger.warning(
                "the checkpoint was written by %d processes and is resumed by %d: images and learning rate go on "
                "alike, but stochastic depth draws anew and sums are rounded otherwise, so results are not bit-equal",
                len(checkpoint.random_states), self.accelerator.num_processes,
            )  # fmt: skip
        self.counters = state["counters"]
        self.resumed_at_step = checkpoint.step
        if self.accelerator.is_main_process:
            self._cut_metrics(checkpoint.step)
        logger.info("resumed at step %d from %s", checkpoint.step, checkpoint.path)
        if self.counters["best_step"] is not None and not (self.output_dir / "config.json").exists():
            # Another folder than the one that the best weights are in: here the best ones are these.
            self.counters |= NO_BEST
            self.evaluate()

    def log(self, values: dict[str, float | None]) -> None:
        """One line of metrics.jsonl, and the same to the trackers."""
        step = self.counters["step"]
        if self.accelerator.is_main_process:
            with open(self.output_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "epoch": self.epoch} | values) + "\n")
        self.accelerator.log({k: v for k, v in values.items() if v is not None}, step=step)

    @property
    def epoch(self) -> float:
        if self.stream:
            return float(self.place.epoch)
        return self.counters["step"] / self.steps_per_epoch

    @property
    def images_per_second(self) -> float:
        return self.timing["images"] / max(1e-9, self.timing["train"] + self.timing["wait"])

    @property
    def share_of_time_waiting(self) -> float:
        """For training images, of the time of the steps with it."""
        return self.timing["wait"] / max(1e-9, self.timing["train"] + self.timing["wait"])

    @property
    def description(self) -> str:
        """The run in a few lines, before it starts."""
        arguments, model = self.arguments, self.accelerator.unwrap_model(self.model)
        size = self.image_processor.crop_size["height"]
        threads = hint = ""
        if self.accelerator.device.type == "cpu":
            threads = f" of {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
            share = (os.cpu_count() or 1) // self.accelerator.num_processes
            if torch.get_num_threads() == 1 < share:  # what accelerate sets unless it is told otherwise
                hint = f"\nsooner with more threads: accelerate launch --num_cpu_threads_per_process {share}"
        return (
            f"{arguments.variant or arguments.timm_architecture or arguments.model_name_or_path}: "
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {size}×{size} pixels, "
            f"{self.accelerator.num_processes} × {self.accelerator.device.type}{threads}"
            f"{', divided by FSDP' if self.accelerator.is_fsdp2 else ''}, "
            f"{self.accelerator.mixed_precision}\n"
            f"{self.num_steps} steps of {self.global_batch_size} images, "
            f"{'streamed' if self.stream else f'{self.steps_per_epoch} an epoch'}"
            f"{hint}"
        )

    def write_results(self, path: Path) -> None:
        """What depends on the machine and the day, apart from the figures that do not."""
        timing = self.timing
        seconds = timing["train"] + timing["wait"]
        results = {
            "train_runtime": seconds,
            "train_cpu_time": timing["cpu"],  # of this process and its threads, its loading workers aside
            "train_samples_per_second": self.images_per_second,
            "train_steps_per_second": (self.counters["step"] - self.resumed_at_step) / max(1e-9, seconds),
            "share_of_time_waiting_for_images": self.share_of_time_waiting,
            "eval_runtime": timing["evaluation"],
            "share_of_evaluation_waiting_for_images": timing["evaluation_wait"] / max(1e-9, timing["evaluation"]),
            "resumed_at_step": self.resumed_at_step,
            "num_processes": self.accelerator.num_processes,
            "device": device_name(self.accelerator.device),
            "peak_gpu_memory": torch.cuda.max_memory_allocated() if self.accelerator.device.type == "cuda" else None,
            "torch_threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "datasets", "timm")},
            "date": time.strftime("%Y-%m-%d"),
        } | self.counters  # fmt: skip
        write_text(path, json.dumps(results, indent=2) + "\n")

    @property
    def example_image(self) -> str:
        """Path of a validation image, for a first prediction; a name to fill in where a data set has no files."""
        from datasets import Image

        images = self.validation.cast_column("image", Image(decode=False))
        path = images[len(images) // 2]["image"]["path"]
        return path if path and Path(path).is_file() else "IMAGE.jpg"

    # Small print of the loop

    def image_size_of(self, epoch: int) -> int:
        """Side of the training images: it grows evenly, in steps of 16, over the first two thirds of the passes.

        Small images first are Howard's progressive resizing (fast.ai, 2018); Tan and Le, EfficientNetV2, arXiv
        2104.00298, section 4.
        """
        start = self.arguments.image_size_start or self.image_size
        share = min(1.0, 1.5 * epoch * self.steps_per_epoch / self.num_steps)
        return self.image_size if share == 1 else start + int(share * (self.image_size - start)) // 16 * 16

    def _download(self, name: str) -> str:
        """The checkpoint of a run on the Hub, brought here by the main process for all."""
        path = error = None
        if self.accelerator.is_main_process:
            try:
                path = str(download_run(name, self.output_dir))
            except InputError as fault:
                error = str(fault)
        path, error = gather_object([(path, error)])[0]
        if error is not None:
            raise InputError(error)
        return path

    def _global_batches(self, epoch: int, first_step: int):
        """For each optimizer step of `epoch` from `first_step` on, the batches of this process, on its device."""
        if self.stream:
            self.stream.set_place(self.place)
        else:
            self.sampler.set_position(epoch, first_step)
            self.train_transform.set_epoch(epoch)
            self.train_transform.transform = build_train_transform(
                self.arguments, self.image_processor, self.image_size_of(epoch)
            )
            self.collator.set_epoch(epoch)
        with self._timed("wait"):  # workers start here
            batches = iter(self.train_loader)
        for _ in range(first_step, self.steps_per_epoch):
            try:
                with self._timed("wait"):
                    group = islice(batches, self.arguments.gradient_accumulation_steps)
                    if self.stream:
                        group, self.place = pop_place(group)
                    group = list(group)
            except OSError as error:  # all were decoded before the first step
                raise InputError(
                    f"expected images that stay as they are during training, found at step "
                    f"{self.counters['step'] + 1}: {str(error).splitlines()[-1]}; put it back, and go on with "
                    "--resume_from_checkpoint latest"
                ) from error
            yield send_to_device(group, self.accelerator.device, non_blocking=True)

    @contextmanager
    def _timed(self, what: str):
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.timing[what] += time.perf_counter() - wall
        self.timing["cpu"] += time.process_time() - cpu

    def _is_due(self, every: int) -> bool:
        return self.counters["step"] % every == 0 or self.counters["step"] == self.num_steps

    def _is_save_due(self) -> bool:
        if self.arguments.save_steps:
            return self._is_due(self.arguments.save_steps)
        is_last = self.counters["step"] == self.num_steps
        return self._is_due(self.steps_per_epoch) and (is_last or self.checkpoints.are_affordable())

    def _is_done(self) -> bool:
        patience = self.arguments.early_stopping_patience
        out_of_patience = patience is not None and self.counters["evaluations_since_best"] >= patience
        return self.counters["step"] >= self.num_steps or out_of_patience

    def _compared_arguments(self) -> dict[str, Any]:
        """What must be the same when the run is resumed; of the batch, its global size."""
        files = "\n".join(f"{file}\t{label}" for file, label in self.split)
        return asdict(self.arguments) | {
            "global_batch_size": self.global_batch_size,
            "split": hashlib.sha256(files.encode()).hexdigest(),
        }

    def _cut_metrics(self, step: int) -> None:
        """Leaves out of metrics.jsonl what was logged after `step`: those steps will be made again."""
        path = self.output_dir / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_text(path, "".join(kept))

    def _refuse_batch(self, batches: list[dict[str, torch.Tensor]], losses: torch.Tensor) -> None:
        name = self.stream.describe if self.stream else self.files.__getitem__
        files = gather_object([name(i) for batch in batches for i in batch["index"].tolist()])
        raise NonFiniteLossError(
            f"expected a finite loss, found {losses.tolist()} at step {self.counters['step'] + 1} on the images "
            f"{', '.join(files)}; look at these images, lower --learning_rate or use --mixed_precision bf16"
        )

    def _progress_bar(self) -> tqdm:
        # None: tqdm shows itself on a terminal only; elsewhere the lines of `evaluate` are the progress.
        return tqdm(
            total=self.num_steps,
            initial=self.counters["step"],
            unit="step",
            disable=None if self.accelerator.is_main_process else True,
        )
