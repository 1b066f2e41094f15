"""The image part of Qwen-VL preprocessing, in tensors: what the vision tower of the 3B model is fed.

The released image processor resizes a 224 x 224 view to 256 x 256 (bicubic with antialias, overshoot kept), normalises
with mean = std = 0.5 and cuts patches in the order in which its merger reads them. Here the same, bit for bit, batched
and on any device, with sizes known beforehand (``Architecture.vision``). Source: the released checkpoint's
preprocessor settings, checked against golden tensors and against the installed transformers image processor.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def qwen_pixels(
    images: Float[Tensor, "image 3 height width"], tower_size: tuple[int, int]
) -> Float[Tensor, "image 3 tower_height tower_width"]:
    """Resize views to ``tower_size`` (height, width) in pixels if they differ, and map [0, 1] to [-1, 1].

    Bicubic overshoot is not clamped (the released processor does not), so values slightly beyond [-1, 1] are normal.
    Keep the images in float32: half precision moves the pixels by more than the tower was trained to see.
    """
    if tuple(images.shape[-2:]) != tuple(tower_size):
        images = F.interpolate(images, size=tower_size, mode="bicubic", align_corners=False, antialias=True)
    return (images - 0.5) / 0.5


def qwen_patches(
    pixels: Float[Tensor, "image 3 height width"], patch_size: int, merge: int = 2, temporal: int = 2
) -> Float[Tensor, "patches features"]:
    """Cut normalised images into flat patches for ``patch_embed``.

    The tower was built for video: its patches span ``temporal`` frames, and a still image is repeated to fill them.

    Args:
        pixels: from ``qwen_pixels``; height and width are multiples of ``merge * patch_size``.
        patch_size: pixels along each side of a patch.
        merge: the merger fuses ``merge`` x ``merge`` neighbouring patches, which therefore follow each other.
        temporal: frames per patch.

    Returns:
        Patches ordered by (image, merged row, merged column, row within, column within); features ordered by (channel,
        frame, row, column).
    """
    images, channels, height, width = pixels.shape
    rows, columns = height // (merge * patch_size), width // (merge * patch_size)
    patches = pixels.reshape(images, channels, rows, merge, patch_size, columns, merge, patch_size)
    patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [image, rows, columns, merge, merge, channel, patch, patch]
    patches = patches.unsqueeze(-3).expand(*patches.shape[:-2], temporal, patch_size, patch_size)
    return patches.reshape(images * rows * columns * merge * merge, channels * temporal * patch_size * patch_size)
