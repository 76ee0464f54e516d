"""With known labels: probabilities become figures, and figures become pages.

In reading order: `metrics`, `calibration`, `seedling_metric`, `evaluator`, `surfaces`, `probes`, `probing`,
`training_data`, `trust`, `report`, `out_of_fold`, `comparison`, `sentences`, `rendering`, `report_files`.
"""
