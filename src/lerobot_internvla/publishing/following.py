"""Publishing on LeRobot versions after 0.6.1, where the hook is no longer a method of the policy."""

import functools
import sys
from typing import Any


def follow_lerobot() -> None:
    """Let LeRobot versions after 0.6.1 publish our policies through ``publish_training``.

    0.6.1 asks the policy itself (``push_model_to_hub``). Later versions call a function,
    ``lerobot.common.train_utils.publish_trained_model``, which leaves no say in train_config.json and its local paths.
    Where that function exists it is wrapped, once; other policies go on to the original. On 0.6.1 nothing happens.
    """
    train_utils = sys.modules.get("lerobot.common.train_utils")
    original = getattr(train_utils, "publish_trained_model", None)
    if original is None or hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def publish_trained_model(
        cfg: Any,
        model: Any,
        preprocessor: Any = None,
        postprocessor: Any = None,
        dataset_meta: Any = None,
        *,
        peft_model: Any | None = None,
        **kwargs: Any,
    ) -> Any:
        if getattr(model, "name", None) != "internvla_a1":
            return original(cfg, model, preprocessor, postprocessor, dataset_meta, peft_model=peft_model, **kwargs)
        processors = [pipeline for pipeline in (preprocessor, postprocessor) if pipeline is not None]
        from .upload import publish_training

        publish_training(model, cfg, peft_model=peft_model, processors=processors)
        return None

    for module in list(sys.modules.values()):  # lerobot-train has imported it by name
        if getattr(module, "__dict__", {}).get("publish_trained_model") is original:
            vars(module)["publish_trained_model"] = publish_trained_model
