# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The patch embedding of a plain ViT at a smaller stride than its patch size."""

import math

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, resample_patch_embed
from torch import Tensor, nn

PATCH_KERNELS = ('keep', 'resample')


def power_of_two_patch(patch: int, stride: int) -> int:
    """The patch size in pixels that a backbone works with: the nearest power of two, at least the stride.

    A patch-14 model becomes a patch-16 one, so that every stride divides the patch.
    """
    return max(2 ** round(math.log2(patch)), stride)


class PatchEmbedding(nn.Module):
    """Patch embedding with one token for each cell of ``stride`` x ``stride`` pixels.

    The kernel is centred on the cell; the image is continued with zeros, which is the mean colour after
    normalisation. Parameter names are timm's (``proj``, ``norm``).

    Args:
        plain: The patch embedding of the plain ViT; its weights are taken over, resized where the
            kernel size changes.
        stride: Side of a cell in pixels.
        kernel: Side of the kernel in pixels, at least ``stride``.
    """

    def __init__(self, plain: PatchEmbed, stride: int, kernel: int) -> None:
        super().__init__()
        self.stride, self.kernel = stride, kernel
        self.proj = nn.Conv2d(
            plain.proj.in_channels,
            plain.proj.out_channels,
            kernel,
            stride=stride,
            bias=plain.proj.bias is not None,
        )
        self.norm = plain.norm
        with torch.no_grad():
            self.proj.weight.copy_(resize_kernel(plain.proj.weight, kernel))
            if plain.proj.bias is not None:
                self.proj.bias.copy_(plain.proj.bias)

    def forward(self, x: Tensor, stride: int | None = None) -> Tensor:
        """Embed images (B, I, H, W) as (B, ceil(H / stride), ceil(W / stride), C); at its own stride by default."""
        stride = stride or self.stride
        h, w = x.shape[-2:]
        before = (self.kernel - stride) // 2
        after = self.kernel - stride - before
        pad = (before, after + -w % stride, before, after + -h % stride)
        if any(pad):
            x = F.pad(x, pad)
        x = self.proj(x) if stride == self.stride else F.conv2d(x, self.proj.weight, self.proj.bias, stride)
        return self.norm(x.permute(0, 2, 3, 1))


def resize_kernel(weight: Tensor, kernel: int) -> Tensor:
    """Resize a patch kernel (C, I, k, k) to (C, I, kernel, kernel) by timm's pseudo-inverse resize.

    FlexiViT (arXiv 2212.08013, section 3.4): the resized kernel answers a resized patch as the original
    answers the original patch, as nearly as least squares allows.
    """
    if weight.shape[-2:] == (kernel, kernel):
        return weight
    return resample_patch_embed(weight, [kernel, kernel])
