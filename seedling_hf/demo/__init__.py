"""The page in the browser: drop an image, and see its species, its probability and what the model looked at.

In reading order: `words` of the page in each language, `facts` about a model, `verdict` on an image, `markup`, `page`.
The folder `browser` is a page without a server, for static Spaces.
"""
