"""The flags of `train`, in groups that other commands and the modules below them share."""

import os
from collections.abc import Set
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedling_hf.arguments import LARGEST_SEED, MOST_WORKERS, ArgumentGroup, option
from seedling_hf.compiling import CompilingArguments
from seedling_hf.errors import InputError
from seedling_hf.paths import expand_home

if TYPE_CHECKING:
    from seedling_hf.replknet import RepLKNetConfig

# Help that flags of several commands share.
TREE = "folder of class folders, or of images with a metadata.csv"
LABEL_MAP = "CSV with columns from and to: the class that each name in the images stands for, where it has another name"
FINETUNE = "finetune.yaml"  # the recipe where no model is named
LONGEST_WAIT = 10_000_000  # seconds, some months; Python's locks take no more than some centuries


@dataclass(kw_only=True)
class SplitArguments(ArgumentGroup):
    """What `load_splits` takes: a folder of images, and which of them validate."""

    train_dir: str = option(MISSING, f"{TREE}, or one with train/, val/ and test/ inside", images=True)
    validation_dir: str | None = option(
        None, "such a folder to validate on, instead of a part of train_dir", images=True
    )
    split_strategy: str = option(
        "stratified",
        "how validation images are drawn: stratified; grouped, with near-duplicates on one side; random, as in the "
        "tutorial (docs/tutorial.md: sorted files, state 42); mle_bench, as its test set (14%%, state 0)",
        choices=["stratified", "grouped", "random", "mle_bench"],
    )
    train_val_split: float = option(
        0.3, "fraction of the images used for validation, above 0 and below 1", above=0, below=1
    )
    fold: str | None = option(None, "i/n: validate on fold i of n instead of a fraction; stratified or grouped")
    _takes_all_folds = False  # all/n
    split_seed: int = option(42, "seed of the split, separate from that of the run", least=0, most=LARGEST_SEED)
    split_file: str | None = option(None, "split.csv of an earlier run, to use exactly its split")
    label_file: str | None = option(
        None,
        "CSV with columns file and label: labels of training images to correct, or to leave out where label is empty",
    )
    label_map: str | None = option(None, LABEL_MAP, path=True)
    max_train_samples: int | None = option(
        None, "use at most this many training images, evenly from the classes", least=1
    )
    max_eval_samples: int | None = option(
        None, "use at most this many validation images, evenly from the classes", least=1
    )
    skip_bad_images: bool = option(False, "skip images that cannot be decoded instead of stopping with an error")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fold is None:
            return
        if self.split_strategy not in ("stratified", "grouped"):
            raise InputError(
                f"expected --fold with --split_strategy stratified or grouped, found {self.split_strategy}; drop one"
            )
        i, _, n = self.fold.partition("/")
        several = n.isdecimal() and int(n) >= 2
        if not (several and i.isdecimal() and 1 <= int(i) <= int(n)) and not (several and self._trains_all):
            also = " or all/5" if self._takes_all_folds else ""
            raise InputError(
                f"expected --fold i/n with i from 1 to n and n at least 2, such as 1/5{also}, found {self.fold}"
            )

    @property
    def _trains_all(self) -> bool:
        return self._takes_all_folds and self.fold is not None and self.fold.startswith("all/")


@dataclass(kw_only=True)
class DataArguments(SplitArguments):
    _argument_group_name = "Data"

    train_dir: str | None = option(None, f"{TREE}, or one with train/, val/ and test/ inside", images=True)
    fold: str | None = option(
        None,
        "i/n: validate on fold i of n instead of a fraction; all/n: train each of the n folds, one after another, and "
        "report on all images; stratified or grouped",
    )
    train_val_split: float = option(
        0.3,
        "fraction of the images used for validation, below 1; with 0 all images are trained on, and the last "
        "weights are kept",
        least=0,
        below=1,
    )
    folds_dir: str | None = option(
        None,
        "with --train_val_split 0: output folder of --fold all/n, whose temperature, thresholds and figures the model "
        "gets",
    )
    dataset_name: str | None = option(None, "dataset on the Hub instead of a folder")
    dataset_config_name: str | None = option(None, "configuration of that dataset")
    dataset_revision: str | None = option(None, "branch, tag or commit of that dataset")
    streaming: bool = option(False, "stream its training images instead of downloading them")
    image_column_name: str = option("image", "column of images in that dataset")
    label_column_name: str = option("label", "column of classes in that dataset")
    no_duplicate_check: bool = option(False, "do not search for validation images that are also in training")
    balanced_sampler: bool = option(
        False, "draw as many images of each class for an epoch, with replacement, instead of each image once"
    )
    dataloader_num_workers: int = option(
        0, "image-loading processes for each training process", least=0, most=MOST_WORKERS
    )
    cache_images: int | None = option(
        None,
        "cache decoded images on the disk; larger training images are resized to this shorter side in pixels (at least "
        "image_size; with 1.5 times that, default crops are never enlarged)",
        least=32,
    )

    _takes_all_folds = True

    @property
    def num_folds(self) -> int | None:
        """How many folds are to be trained one after another; None for an ordinary run."""
        return int(self.fold.partition("/")[2]) if self._trains_all else None

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
        if self.streaming and self.label_file is not None:
            raise InputError(
                "expected --label_file without --streaming, whose images are not known before they come, found both; "
                "drop one"
            )
        if self.streaming and self.cache_images is not None:
            raise InputError(
                "expected --cache_images without --streaming, which keeps nothing on the disk, found both; drop one"
            )


@dataclass(kw_only=True)
class ModelArguments(ArgumentGroup):
    _argument_group_name = "Model"
    _one_of = ("model_name_or_path", "variant", "timm_architecture")
    shape = ("kernel_sizes", "depths", "hidden_sizes")  # fields of RepLKNetConfig that are flags

    model_name_or_path: str | None = option(
        None,
        "start from this model folder or Hub repository (user/name@revision); without it, --variant and "
        "--timm_architecture, from the shipped nano with a new head, by the recipe finetune.yaml",
    )
    model_revision: str | None = option(None, "its branch, tag or commit")
    trust_remote_code: bool = option(False, "run the Python code in that repository")
    ignore_mismatched_sizes: bool = option(False, "give the model a new head if the number of classes differs")
    variant: str | None = option(None, "RepLKNet to train from scratch", choices=["nano", "tiny", "31B", "31L", "XL"])
    timm_architecture: str | None = option(None, "timm network to train from scratch, such as resnet18")
    kernel_sizes: list[int] | None = option(
        None, "large kernels of the RepLKNet, one for all stages or one per stage", least=1
    )
    depths: list[int] | None = option(None, "layers per stage", least=1)
    hidden_sizes: list[int] | None = option(None, "channels per stage", least=1)
    image_size: int | None = option(None, "side of the images in pixels (default: that of the model)", least=32)
    image_size_start: int | None = option(
        None, "initial side of the training images; grows to image_size in 2/3 of the epochs", least=32
    )
    crop_pct: float = option(1.0, "fraction of the side kept by the centre crop of evaluation", least=0.1, most=1)
    drop_path_rate: float | None = option(
        None, "stochastic depth of the last block (default: that of the model)", least=0, below=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        found = [f"--{name}" for name in self._one_of if getattr(self, name) is not None]
        if len(found) > 1:
            raise InputError(
                "expected at most one of --model_name_or_path, --variant and --timm_architecture, found "
                f"{' and '.join(found)}; give one"
            )
        shaped = [f"--{name}" for name in self.shape if getattr(self, name) is not None]
        if shaped and self.variant is None:
            raise InputError(
                f"expected --variant with {shaped[0]}, found {found[0] if found else 'none'}; give one, or remove "
                f"{shaped[0]}"
            )

    @classmethod
    def default_recipe(cls, given: Set[str]) -> Path | None:
        """That of fine-tuning, where no model is named."""
        if given & set(cls._one_of):
            return None
        # Installed, the recipe is beside this module; in a checkout, in its folder there.
        here = Path(__file__).resolve().parent
        return next(p for p in (here / FINETUNE, here.parent / "scripts" / "recipes" / FINETUNE) if p.is_file())

    @property
    def starts_from_shipped(self) -> bool:
        """Whether training starts from the model that ships with the package, with a new head."""
        return all(getattr(self, name) is None for name in self._one_of)

    def build_variant_config(self, **values: Any) -> "RepLKNetConfig":
        """The configuration of `variant` with the kernels, depths and channels of the flags, and other `values`.

        Raises:
            InputError: for a shape that a RepLKNet cannot have.
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

    min_crop_scale: float = option(0.6, "smallest area fraction of a random resized crop; 1 is off", above=0, most=1)
    horizontal_flip: float = option(0.5, "probability of a horizontal flip", least=0, most=1)
    vertical_flip: float = option(0.5, "probability of a vertical flip", least=0, most=1)
    quarter_turns: float = option(0.0, "probability of a rotation by 0, 90, 180 or 270 degrees", least=0, most=1)
    rotation_degrees: float = option(180.0, "largest rotation in either direction", least=0, most=180)
    rotation_fill: str = option(
        "mean",
        "what fills the corners of rotated images: the mean colour, or the mirrored image",
        choices=["mean", "mirror"],
    )
    color_jitter: float = option(0.2, "strength of brightness, contrast and saturation jitter", least=0, most=1)
    randaugment_num_ops: int = option(0, "RandAugment operations per image; 0 is off", least=0, most=100)
    randaugment_magnitude: int = option(7, "RandAugment magnitude, 0 to 30", least=0, most=30)
    jpeg_prob: float = option(0.0, "probability of JPEG compression with a quality of 50 to 100", least=0, most=1)
    zoom_in_prob: float = option(0.0, "probability of a crop of 6 to 40%% of the area around a plant", least=0, most=1)
    zoom_out_prob: float = option(
        0.0,
        "probability of the image at 25 to 85%% of its side, amid ground or its mirror images",
        least=0,
        most=1,
    )
    background_prob: float = option(
        0.0,
        "probability of another background behind the green: ground of other training images, drawn soil, gradients, "
        "flat colours",
        least=0,
        most=1,
    )
    shadow_prob: float = option(0.0, "probability of a shadow with soft edges", least=0, most=1)
    white_balance: float = option(
        0.0, "strength of colour temperature (1: 200 mireds either way) and of gains of channels", least=0, most=1
    )
    gamma: float = option(0.0, "values are raised to a power between 2^-gamma and 2^gamma", least=0, most=2)
    levels_prob: float = option(
        0.0, "probability of other black and white points: half stretched to 0 and 1, half darker", least=0, most=1
    )
    blur_prob: float = option(0.0, "probability of blur: Gaussian, out of focus, or moved", least=0, most=1)
    noise_prob: float = option(0.0, "probability of a sensor's noise", least=0, most=1)
    random_erasing: float = option(0.0, "probability of Random Erasing", least=0, most=1)
    cutout_size: int = option(0, "side of Cutout's square in pixels; 0 is off", least=0)
    mixup_alpha: float = option(0.8, "alpha of MixUp's beta distribution; 0 is off", least=0, most=1000)
    cutmix_alpha: float = option(1.0, "alpha of CutMix's beta distribution; 0 is off", least=0, most=1000)
    mixup_prob: float = option(0.1, "probability that a batch, pair or image is mixed", least=0, most=1)
    mixup_switch_prob: float = option(0.5, "probability of CutMix instead of MixUp if both are on", least=0, most=1)
    mixup_mode: str = option("batch", "what shares a mixing weight", choices=["batch", "pair", "elem"])
    label_smoothing_factor: float = option(
        0.1, "fraction of the target that is spread over all classes", least=0, below=1
    )


@dataclass(kw_only=True)
class DistillationArguments(ArgumentGroup):
    _argument_group_name = "Distillation"

    teacher_model_name_or_path: list[str] = option(list, "models whose mean prediction becomes part of the targets")
    distillation_alpha: float = option(0.5, "share of the teachers in the targets", above=0, most=1)


@dataclass(kw_only=True)
class OptimizationArguments(ArgumentGroup):
    _argument_group_name = "Optimization"

    num_train_epochs: float = option(30.0, "epochs", above=0, most=1_000_000)
    max_steps: int = option(-1, "optimizer steps; above 0, overrides num_train_epochs")
    per_device_train_batch_size: int = option(32, "training images in a batch, per process", least=1)
    per_device_eval_batch_size: int = option(64, "validation images in a batch, per process", least=1)
    gradient_accumulation_steps: int = option(1, "batches per optimizer step", least=1)
    auto_find_batch_size: bool = option(False, "use smaller batches, and more of them per step, if memory is short")
    optim: str = option("adamw", "adamw, or muon for matrices with adamw for the rest", choices=["adamw", "muon"])
    learning_rate: float = option(1e-3, "peak learning rate", above=0, most=100)
    weight_decay: float = option(0.05, "weight decay, not applied to biases and normalization", least=0, most=1000)
    adam_beta1: float = option(0.9, "AdamW's beta1", least=0, below=1)
    adam_beta2: float = option(0.999, "AdamW's beta2", least=0, below=1)
    adam_epsilon: float = option(1e-8, "AdamW's epsilon", least=1e-30, most=1)
    layer_decay: float = option(1.0, "learning rate of a block relative to the next one; 1 is off", above=0, most=1)
    lr_scheduler_type: str = option("cosine", "schedule after warm-up", choices=["cosine", "linear", "constant"])
    warmup_steps: int = option(0, "steps of linear warm-up", least=0)
    warmup_ratio: float = option(0.0, "warm-up as a fraction of all steps, if warmup_steps is 0", least=0, below=1)
    max_grad_norm: float = option(5.0, "gradients are clipped to this norm; 0 is off", least=0)
    ema_decay: float = option(0.0, "evaluate and save averaged weights with this decay; 0 is off", least=0, below=1)
    early_stopping_patience: int | None = option(None, "stop after this many evaluations without improvement", least=1)
    mixed_precision: str | None = option(None, "precision of the forward pass", choices=["no", "fp16", "bf16"])
    gradient_checkpointing: bool = option(False, "save memory by computing each layer twice")
    sync_bn: bool = option(False, "synchronize BatchNorm between GPUs")
    freeze: list[str] = option(
        list,
        "parts of the network that are not trained: backbone (all but the classifier), stem, stage1 and so on, or "
        "names of modules",
    )
    freeze_bn_statistics: bool | None = option(
        None,
        "BatchNorm normalizes by its stored statistics, which stay as they are: true everywhere, false nowhere "
        "(default: in the parts that --freeze names)",
    )
    class_weights: str | None = option(
        None,
        "balanced: the loss of an image counts in inverse proportion to the number of training images of its class",
        choices=["balanced"],
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.freeze = sorted(set(self.freeze))  # the same state, however they are listed


@dataclass(kw_only=True)
class RunArguments(ArgumentGroup):
    _argument_group_name = "Run"

    output_dir: str | None = option(
        None,
        "folder for the model, its report and its checkpoints (default: outputs/ and the name of the images' folder)",
        writable=True,
        apart=True,
    )
    overwrite_output_dir: bool = option(False, "discard the run that the folder holds")
    seed: int = option(42, "seed of weights, order and augmentation", least=0, most=LARGEST_SEED)
    eval_steps: int | None = option(None, "steps between evaluations (default: every epoch)", least=1)
    save_steps: int | None = option(
        None, "steps between checkpoints (default: every epoch if saving takes under 2%%)", least=1
    )
    no_calibration: bool = option(
        False, "leave the probabilities as training made them, without a temperature fitted on validation images"
    )
    save_total_limit: int | None = option(2, "checkpoints to keep besides the best", least=1)
    logging_steps: int = option(10, "steps between lines of metrics.jsonl", least=1)
    report_to: list[str] = option(list, "trackers of accelerate, such as tensorboard or wandb")
    run_name: str | None = option(None, "name of the run in the trackers")
    resume_from_checkpoint: str | None = option(None, "latest, a checkpoint folder, or a Hub repository", path=True)
    allow_changed_arguments: bool = option(False, "resume even if flags that change the results differ")
    ddp_timeout: int = option(600, "seconds to wait for a process that hangs", least=1, most=LONGEST_WAIT)


@dataclass(kw_only=True)
class HubArguments(ArgumentGroup):
    _argument_group_name = "Hub"

    push_to_hub: bool = option(False, "push the model to the Hub, in the background")
    hub_model_id: str | None = option(None, "repository, user/name (default: name of output_dir)")
    hub_private_repo: bool | None = option(None, "make a new repository private")
    hub_revision: str | None = option(None, "branch to push to")
    hub_strategy: str = option("every_save", "when to push", choices=["end", "best", "every_save", "checkpoint"])
    hub_tag: str | None = option(None, "tag of the final push")
    hub_timeout: float = option(
        600.0, "seconds to wait for the last push at the end of the run", least=0, most=LONGEST_WAIT
    )


@dataclass(kw_only=True)
class TrainArguments(
    HubArguments,
    RunArguments,
    CompilingArguments,
    OptimizationArguments,
    DistillationArguments,
    AugmentationArguments,
    ModelArguments,
    DataArguments,
):
    """Trains a RepLKNet on seedlings.

    Examples:
        seedling-hf train --train_dir mine
        seedling-hf train --train_dir mine --split_strategy grouped --fold all/5
        seedling-hf train --config scripts/recipes/quickstart.yaml
        seedling-hf train --config scripts/recipes/nano_cpu.yaml --train_dir mine --output_dir outputs/mine
    """

    def __post_init__(self) -> None:
        images = self.dataset_name if self.train_dir is None else expand_home(self.train_dir)
        if self.output_dir is None and images is not None:
            self.output_dir = os.path.join("outputs", Path(os.path.abspath(images)).name)
        super().__post_init__()
        if self.streaming and (self.max_steps <= 0 or self.eval_steps is None):
            raise InputError(
                "expected --max_steps and --eval_steps with --streaming, since an epoch's length is unknown, found one "
                "of them missing; give both"
            )
        for name in ("streaming", "auto_find_batch_size"):  # unknown length of an epoch; memory tried with one size
            if self.image_size_start is not None and getattr(self, name):
                raise InputError(f"expected images of one size with --{name}, found --image_size_start; remove it")
        if self.auto_find_batch_size and self.teacher_model_name_or_path:
            raise InputError(
                "expected no teachers with --auto_find_batch_size, which does not count their memory, found "
                "--teacher_model_name_or_path; give --per_device_train_batch_size yourself"
            )
        self._check_balance()
        if self.num_folds is not None:
            self._check_all_folds()
        if self.train_val_split == 0:
            self._check_all_images()
        elif self.folds_dir is not None:
            raise InputError(
                f"expected --folds_dir with --train_val_split 0, found {self.train_val_split}; a model with validation "
                "images is calibrated on these"
            )

    def _check_balance(self) -> None:
        found = [
            flag
            for flag, is_given in (
                ("--class_weights balanced", self.class_weights is not None),
                ("--balanced_sampler", self.balanced_sampler),
            )
            if is_given
        ]
        if len(found) == 2:
            raise InputError(
                f"expected {found[0]} or {found[1]}, found both, by which rare classes would count twice; drop one"
            )
        if found and self.streaming:
            raise InputError(
                f"expected {found[0]} without --streaming, whose classes are not counted before they come, found both; "
                "drop one"
            )

    def _check_all_images(self) -> None:
        refused = {
            "--fold": self.fold is not None,
            "--validation_dir": self.validation_dir is not None,
            "--split_file": self.split_file is not None,
            "--split_strategy mle_bench": self.split_strategy == "mle_bench",
            "--streaming": self.streaming,
            "--early_stopping_patience": self.early_stopping_patience is not None,
        }
        for found, is_there in refused.items():
            if is_there:
                raise InputError(
                    f"expected no validation images with --train_val_split 0, found {found}; remove one of the two"
                )

    def _check_all_folds(self) -> None:
        refused = {
            "--streaming": self.streaming,
            "--validation_dir": self.validation_dir is not None,
            "--split_file": self.split_file is not None,
            "--push_to_hub": self.push_to_hub,
            f"--resume_from_checkpoint {self.resume_from_checkpoint}": self.resume_from_checkpoint
            not in (None, "latest"),
        }
        for found, is_there in refused.items():
            if is_there:
                remedy = {"--push_to_hub": "; push the folder of a fold with push_to_hub afterwards"}.get(found, "")
                remedy = remedy or ("; give latest" if "resume" in found else "; remove one of them")
                raise InputError(f"expected what all folds share with --fold {self.fold}, found {found}{remedy}")
