"""RepLKNet for transformers; importing it registers the Auto classes."""

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .configuration_replknet import RepLKNetConfig
from .image_processing_replknet import RepLKNetImageProcessor
from .modeling_replknet import RepLKNetBackbone, RepLKNetForImageClassification, RepLKNetModel

AutoConfig.register("replknet", RepLKNetConfig, exist_ok=True)
AutoModel.register(RepLKNetConfig, RepLKNetModel, exist_ok=True)
AutoBackbone.register(RepLKNetConfig, RepLKNetBackbone, exist_ok=True)
AutoModelForImageClassification.register(RepLKNetConfig, RepLKNetForImageClassification, exist_ok=True)
AutoImageProcessor.register(
    RepLKNetConfig, image_processor_classes={"torchvision": RepLKNetImageProcessor}, exist_ok=True
)

__all__ = [
    "RepLKNetBackbone",
    "RepLKNetConfig",
    "RepLKNetForImageClassification",
    "RepLKNetImageProcessor",
    "RepLKNetModel",
]
