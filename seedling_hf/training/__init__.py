"""Everything that the next optimizer step depends on.

In reading order: `models` builds the model, with `baseline` for networks of timm and `finetuning` for the shipped one;
`freezing` says which parts of it stay as they are; `batch_size` fits the batch into memory and `memory` estimates it,
`compilation` has it compiled, `conv_choices` times its convolution, and `threads` says how many threads compute;
`loaders` makes the batches, and `balance` weighs their classes; `learner` is what a step changes, with `optimization`,
`distillation` and `sharding`; `loop` is the run, with the `readings` of its steps, its `run_log`, `run_folder` and
`trackers`; `checkpointing`, `checkpoint_files` and `resuming` save and restore it; `certainty` calibrates what it has
learned; and `output_dir` reports its start and its end. `folds` makes one run of all folds of a cross-validation; what
they find are the `precedents` of a model on all images.
"""
