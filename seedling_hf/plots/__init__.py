"""Figures: arrays in, PNG out. Nothing here touches pyplot's global state or needs a display.

They share `style`, and names `fonts`. `curves` draws training and speed, `quality` the results of an evaluation,
`receptive_fields` the fields of models, and `images` sheets of images.
"""
