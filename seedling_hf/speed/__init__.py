"""How long things take, compared with other implementations.

`forms` are what is compared, `measurements` times models and layers, `loading` times images, `results` prints them.
"""
