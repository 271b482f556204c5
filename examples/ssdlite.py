"""torchvision's SSDlite up to its heads: what it does behind them depends on the data, and stays outside."""

from torch import nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large


class SsdLite(nn.Module):
    def __init__(self):
        super().__init__()
        whole = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=11)
        self.backbone, self.head = whole.backbone, whole.head

    def forward(self, images):
        return self.head(list(self.backbone(images).values()))
