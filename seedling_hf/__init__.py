"""RepLKNet for plant seedlings, made of Hugging Face's libraries."""

__version__ = "0.1.0"
