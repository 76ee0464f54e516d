"""RepLKNet for plant seedlings, made of Hugging Face's libraries."""

from pathlib import Path

__version__ = "0.1.0"

# A folder for from_pretrained; its card tells how it was trained.
SHIPPED_MODEL = Path(__file__).with_name("nano")
