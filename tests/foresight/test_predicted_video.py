"""Stock lerobot-eval with --policy.save_predicted_video=true writes what the policy imagined, in step with the
episode.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import gymnasium as gym
import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.scripts import lerobot_eval

from lerobot_internvla import InternVLAA1Policy
from lerobot_internvla.testing import tiny_batch, tiny_config, tiny_policy

STEPS, CHUNK, INTERVAL = 13, 5, 3
SIZES = {"head": (48, 64), "left_wrist": (64, 64)}


class Film(gym.Env):
    """Shows the same film whatever the robot does: a square that moves to the right."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}
    task = task_description = "watch"

    def __init__(self, render_mode: str = "rgb_array") -> None:
        self.render_mode = render_mode
        pictures = {name: gym.spaces.Box(0, 255, (*size, 3), np.uint8) for name, size in SIZES.items()}
        arm = gym.spaces.Box(-10, 100, (4,), np.float64)
        self.observation_space = gym.spaces.Dict({"pixels": gym.spaces.Dict(pictures), "agent_pos": arm})
        self.action_space = gym.spaces.Box(-100, 100, (4,), np.float32)

    def observe(self, tick: int) -> dict[str, Any]:
        pictures = {name: np.full((*size, 3), 60, np.uint8) for name, size in SIZES.items()}
        for picture in pictures.values():
            picture[20:30, 3 * tick : 3 * tick + 10] = (240, 160, 20)
        return {"pixels": pictures, "agent_pos": np.full(4, 0.1 * tick)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        self.tick = 0
        return self.observe(0), {"is_success": False}

    def step(self, action):
        self.tick += 1
        return self.observe(self.tick), 0.0, False, False, {"is_success": False}

    def render(self):
        return self.observe(self.tick)["pixels"]["head"]


gym.register("internvla_tests/Film-v0", entry_point=Film, max_episode_steps=STEPS)


@EnvConfig.register_subclass("internvla_test_film")
@dataclass
class FilmConfig(EnvConfig):
    fps: int = 10
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (4,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (4,)),
            **{f"pixels/{name}": PolicyFeature(FeatureType.VISUAL, (*size, 3)) for name, size in SIZES.items()},
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            "action": "action",
            "agent_pos": "observation.state",
            **{f"pixels/{name}": f"observation.images.{name}" for name in SIZES},
        }
    )

    @property
    def gym_id(self) -> str:
        return "internvla_tests/Film-v0"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"render_mode": "rgb_array"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with its processors, as lerobot-train leaves them."""
    from lerobot_internvla.processor_internvla_a1 import make_internvla_a1_pre_post_processors

    folder = tmp_path_factory.mktemp("eval") / "policy"
    config = tiny_config(cameras=list(SIZES), foresight_interval=INTERVAL, n_action_steps=CHUNK, chunk_size=10)
    tiny_policy(config).save_pretrained(folder)
    for processor in make_internvla_a1_pre_post_processors(config):
        processor.save_pretrained(folder)
    return folder


def evaluate(monkeypatch, *flags: str) -> dict[str, np.ndarray]:
    """Run the stock command; the frames that it hands to its video writer, by file name."""
    written: dict[str, np.ndarray] = {}
    write_video = lerobot_eval.write_video

    def keep(path, frames, fps):
        written[Path(path).name] = np.stack(list(frames))
        write_video(path, frames, fps)

    monkeypatch.setattr(lerobot_eval, "write_video", keep)
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", "--env.type=internvla_test_film", "--seed=3", *flags])
    lerobot_eval.main()
    return written


def expected(folder: Path, start: int) -> np.ndarray:
    """What the policy imagines at tick ``start``, its cameras side by side, magnified three times."""
    policy, film = InternVLAA1Policy.from_pretrained(folder), Film()
    past, now = film.observe(max(0, start - INTERVAL)), film.observe(start)
    batch: dict[str, Any] = {"observation.state": torch.tensor(now["agent_pos"], dtype=torch.float32)[None]}
    for name in SIZES:
        pair = np.stack([past["pixels"][name], now["pixels"][name]])
        batch[f"observation.images.{name}"] = torch.from_numpy(pair).permute(0, 3, 1, 2)[None].float() / 255
    _, images = policy.predict_foresight({**batch, "task": ["watch"]})
    picture = torch.cat(list(images[0]), dim=-1).permute(1, 2, 0)
    return (picture * 255).round().byte().numpy().repeat(3, axis=0).repeat(3, axis=1)


def test_stock_eval_writes_the_imagined_episode(saved, tmp_path, monkeypatch):
    written = evaluate(
        monkeypatch,
        f"--policy.path={saved}",
        "--policy.device=cpu",
        "--policy.save_predicted_video=true",
        "--eval.n_episodes=2",
        "--eval.batch_size=1",
        f"--output_dir={tmp_path}",
    )
    for number in (0, 1):
        path = tmp_path / "videos" / "eval_film"
        (path,) = tmp_path.glob(f"videos/**/pred_episode_{number}.mp4")
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == STEPS
        imagined = written[path.name]
        assert len(imagined) == len(written[f"eval_episode_{number}.mp4"]) == STEPS, "the two run in step"
        for start in range(0, STEPS, CHUNK):
            frame = expected(saved, start)
            for shown in imagined[start : start + CHUNK]:
                assert shown.shape == frame.shape == (192, 384, 3)
                assert np.abs(shown.astype(int) - frame).max() <= 1
        assert (imagined[0] != imagined[CHUNK]).any()
        # The head camera is 48 x 64: its letterbox bars are black.
        assert (imagined[:, :24, :192] == 0).all()


def test_without_the_flag_nothing_is_imagined(saved, tmp_path, monkeypatch):
    written = evaluate(
        monkeypatch,
        f"--policy.path={saved}",
        "--policy.device=cpu",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        f"--output_dir={tmp_path}",
    )
    assert list(written) == ["eval_episode_0.mp4"]
    assert not list(tmp_path.glob("**/pred_*"))


def test_the_action_does_not_depend_on_whether_somebody_watches():
    config = tiny_config(cameras=list(SIZES))
    noise = torch.randn(2, config.chunk_size, 32)
    actions = []
    for watched in (False, True):
        policy = tiny_policy(tiny_config(cameras=list(SIZES), save_predicted_video=watched))
        actions.append(policy.select_action(tiny_batch(config, moment="tick"), noise=noise))
        assert (policy.last_predicted_latents is not None) == watched
    torch.testing.assert_close(*actions)


def test_latents_are_offered_on_every_step_until_the_next_chunk_and_gone_after_reset():
    policy = tiny_policy(tiny_config(cameras=list(SIZES), save_predicted_video=True, n_action_steps=2))
    batches = [tiny_batch(policy.config, moment="tick", seed=seed) for seed in range(3)]
    offered = []
    for batch in batches:
        policy.select_action(batch)
        offered.append(policy.last_predicted_latents)
        policy.last_predicted_latents = None  # as lerobot-eval does
    assert offered[0].shape == (2, 2 * 48, 1, 16, 16)
    assert torch.equal(offered[0], offered[1])
    assert not torch.equal(offered[1], offered[2])
    policy.reset()
    assert policy.last_predicted_latents is None


def test_a_chunks_imagination_is_decoded_once(monkeypatch):
    policy = tiny_policy(tiny_config(cameras=list(SIZES)))
    decoded = []
    decode = policy.model.decode_latents

    def count(latents):
        decoded.append(len(latents))
        return decode(latents)

    monkeypatch.setattr(policy.model, "decode_latents", count)
    chunks = torch.randn(2, 2 * 48, 11, 16, 16)
    video = policy.decode_predicted_latents(chunks.repeat_interleave(4, dim=2))
    assert video.shape == (44, 192, 384, 3)
    assert video.dtype == torch.uint8
    assert sum(decoded) == 11
    assert max(decoded) <= 8, "a long episode is decoded in pieces"
    assert torch.equal(video[0], video[3])
    assert not torch.equal(video[3], video[4])
