"""The understanding block written out as text ids: the prompt that the released 3B model was trained on.

Per camera slot ``[vision_start] + image_tokens x [image] + [vision_end]``, then the task's ids, padded on the right:

    <start> img img .. img <end>  <start> img .. <end>  <start> img .. <end>  put the cube in the box <pad> <pad> ..
    |---------- head ----------|  |--- left_wrist ---|  |-- right_wrist ---|  |------- prompt_tokens = 48 --------|

The raw task string: no chat template, no begin or end token, no newline. The model itself never searches for these ids
(it knows where images go from ``Architecture``); this function is the specification that its embedding is tested with.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lerobot_internvla.model.architecture import Architecture


def prompt_layout(
    architecture: Architecture,
    camera_is_present: Bool[Tensor, "batch view"],
    prompt_ids: Int[Tensor, "batch prompt"],
    prompt_is_valid: Bool[Tensor, "batch prompt"],
) -> tuple[Int[Tensor, "batch understanding"], Bool[Tensor, "batch understanding"]]:
    """Ids of the understanding block and which of them may be attended to.

    A missing camera keeps its tokens, delimiters included, and is masked as a whole: shapes never depend on the robot.
    Only Qwen3-VL frames its images with delimiters; other families get the image tokens alone.

    Returns:
        (input_ids, attention_mask), each V * ``Architecture.view_tokens`` + P long.
    """
    tokens = architecture.special_tokens
    view = [tokens.image] * architecture.image_tokens
    if architecture.view_tokens > architecture.image_tokens:
        view = [tokens.vision_start, *view, tokens.vision_end]
    batch, views = camera_is_present.shape
    image_ids = torch.tensor(view * views, dtype=prompt_ids.dtype, device=prompt_ids.device).expand(batch, -1)
    image_is_valid = camera_is_present.repeat_interleave(architecture.view_tokens, dim=1)
    return torch.cat([image_ids, prompt_ids], dim=1), torch.cat([image_is_valid, prompt_is_valid], dim=1)
