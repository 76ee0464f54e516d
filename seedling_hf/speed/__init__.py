"""How long things take, beside other ways to do them: `timing` for models and layers, `loading` for images."""
