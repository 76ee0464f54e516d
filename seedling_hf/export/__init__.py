"""A model in another format.

`conversion` reads published checkpoints, with `checkpoint_files` and `checkpoint_layouts`; `half_precision` writes a
model folder in float16; `programs` writes and checks ONNX and torch.export files, with `preprocessing`,
`torch_program` and `onnx_program`.
"""

INT8_SUFFIX = ".int8.onnx"  # in place of .onnx
