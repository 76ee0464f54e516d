"""How long things take, compared with other implementations.

`forms` are what is compared, `measurements` times models and layers, `loading` times images, `profile` shows where
a training step goes, `operations` names the rows of it, `results` prints them.
"""
