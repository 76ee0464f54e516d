"""The flags of `train`, in groups that other commands and the modules below them share."""

from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any

from seedling_hf.arguments import ArgumentGroup, check_range, option
from seedling_hf.errors import InputError

if TYPE_CHECKING:
    from seedling_hf.replknet import RepLKNetConfig


@dataclass(kw_only=True)
class SplitArguments(ArgumentGroup):
    """What `load_splits` takes: a folder of images, and which of them validate."""

    train_dir: str = option(MISSING, "folder of class folders, or one with train/, val/ and test/ inside")
    validation_dir: str | None = option(
        None, "class folders to validate on; without it, part of train_dir is used for validation"
    )
    split_strategy: str = option(
        "stratified",
        "how validation images are drawn: stratified; grouped, the same with near-duplicates on one side; random, as "
        "in the tutorial (sorted files, state 42); mle_bench, the test part of MLE-bench (14 percent, state 0)",
        choices=["stratified", "grouped", "random", "mle_bench"],
    )
    train_val_split: float = option(0.3, "fraction of the images used for validation, above 0 and below 1")
    fold: str | None = option(None, "i/n: validate on fold i of n instead of a fraction; stratified or grouped")
    split_seed: int = option(42, "seed of the split, separate from the run's, so that several runs can share a split")
    split_file: str | None = option(None, "split.csv of an earlier run, to use exactly its split")
    max_train_samples: int | None = option(None, "use at most this many training images, evenly from the classes")
    max_eval_samples: int | None = option(None, "use at most this many validation images, evenly from the classes")
    skip_bad_images: bool = option(False, "skip images that cannot be decoded instead of stopping with an error")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "train_val_split", above=0, below=1)
        check_range(self, "max_train_samples", least=1)
        check_range(self, "max_eval_samples", least=1)
        if self.fold is None:
            return
        if self.split_strategy not in ("stratified", "grouped"):
            raise InputError(
                f"expected --fold with --split_strategy stratified or grouped, found {self.split_strategy}; drop one"
            )
        i, slash, n = self.fold.partition("/")
        if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n) >= 2):
            raise InputError(f"expected --fold i/n with i from 1 to n and n at least 2, such as 1/5, found {self.fold}")


@dataclass(kw_only=True)
class DataArguments(SplitArguments):
    _argument_group_name = "Data"

    train_dir: str | None = option(None, "folder of class folders, or one with train/, val/ and test/ inside")
    dataset_name: str | None = option(None, "data set on the Hub instead of a folder")
    dataset_config_name: str | None = option(None, "configuration of that data set")
    dataset_revision: str | None = option(None, "branch, tag or commit of that data set")
    streaming: bool = option(False, "read its training images as they are needed, without a copy on the disk")
    image_column_name: str = option("image", "its column of images")
    label_column_name: str = option("label", "its column of classes")
    no_duplicate_check: bool = option(False, "do not look for validation images that are nearly in training too")
    dataloader_num_workers: int = option(0, "processes that load images, for each training process")
    cache_images: int | None = option(
        None,
        "keep decoded images on the disk; those of training are shrunk to this shorter side in pixels (at least "
        "image_size; from 1.5 times that on, default crops are never enlarged)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.train_dir is None) == (self.dataset_name is None):
            found = "neither" if self.train_dir is None else "both"
            raise InputError(f"expected --train_dir or --dataset_name, found {found}; name one of them")
        if self.streaming and self.dataset_name is None:
            raise InputError("expected --dataset_name with --streaming, found --train_dir; leave --streaming out")
        if self.streaming and self.dataloader_num_workers > 1:
            raise InputError(
                f"expected --dataloader_num_workers of 0 or 1 with --streaming, found {self.dataloader_num_workers}; "
                "start more processes instead"
            )
        if self.streaming and self.cache_images is not None:
            raise InputError(
                "expected --cache_images without --streaming, which keeps nothing on the disk, found both; leave one "
                "out"
            )
        check_range(self, "dataloader_num_workers", least=0)
        check_range(self, "cache_images", least=32)


@dataclass(kw_only=True)
class ModelArguments(ArgumentGroup):
    _argument_group_name = "Model"
    _one_of = ("model_name_or_path", "variant", "timm_architecture")
    shape = ("kernel_sizes", "depths", "hidden_sizes")  # fields of RepLKNetConfig that are flags

    model_name_or_path: str | None = option(None, "folder or Hub repository to start from")
    model_revision: str | None = option(None, "branch, tag or commit of that repository")
    trust_remote_code: bool = option(False, "run the Python code of that repository")
    ignore_mismatched_sizes: bool = option(False, "give the model a new head where the number of classes differs")
    variant: str | None = option(None, "RepLKNet to start from scratch", choices=["nano", "tiny", "31B", "31L", "XL"])
    timm_architecture: str | None = option(None, "network of timm to start from scratch, such as resnet18")
    kernel_sizes: list[int] | None = field(
        default=None, metadata={"help": "large kernels of that RepLKNet, one for all stages or one for each"}
    )
    depths: list[int] | None = field(default=None, metadata={"help": "its layers of each stage"})
    hidden_sizes: list[int] | None = field(default=None, metadata={"help": "its channels of each stage"})
    image_size: int | None = option(None, "side of the images in pixels (default: what the model's processor says)")
    image_size_start: int | None = option(
        None, "side of the training images at first; it grows to image_size in two thirds of the passes"
    )
    crop_pct: float = option(
        1.0,
        "share of an image's side, in its middle, that evaluation and prediction see; below 1 plants are as large "
        "there as in the random crops of training",
    )
    drop_path_rate: float | None = option(None, "stochastic depth of the last block (default: what the model says)")

    def __post_init__(self) -> None:
        super().__post_init__()
        found = [f"--{name}" for name in self._one_of if getattr(self, name) is not None]
        if len(found) != 1:
            raise InputError(
                "expected one of --model_name_or_path, --variant and --timm_architecture, found "
                f"{' and '.join(found) or 'none'}; name one"
            )
        shaped = [f"--{name}" for name in self.shape if getattr(self, name) is not None]
        if shaped and self.variant is None:
            raise InputError(f"expected --variant with {shaped[0]}, found {found[0]}; leave {shaped[0]} out")
        check_range(self, "image_size", least=32)
        check_range(self, "image_size_start", least=32)
        check_range(self, "crop_pct", above=0, most=1)
        check_range(self, "drop_path_rate", least=0, below=1)

    def build_variant_config(self, **values: Any) -> "RepLKNetConfig":
        """The configuration of `variant` in the shape that the flags give it, with `values` over its own.

        Raises:
            InputError: for a shape that no RepLKNet has.
        """
        from seedling_hf.replknet import RepLKNetConfig

        shape = {name: getattr(self, name) for name in self.shape if getattr(self, name) is not None}
        try:
            return RepLKNetConfig.from_variant(self.variant, **shape, **values)
        except ValueError as error:
            raise InputError(f"expected --kernel_sizes, --depths and --hidden_sizes of a RepLKNet: {error}") from error


@dataclass(kw_only=True)
class AugmentationArguments(ArgumentGroup):
    _argument_group_name = "Augmentation"

    min_crop_scale: float = option(0.6, "smallest area of a random resized crop; 1 switches the crop off")
    horizontal_flip: float = option(0.5, "probability of a flip left to right")
    vertical_flip: float = option(0.5, "probability of a flip upside down")
    quarter_turns: float = option(0.0, "probability of a turn by 0, 90, 180 or 270 degrees, which mixes no pixels")
    rotation_degrees: float = option(180.0, "largest rotation either way; images from above have no right way up")
    color_jitter: float = option(0.2, "strength of brightness, contrast and saturation jitter")
    randaugment_num_ops: int = option(0, "RandAugment operations an image; 0 is off")
    randaugment_magnitude: int = option(7, "RandAugment magnitude, 0 to 30")
    jpeg_prob: float = option(0.0, "probability that an image is first made a JPEG, of quality 50 to 100")
    random_erasing: float = option(0.0, "probability of Random Erasing")
    cutout_size: int = option(0, "side in pixels of the square that Cutout greys; 0 is off")
    mixup_alpha: float = option(0.8, "MixUp's beta; 0 is off")
    cutmix_alpha: float = option(1.0, "CutMix's beta; 0 is off")
    mixup_prob: float = option(0.1, "probability that a batch is mixed")
    mixup_switch_prob: float = option(0.5, "probability of CutMix where both are on")
    mixup_mode: str = option("batch", "what shares one mixing weight", choices=["batch", "pair", "elem"])
    label_smoothing_factor: float = option(0.1, "share of the target spread over all classes")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "min_crop_scale", above=0, most=1)
        for name in (
            "horizontal_flip",
            "vertical_flip",
            "quarter_turns",
            "jpeg_prob",
            "random_erasing",
            "mixup_prob",
            "mixup_switch_prob",
        ):
            check_range(self, name, least=0, most=1)
        check_range(self, "rotation_degrees", least=0, most=180)
        check_range(self, "color_jitter", least=0, most=1)
        check_range(self, "randaugment_magnitude", least=0, most=30)
        for name in ("randaugment_num_ops", "cutout_size", "mixup_alpha", "cutmix_alpha"):
            check_range(self, name, least=0)
        check_range(self, "label_smoothing_factor", least=0, below=1)


@dataclass(kw_only=True)
class DistillationArguments(ArgumentGroup):
    _argument_group_name = "Distillation"

    teacher_model_name_or_path: list[str] = field(
        default_factory=list,
        metadata={"help": "trained models, folders or on the Hub, whose mean answer becomes part of the targets"},
    )
    distillation_alpha: float = option(0.5, "share of the targets that is the teachers'")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "distillation_alpha", above=0, most=1)


@dataclass(kw_only=True)
class OptimizationArguments(ArgumentGroup):
    _argument_group_name = "Optimization"

    num_train_epochs: float = option(30.0, "passes over the training images")
    max_steps: int = option(-1, "optimizer steps; above 0 it overrides num_train_epochs")
    per_device_train_batch_size: int = option(32, "training images a step on each process")
    per_device_eval_batch_size: int = option(64, "validation images a step on each process")
    gradient_accumulation_steps: int = option(1, "batches whose gradients are summed for one optimizer step")
    auto_find_batch_size: bool = option(False, "take smaller batches, more of them a step, where memory is too small")
    optim: str = option(
        "adamw",
        "optimizer; Muon takes AdamW's rates, and leaves vectors and depthwise kernels to it",
        choices=["adamw", "muon"],
    )
    learning_rate: float = option(1e-3, "highest learning rate")
    weight_decay: float = option(0.05, "decay of the weights that have two dimensions or more")
    adam_beta1: float = option(0.9, "AdamW's beta1")
    adam_beta2: float = option(0.999, "AdamW's beta2")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon")
    layer_decay: float = option(1.0, "factor of the learning rate from each block to the one below; 1 is off")
    lr_scheduler_type: str = option("cosine", "schedule after the warm-up", choices=["cosine", "linear", "constant"])
    warmup_steps: int = option(0, "optimizer steps of linear warm-up")
    warmup_ratio: float = option(0.0, "warm-up as a share of all steps, where warmup_steps is 0")
    max_grad_norm: float = option(5.0, "largest norm of all gradients; 0 is off")
    ema_decay: float = option(0.0, "decay of the averaged weights that are evaluated and saved; 0 is off")
    early_stopping_patience: int | None = option(None, "stop after so many evaluations without a better one")
    mixed_precision: str | None = option(None, "precision of the forward pass", choices=["no", "fp16", "bf16"])
    gradient_checkpointing: bool = option(False, "save memory by computing the forward pass twice")
    sync_bn: bool = option(False, "share BatchNorm's statistics among processes (GPUs only)")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "num_train_epochs", above=0)
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            check_range(self, name, least=1)
        check_range(self, "learning_rate", above=0)
        check_range(self, "layer_decay", above=0, most=1)
        for name in ("weight_decay", "warmup_steps", "max_grad_norm"):
            check_range(self, name, least=0)
        for name in ("warmup_ratio", "ema_decay", "adam_beta1", "adam_beta2"):
            check_range(self, name, least=0, below=1)
        check_range(self, "early_stopping_patience", least=1)


@dataclass(kw_only=True)
class RunArguments(ArgumentGroup):
    _argument_group_name = "Run"

    output_dir: str = option(MISSING, "folder of the model, its report and its checkpoints")
    overwrite_output_dir: bool = option(False, "train anew into a folder that already holds a run")
    seed: int = option(42, "seed of weights, order and augmentation")
    eval_steps: int | None = option(None, "optimizer steps between evaluations (default: once an epoch)")
    save_steps: int | None = option(
        None, "optimizer steps between checkpoints (default: once an epoch, while saving takes under 2 %% of the time)"
    )
    save_total_limit: int | None = option(2, "checkpoints to keep besides the best")
    logging_steps: int = option(10, "optimizer steps between lines of metrics.jsonl")
    report_to: list[str] = field(
        default_factory=list, metadata={"help": "trackers of accelerate, such as tensorboard or wandb"}
    )
    run_name: str | None = option(None, "name of the run for the trackers")
    resume_from_checkpoint: str | None = option(None, "latest, a checkpoint folder, or a Hub repository")
    allow_changed_arguments: bool = option(False, "resume although arguments that alter the run were changed")
    ddp_timeout: int = option(600, "seconds after which processes give up on one that hangs")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eval_steps", "save_steps", "logging_steps", "save_total_limit", "ddp_timeout"):
            check_range(self, name, least=1)


@dataclass(kw_only=True)
class HubArguments(ArgumentGroup):
    _argument_group_name = "Hub"

    push_to_hub: bool = option(False, "push the model to the Hub")
    hub_model_id: str | None = option(None, "repository, user/name (default: the output folder's name)")
    hub_private_repo: bool | None = option(None, "make a new repository private")
    hub_revision: str | None = option(None, "branch to push to")
    hub_strategy: str = option("every_save", "when to push", choices=["end", "best", "every_save", "checkpoint"])
    hub_tag: str | None = option(None, "tag of the final push")
    hub_timeout: float = option(600.0, "seconds that the end of the run waits for the last push")


@dataclass(kw_only=True)
class TrainArguments(
    HubArguments,
    RunArguments,
    OptimizationArguments,
    DistillationArguments,
    AugmentationArguments,
    ModelArguments,
    DataArguments,
):
    """All flags of `train`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming and (self.max_steps <= 0 or self.eval_steps is None):
            raise InputError(
                "expected --max_steps and --eval_steps with --streaming, for the length of a pass is not known, found "
                "one of them missing; give both"
            )
        for name in ("streaming", "auto_find_batch_size"):  # passes of unknown length; memory that is not yet needed
            if self.image_size_start is not None and getattr(self, name):
                raise InputError(f"expected images of one size with --{name}, found --image_size_start; leave it out")
        if self.auto_find_batch_size and self.teacher_model_name_or_path:
            raise InputError(
                "expected no teachers with --auto_find_batch_size, which does not count their memory, found "
                "--teacher_model_name_or_path; give --per_device_train_batch_size yourself"
            )
