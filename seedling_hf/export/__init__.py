"""A model in another format: `conversion` reads the authors' checkpoints, `programs` writes ONNX and torch.export."""
