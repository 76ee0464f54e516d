"""With known labels: probabilities become figures, and figures become pages.

In reading order: `metrics`, `calibration`, `seedling_metric`, `evaluator`, `probes`, `probing`, `training_data`,
`report`, `comparison`,
`sentences`, `rendering`, `report_files`.
"""
