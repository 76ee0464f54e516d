"""All that the next step depends on.

In reading order: `baseline`, `models` and `memory`, `distillation`, `optimization`, `sharding`, `batch_size`,
`resuming`, `checkpoint_files`, `checkpointing`, and `loop`, where they meet.
"""
