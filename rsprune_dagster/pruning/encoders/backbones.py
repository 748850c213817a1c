"""The supported torchvision networks, and how pooled features are taken from each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Backbone:
    """A torchvision classifier as an encoder: its trunk gives (n, d) or (n, d, h, w); its head is unused."""

    name: str
    dimension: int
    trunk: Callable[[nn.Module], nn.Module]
    head: str
    fixed_size_px: int | None = None

    def build(self) -> nn.Module:
        """The classifier with random weights."""
        from torchvision.models._api import get_model

        model: nn.Module = get_model(self.name, weights=None)
        return model

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights that the trunk needs, without allocating them."""
        with torch.device("meta"):
            state = self.build().state_dict()
        return {key: tuple(value.shape) for key, value in state.items() if self.needs(key)}

    def needs(self, key: str) -> bool:
        """Whether a weight belongs to the trunk; batch-norm step counters are ignored."""
        return not key.startswith(self.head) and not key.endswith("num_batches_tracked")


def convolutions(model: nn.Module) -> nn.Module:
    """The `features` of mobilenet, squeezenet, efficientnet, densenet, vgg and convnext: (n, d, h, w)."""
    return model.get_submodule("features")


def before_pooling(model: nn.Module) -> nn.Module:
    """A resnet up to its average pooling: (n, d, h, w)."""
    return nn.Sequential(*[layer for name, layer in model.named_children() if name not in ("avgpool", "fc")])


def class_token(model: nn.Module) -> nn.Module:
    """A vision transformer without its classifier: (n, d), the class token."""
    model.heads = nn.Identity()
    return model


BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone("mobilenet_v2", 1280, convolutions, "classifier."),
        Backbone("mobilenet_v3_small", 576, convolutions, "classifier."),
        Backbone("mobilenet_v3_large", 960, convolutions, "classifier."),
        Backbone("squeezenet1_0", 512, convolutions, "classifier."),
        Backbone("squeezenet1_1", 512, convolutions, "classifier."),
        Backbone("efficientnet_b0", 1280, convolutions, "classifier."),
        Backbone("convnext_tiny", 768, convolutions, "classifier."),
        Backbone("resnet18", 512, before_pooling, "fc."),
        Backbone("resnet34", 512, before_pooling, "fc."),
        Backbone("resnet50", 2048, before_pooling, "fc."),
        Backbone("vit_b_16", 768, class_token, "heads.", fixed_size_px=224),
    )
}
"""The networks by torchvision name; add a line for another one."""
