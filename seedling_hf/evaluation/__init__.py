"""Labels are known: arrays become figures, and figures become pages.

In reading order: `metrics`, `calibration`, `probing`, `report`, `comparison`, `html_report`.
"""
