"""Labels are unknown and no gradient is taken.

In reading order: `classifier` and `prediction` make logits, `answers` writes what they say; `predictor` goes from files
to answers, `tiles` and `trays` from photographs of trays. `listed_run`, with its `journal`, and `watched_run`, with its
`ledger`, are the two ways to run; `output`, `failed_files` and `progress` show what came out. `embedding` writes
features.
"""
