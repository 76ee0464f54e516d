"""A model in another format.

`conversion` reads published checkpoints, with `checkpoint_files` and `checkpoint_layouts`; `half_precision` writes a
model folder in float16; `programs` writes and checks ONNX and torch.export files, with `preprocessing`,
`torch_program` and `onnx_program`; `onnx_folder` lays ONNX files out for transformers.js and optimum.
"""

# In place of .onnx, for each smaller form of a file.
SUFFIXES = {"float16": ".float16.onnx", "int8": ".int8.onnx"}
