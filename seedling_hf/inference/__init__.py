"""Labels are unknown and no gradient is taken.

In reading order: `model_files` checks the files of a model, `members` lists those of folds, `classifier` loads it,
`ensemble` makes one of several, `classifier_arguments` names them, `batch_memory` refuses what does not fit,
`familiarity` measures how far an image is from the training's, `answers` writes what is said of images, `judgement`
says how far that can be trusted, `prediction` makes a model's outputs, `compiled_batches` has batches compiled;
`predictor` goes from files to answers, `tiles` and `trays` from trays. `listed_run` with its `journal` and
`watched_run` with its `ledger` and `watched_output` run what `predict_arguments` describe; `output` and `tally` show
the results, and `waiting` keeps processes together that wait for batches. `embedding` writes features, `nearest`
searches them.
"""
