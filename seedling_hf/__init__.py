"""RepLKNet for plant seedlings, made of Hugging Face's libraries."""

from pathlib import Path

__version__ = "0.1.0"

# A folder for from_pretrained, trained by scripts/recipes/nano_cpu.yaml.
SHIPPED_MODEL = Path(__file__).with_name("nano")
