"""Gradients with respect to pixels.

In reading order: `feature_maps`, `erf` (effective receptive fields), `faithfulness` of saliency maps, `saliency`
(integrated gradients).
"""
