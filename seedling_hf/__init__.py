"""RepLKNet for plant seedlings, built on Hugging Face's libraries."""

from pathlib import Path

__version__ = "0.1.0"

# A folder for from_pretrained; its card says how it was trained.
SHIPPED_MODEL = Path(__file__).with_name("nano")

_FROM_REPLKNET = ("RepLKNetBackbone", "RepLKNetConfig", "RepLKNetForImageClassification", "RepLKNetImageProcessor")
__all__ = ["SHIPPED_MODEL", *_FROM_REPLKNET]


def __getattr__(name: str) -> object:
    """The model's classes, imported with torch and transformers on first use."""
    if name in _FROM_REPLKNET:
        from seedling_hf import replknet

        return getattr(replknet, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FROM_REPLKNET])
