"""Files become batches. Knows no model and no Accelerate.

In reading order: `formats` says what is an image, `listing` lists images in folders, `images` decodes them, if need be
without their broken `metadata`, `folders` and `hub_dataset`, whose `shards` are checked, list a `pool` of them with
classes, which are named by folders or by `label_lists`, `tables` like other lists of people, and otherwise by a
`label_map`, `duplicates` compares their pixels, `splits` draws which of them validate, `corrections` changes labels,
and `dataset` takes these steps from a folder to a DatasetDict; `statistics` and `inspection` describe the images,
`suspects` finds labels that look wrong, `recognition` the images that a model was trained on. `transforms` prepares an
image, with `geometry`, `light`, `camera` and `backgrounds`, for which `greenness` tells plants from ground;
`image_cache` keeps decoded images, `sampler` orders them by `seeds`, `stream` reads them from the Hub, `collator` makes
and mixes batches, which `training_images` gives by their keys and `loading` brings from workers, through a `handover`
of memory.
"""
