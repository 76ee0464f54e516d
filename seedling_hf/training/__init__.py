"""All that the next step depends on.

In reading order: `baseline` and `memory` about models, `distillation`, `optimization`, `sharding`, `batch_size`,
`checkpointing`, and `loop`, where they meet.
"""
