"""Labels are unknown and no gradient is taken.

In reading order: `answers`, `classifier`, `prediction`; `journal` and `ledger` keep answers on the disk, `tiles` and
`trays` find plants in photographs, `embedding` writes features.
"""
