"""With known labels: probabilities become figures, and figures become pages.

In reading order: `metrics`, `calibration`, `seedling_metric`, `evaluator`, `surfaces`, `probes`, `probing`,
`training_data`, `out_of_fold`, `trust`, `report`, `comparison`, `sentences`, `rendering`, `report_files`.
"""
