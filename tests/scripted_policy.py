"""A policy that answers what it is told and remembers what it was shown; for open-loop evaluation."""

from types import SimpleNamespace
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy

from lerobot_internvla.evaluation.loading import LoadedPolicy

CAMERAS = {"head": (48, 64), "left_wrist": (64, 64)}
JOINTS = ("shoulder", "elbow", "wrist", "gripper")
LENGTHS = (12, 9, 7)
INTERVAL = 3
"""Of the dataset and of our policy in tests/evaluation."""


class Scripted(PreTrainedPolicy):
    """Answers with a constant."""

    config_class = PreTrainedConfig
    name = "scripted"

    def __init__(self, answer: float = 0.0, *, chunk_size: int = 6, n_action_steps: int = 3, **config: Any) -> None:
        torch.nn.Module.__init__(self)
        self.answer, self.shown = answer, list[dict[str, Any]]()
        plain: dict[str, Any] = {
            **{"type": "scripted", "chunk_size": chunk_size, "n_action_steps": n_action_steps},
            **{"observation_delta_indices": None, "image_features": {}},
            **{"robot_state_feature": None, "action_feature": None},
        }
        self.config = SimpleNamespace(**(plain | config))

    def reset(self) -> None: ...

    def get_optim_params(self) -> Any: ...

    def forward(self, batch: dict[str, Any]) -> Any: ...

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Any: ...

    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        self.shown.append(batch)
        return torch.full((len(batch["task"]), self.config.chunk_size, len(JOINTS)), self.answer)


class Oracle(Scripted):
    """Knows the demonstrations by heart: it recognises the state, and answers what was done after it."""

    def __init__(self, recorded: list[tuple[torch.Tensor, torch.Tensor]], **options: Any) -> None:
        super().__init__(**options)
        self.recorded = recorded

    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        return torch.stack([self.after(state) for state in batch["observation.state"]])

    def after(self, state: torch.Tensor) -> torch.Tensor:
        for states, actions in self.recorded:
            found = (states - state).abs().sum(dim=1) < 1e-6
            if bool(found.any()):
                start = int(found.float().argmax())
                padded = torch.cat([actions, torch.full((self.config.chunk_size, len(JOINTS)), 99.0)])
                return padded[start : start + self.config.chunk_size]
        raise AssertionError("an observation that is not in the dataset")


def loaded(policy: Scripted, name: str = "scripted") -> LoadedPolicy:
    """With processors that do nothing."""
    return LoadedPolicy(name, "", policy, dict, lambda chunks: chunks)


def scripted(answer: float = 0.0, **options: Any) -> LoadedPolicy:
    return loaded(Scripted(answer, **options))
