"""Gradients with respect to pixels.

In reading order: `feature_maps`, `erf` (effective receptive fields), `saliency` (Grad-CAM).
"""
