"""Files become batches. Knows no model and no Accelerate.

In reading order: `images` finds and decodes files, `duplicates` compares their pixels, `splits` draws who validates,
`folders` and `hub_dataset` give the tables, `dataset` makes the splits of them, `statistics` and `inspection` describe
what is there; `transforms` prepares an image, `image_cache` keeps decoded ones, `sampler` orders them, `stream` reads
them from the Hub, `collator` makes and mixes batches.
"""
