"""What will fail on the robot, found before it does: the answers behind ``internvla-check``.

    versions   Python, PyTorch, LeRobot and the rest against what this package asks for
    plugin     whether LeRobot's commands find the policy type, tried in a process of its own
    device     where the policy will run
    checkpoint loads, strictly
    cameras    of the dataset or robot, and the slots they go to
    joints     names, order and widths of state and action
    limits     what commands will be limited to on a robot, or that they will not
    rate       frames per second, and what the foresight interval makes of them
    latency    measured here: how long the arm waits, and how often
    memory     weights, and what is left on the device

Every answer is a ``Finding``: ok, a warning (works, and may not be what you want), or a failure (will not work). The
robot is built from its configuration and asked what it has; nothing is connected and nothing moves.
"""

import math
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from statistics import median
from typing import Any, Literal

import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.utils.constants import ACTION, OBS_STATE
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lerobot_internvla.action_space import joint_names
from lerobot_internvla.camera_slots import resolve_camera_slots, short_name
from lerobot_internvla.configuration_internvla_a1 import InternVLAA1Config
from lerobot_internvla.embodiments.limits import find_limits
from lerobot_internvla.embodiments.matching import in_another_order, plain_joint
from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.evaluation.loading import Expected, LoadedPolicy, expected_by
from lerobot_internvla.foresight.samples import interval_in_frames

DISTRIBUTION = "lerobot_policy_internvla_a1"
"""LeRobot reads this name from the installed metadata, letter by letter."""
SHOWN = ("torch", "torchvision", "transformers", "diffusers", "peft", "mujoco", "rerun-sdk")
"""Shown where installed; LeRobot and this package are shown in any case."""

Verdict = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """One answer."""

    area: str
    verdict: Verdict
    text: str
    advice: str = ""
    """What to do next, where something is to be done."""

    def as_dict(self) -> dict[str, str]:
        return {"area": self.area, "verdict": self.verdict, "text": self.text, "advice": self.advice}


@dataclass(frozen=True)
class Surroundings:
    """The robot or dataset that a policy is held against, as LeRobot describes it."""

    what: str
    """For people: "robot so101_follower", "dataset me/reach"."""
    features: Mapping[str, Any]
    """Of a LeRobot dataset: key -> dtype, shape, names."""
    fps: float | None
    robot_type: str | None
    kind: Literal["robot", "dataset"]

    @property
    def cameras(self) -> list[str]:
        return [key for key, f in self.features.items() if f["dtype"] in ("image", "video")]


def surroundings_of_dataset(meta: LeRobotDatasetMetadata) -> Surroundings:
    """A dataset's features, without depth cameras."""
    features = {key: feature for key, feature in meta.features.items() if key not in meta.depth_keys}
    return Surroundings(f"dataset {meta.repo_id}", features, float(meta.fps), meta.robot_type, "dataset")


def surroundings_of_robot(robot: Any, fps: float | None) -> Surroundings:
    """What LeRobot 0.6.1 would hand to a policy from this robot: cameras, and positions and velocities as state.

    Args:
        robot: a ``lerobot.robots.Robot``; it need not be connected.
        fps: at which it will be driven; None if nobody said.
    """
    from lerobot.utils.feature_utils import hw_to_dataset_features

    observed: dict[str, Any] = {
        name: kind
        for name, kind in robot.observation_features.items()
        if isinstance(kind, tuple) or (kind is float and name.endswith((".pos", ".vel")))
    }
    commanded: dict[str, Any] = {
        name: kind for name, kind in robot.action_features.items() if name.endswith((".pos", ".vel"))
    }
    features = {**hw_to_dataset_features(observed, "observation"), **hw_to_dataset_features(commanded, ACTION)}
    features = {key: f for key, f in features.items() if not f.get("info", {}).get("is_depth_map")}
    return Surroundings(f"robot {robot.name}", features, fps, robot.name, "robot")


# ------------------------------------------------------------------------------------------------------------ software


def check_versions() -> list[Finding]:
    """Installed packages against the requirements of this one."""
    found = [Finding("versions", "ok", f"Python {platform.python_version()} on {platform.platform()}")]
    try:
        package = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return [
            *found,
            Finding(
                "versions",
                "failure",
                f"{DISTRIBUTION} is not installed: a checkout on PYTHONPATH works from Python, and LeRobot's commands "
                "do not find it",
                "pip install -e . in the checkout",
            ),
        ]
    found.append(Finding("versions", "ok", f"{DISTRIBUTION} {package.version}"))
    shown: set[str] = set()
    for line in package.requires or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name
        shown.add(canonicalize_name(name))
        version = _version(name)
        if version is None:
            found.append(Finding("versions", "failure", f"{name} is not installed", f"pip install '{requirement}'"))
        elif not requirement.specifier.contains(version, prereleases=True):
            text = f"{name} {version}, and {DISTRIBUTION} {package.version} needs {requirement.specifier}"
            found.append(Finding("versions", "failure", text, f"pip install '{name}{requirement.specifier}'"))
        elif canonicalize_name(name) == "lerobot":
            found.append(Finding("versions", "ok", f"lerobot {version}"))
    others = {name: version for name in SHOWN if canonicalize_name(name) not in shown and (version := _version(name))}
    found.append(Finding("versions", "ok", ", ".join(f"{name} {version}" for name, version in others.items())))
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


_DISCOVER = """
import logging
logging.basicConfig(level=logging.ERROR)
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
from lerobot.configs import PreTrainedConfig
print("known policy types:", *sorted(PreTrainedConfig.get_known_choices()))
"""


def check_plugin() -> list[Finding]:
    """Whether LeRobot's commands will know the policy type, asked as they ask: by installed metadata."""
    spelled = sorted(
        {
            str(distribution.metadata["Name"])
            for distribution in metadata.distributions()
            if canonicalize_name(str(distribution.metadata["Name"])) == canonicalize_name(DISTRIBUTION)
        }
    )
    if DISTRIBUTION not in spelled:
        how = f"under the name {spelled[0]!r}" if spelled else "not at all"
        text = f"installed {how}; LeRobot looks for {DISTRIBUTION!r}, underscores included"
        return [Finding("plugin", "failure", text, "pip install -e . in the checkout, or install the released wheel")]
    finished = subprocess.run(
        [sys.executable, "-c", _DISCOVER], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    known = [line for line in finished.stdout.splitlines() if line.startswith("known policy types:")]
    if not known or "internvla_a1" not in known[-1].split():
        lines = [line for line in finished.stderr.splitlines() if line.strip()]
        text = f"LeRobot does not register internvla_a1: {lines[-1] if lines else 'without a word'}"
        return [Finding("plugin", "failure", text, f"python -c 'import {DISTRIBUTION}' shows why")]
    return [Finding("plugin", "ok", f"{DISTRIBUTION}: LeRobot's commands know the policy type internvla_a1")]


def check_device(wanted: str | None, saved: str | None = None) -> list[Finding]:
    """What this computer computes on, and whether it is what the policy asks for.

    Args:
        wanted: as typed, or else as LeRobot chose; None if there is no policy.
        saved: of the checkpoint. Where that is not here, LeRobot takes another one by itself.
    """
    devices: list[str] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties: Any = torch.cuda.get_device_properties(index)
            free = torch.cuda.mem_get_info(index)[0] / 1e9
            devices.append(f"cuda:{index} {properties.name}, {free:.1f} of {properties.total_memory / 1e9:.1f} GB free")
    if torch.backends.mps.is_available():
        devices.append("mps")
    devices.append(f"cpu, {torch.get_num_threads()} threads")
    found = [Finding("device", "ok", "; ".join(devices))]
    if wanted is not None:
        if not _is_here(wanted):
            text = f"the policy asks for {wanted}, which is not here"
            found.append(Finding("device", "failure", text, "--policy.device=cpu, or a PyTorch build with it"))
        elif saved is not None and not _is_here(saved):
            text = f"the checkpoint was saved for {saved}, which is not here: LeRobot takes {wanted} instead"
            advice = "is it fast enough? See latency below; or a PyTorch build with it"
            found.append(Finding("device", "warning", text, advice))
        elif wanted == "cpu" and len(devices) > 1:
            text = "the policy runs on the CPU, and there is an accelerator"
            found.append(
                Finding("device", "warning", text, f"--policy.device={devices[0].split(':')[0].split(',')[0]}")
            )
    return found


def _is_here(device: str) -> bool:
    try:
        kind = torch.device(device).type
    except RuntimeError:  # no device at all: a typing error
        return False
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(kind, True)


# ------------------------------------------------------------------------------------------------- policy and robot


def expected_here(config: Any, around: Surroundings) -> Expected:
    """What the policy expects of this robot or dataset.

    Raises:
        InternVLAError: a policy of several robots, and it is not clear which of them this is.
    """
    widths = {key: int(around.features[key]["shape"][0]) for key in (OBS_STATE, ACTION) if key in around.features}
    return expected_by(config, widths.get(OBS_STATE), widths.get(ACTION))


def check_cameras(
    config: Any, expected: Expected, around: Surroundings, rename_map: Mapping[str, str]
) -> list[Finding]:
    """Every camera that the policy reads against those that are there.

    Args:
        config: of any policy.
        rename_map: key there -> policy key, as ``--rename_map``.
    """
    there = {rename_map.get(key, key): key for key in around.cameras}
    wanted = expected.cameras
    missing = [key for key in wanted if key not in there]
    found: list[Finding] = []
    slots: Mapping[str, str] = {}
    if isinstance(config, InternVLAA1Config):
        try:
            slots = resolve_camera_slots(list(config.image_features), config.camera_slots)
        except InternVLAError as error:
            return [Finding("cameras", "failure", str(error))]
    slot_of = {key: slot for slot, key in slots.items()}
    for key in wanted:
        if key in missing:
            continue
        renamed = f" (renamed from {short_name(there[key])})" if there[key] != key else ""
        text = f"{short_name(key)}{renamed}" + (f" -> slot {slot_of[key]}" if key in slot_of else "")
        height, width = _size(around.features[there[key]])
        trained = tuple(config.image_features[key].shape[-2:])
        if height is None or width is None:
            text += "; its size is known when the robot is connected"
            found.append(Finding("cameras", "ok", text))
        elif abs(height * trained[1] / (width * trained[0]) - 1) > 0.02:
            text += f", {height} x {width}; the policy was trained on {trained[0]} x {trained[1]}, another shape"
            advice = "objects look stretched or cropped compared with training; record and roll out with one shape"
            found.append(Finding("cameras", "warning", text, advice))
        else:
            found.append(Finding("cameras", "ok", f"{text}, {height} x {width}"))
    if missing:
        spare = [key for key in around.cameras if rename_map.get(key, key) not in wanted]
        text = (
            f"the policy reads {', '.join(missing)}, and {around.what} has {', '.join(around.cameras) or 'no camera'}"
        )
        example = f'--rename_map=\'{{"{spare[0]}": "{missing[0]}"}}\'' if spare else "add the camera to the robot"
        found.append(Finding("cameras", "failure", text, example))
    unused = [key for new, key in there.items() if new not in wanted]
    if unused and not missing:
        text = f"not used by the policy: {', '.join(short_name(key) for key in unused)}"
        found.append(Finding("cameras", "ok", text))
    return found


def _size(feature: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Height and width of a camera feature; the last axis holds the colours. None before a camera is connected."""
    shape = feature["shape"]
    return (shape[1], shape[2]) if shape[0] == 3 and shape[-1] != 3 else (shape[0], shape[1])


def check_joints(expected: Expected, around: Surroundings) -> list[Finding]:
    """Widths, names and order of state and action against the policy's."""
    found: list[Finding] = []
    sides = (
        ("state", OBS_STATE, expected.state_dim, expected.state_names),
        ("action", ACTION, expected.action_dim, expected.action_names),
    )
    for side, key, wanted, names in sides:
        if wanted is None:
            continue
        there = around.features.get(key)
        if there is None:
            found.append(Finding("joints", "failure", f"the policy has a {side}, and {around.what} has no {key!r}"))
            continue
        width = int(there["shape"][0])
        given = joint_names(there)
        if width != wanted:
            listed = f" ({', '.join(given)})" if given else ""
            text = f"{side}: {around.what} has {width} dims{listed}, the policy {wanted}"
            trained = f"It was trained on {', '.join(names)}. " if names else ""
            found.append(Finding("joints", "failure", text, f"{trained}It is another robot: fine-tune on its data"))
        elif not names or not given:
            text = f"{side}: {width} dims; not named on both sides, so their order cannot be checked"
            found.append(Finding("joints", "warning", text, "compare the order by hand before the first rollout"))
        elif [plain_joint(n) for n in names] == [plain_joint(n) for n in given]:
            found.append(Finding("joints", "ok", f"{side}: {', '.join(given)}"))
        elif in_another_order(names, given):
            text = f"{side}: the same joints in another order: {', '.join(given)}; the policy: {', '.join(names)}"
            found.append(Finding("joints", "failure", text, "nothing reorders them: each joint gets another's"))
        else:
            text = f"{side}: other names: {', '.join(given)}; the policy: {', '.join(names)}"
            found.append(Finding("joints", "warning", text, "make sure that they are the same joints in this order"))
    return found


def check_limits(config: Any, around: Surroundings) -> list[Finding]:
    """Which limits commands will meet on their way to the robot (serving/action_limits.py), for our policies.

    Args:
        config: of any policy; of one of several robots, as ``expected_here`` left it.
    """
    there = around.features.get(ACTION)
    names = None if there is None else joint_names(there)
    if not isinstance(config, InternVLAA1Config) or not names:
        return []
    try:
        robot = config.embodiment if config.embodiments else None
        found = find_limits(config, names, robot=robot, robot_type=around.robot_type)
    except InternVLAError as error:
        return [Finding("limits", "failure", str(error))]
    if found.limits is not None:
        return [Finding("limits", "ok", f"commands are limited, {found.text}")]
    verdict = "warning" if found.advice else "ok"
    return [Finding("limits", verdict, f"commands are not limited: {found.text}", found.advice)]


def check_rate(config: Any, trained: float | None, fps: float | None) -> list[Finding]:
    """Frames per second of the robot or dataset against those that the policy learnt at.

    Args:
        trained: rate of the policy's steps; None if it notes none.
        fps: at which the policy will be driven; None if nobody said.
    """
    if fps is None:
        text = "the control rate is not given" + (f"; the policy was trained at {trained:g} fps" if trained else "")
        return [Finding("rate", "warning", text, f"--fps={trained or 30:g} here, and in lerobot-rollout")]
    if trained is None:
        ending = "" if isinstance(config, InternVLAA1Config) else f"; policy type {config.type!r} does not note its own"
        return [Finding("rate", "ok", f"{fps:g} fps{ending}")]
    found: list[Finding] = []
    if abs(trained - fps) > 1e-6:
        text = (
            f"{fps:g} fps, and the policy was trained at {trained:g} fps: every motion runs {fps / trained:.2f} times "
            "as fast"
        )
        found.append(Finding("rate", "failure", text, f"lerobot-rollout --fps={trained:g}"))
    else:
        found.append(Finding("rate", "ok", f"{fps:g} fps, as in training"))
    if isinstance(config, InternVLAA1Config) and config.use_foresight:
        try:
            frames = interval_in_frames(config, fps)
            seconds = frames / fps
            found.append(
                Finding("rate", "ok", f"the past frame is {frames} ticks old: {seconds:.3g} s, as in training")
            )
        except InternVLAError as error:
            found.append(Finding("rate", "failure", str(error)))
    return found


def fake_observation(config: Any, state_dim: int | None = None) -> dict[str, Any]:
    """One observation in the shapes that a policy reads: grey pictures, a state of zeros, a task; on the CPU.

    Args:
        state_dim: of the robot, for a policy of several; None takes the configuration's.
    """
    batch: dict[str, Any] = {"task": ["check"]}
    for key, feature in (config.input_features or {}).items():
        shape = (state_dim,) if key == OBS_STATE and state_dim is not None else feature.shape
        batch[key] = torch.full((1, *shape), 0.5 if "image" in key else 0.0)
        if isinstance(config, InternVLAA1Config) and config.use_foresight and "image" in key:
            batch[key] = batch[key][:, None].expand(-1, 2, -1, -1, -1)  # past and now
    return batch


def measure_chunk_s(policy: LoadedPolicy, repetitions: int = 5, state_dim: int | None = None) -> list[float]:
    """Seconds from an observation to a chunk in robot units, one prediction at a time, after one to warm up."""
    observation = fake_observation(policy.config, state_dim)
    device = next(policy.policy.parameters()).device
    seconds: list[float] = []
    for number in range(repetitions + 1):
        started = time.perf_counter()
        chunk = policy.predict(observation, [number])  # on the CPU: the device is done
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        if number == 0 and not bool(torch.isfinite(chunk).all()):
            raise InternVLAError(
                f"{policy.name} predicts NaN or infinite actions for a state of zeros and grey pictures. Do not let it "
                "drive a robot; look at its weights and statistics."
            )
    return seconds[1:]


def check_latency(
    config: Any, chunk_s: Sequence[float], fps: float | None, *, supports_rtc: bool = True
) -> list[Finding]:
    """What the measured time per chunk means for the arm.

    Args:
        chunk_s: from ``measure_chunk_s``.
        fps: control rate; None: no statement about the arm.
        supports_rtc: whether the policy can predict while the arm moves (real-time chunking).
    """
    typical, slowest = median(chunk_s), max(chunk_s)
    text = f"{_ms(typical)} per chunk (slowest of {len(chunk_s)}: {_ms(slowest)}), on {config.device}"
    if fps is None:
        return [Finding("latency", "ok", text)]
    steps = int(getattr(config, "n_action_steps", 1))
    chunk = int(getattr(config, "chunk_size", steps))
    lasts, tick = steps / fps, 1 / fps
    found = [Finding("latency", "ok", text)]
    wait = max(0.0, typical - tick)
    if wait == 0:
        text = f"a chunk is ready within one tick ({_ms(tick)}): the arm does not wait"
        found.append(Finding("latency", "ok", text))
    else:
        rhythm = f"every {lasts:.2g} s ({steps} actions at {fps:g} fps)"
        text = f"synchronous rollout: the arm would wait {_ms(typical)} {rhythm}"
        faster = "fewer denoising steps, a faster device, bfloat16, a lower rate, or a GPU elsewhere"
        advice = "lerobot-rollout --inference.type=rtc predicts while the arm moves" if supports_rtc else faster
        if typical >= lasts:
            text += ": it stands still more than it moves"
        found.append(Finding("latency", "warning", text, advice))
        needed = math.ceil(typical * fps)
        if not supports_rtc:
            return found
        if needed >= chunk:
            text = (
                f"{needed} ticks pass during a prediction, and a chunk has {chunk} actions: RTC cannot keep up either"
            )
            found.append(Finding("latency", "failure", text, faster))
        else:
            text = f"with RTC: {needed} of {chunk} actions pass during a prediction"
            found.append(Finding("latency", "ok", text))
    return found


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def check_memory(policy: LoadedPolicy) -> list[Finding]:
    """Weights, and the peak of this process after the predictions of ``measure_chunk_s``."""
    parameters = list(policy.policy.parameters())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    count = sum(parameter.numel() for parameter in parameters)
    text = f"{_count(count)} parameters, {_bytes(weights)}"
    device = parameters[0].device
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        text += f"; {_bytes(peak)} on the GPU at the peak, {_bytes(free)} of {_bytes(total)} free"
        if free < 0.05 * total:
            advice = "close other programs on this GPU: a camera viewer or a second policy would end in out-of-memory"
            return [Finding("memory", "warning", text, advice)]
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        text += f"; this process took {_bytes(peak * (1 if sys.platform == 'darwin' else 1024))} at its peak"
    return [Finding("memory", "ok", text)]


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _bytes(number: int | float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
