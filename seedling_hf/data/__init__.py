"""Files become batches. Knows no model and no Accelerate.

In reading order: `images` lists and decodes files, `folders` and `hub_dataset` list a `pool` of them with classes,
`duplicates` compares their pixels, `splits` draws which of them validate, and `dataset` takes these steps from a folder
to a DatasetDict; `statistics` and `inspection` describe the images. `transforms` prepares an image, `image_cache` keeps
decoded ones, `sampler` orders them by `seeds`, `stream` reads them from the Hub, `collator` makes and mixes batches.
"""
