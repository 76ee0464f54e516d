"""RepLKNet for plant seedlings, made of Hugging Face's libraries."""

from pathlib import Path

__version__ = "0.1.0"

SHIPPED_MODEL = Path(__file__).with_name(
    "nano"
)  # trained by scripts/recipes/nano_cpu.yaml; a folder for from_pretrained
