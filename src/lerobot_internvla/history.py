"""Frames by age: the model compares now with one foresight interval ago, so somebody has to remember.

``FrameHistory`` serves callers that see every control tick (``select_action`` in ``lerobot-eval`` and synchronous
rollouts). ``TimedFrameHistory`` serves callers that see frames now and then (real-time chunking, an inference server)
and addresses them by time. Both answer with the first frame until enough time has passed, exactly as training clamps
the past at the start of an episode. Nothing here reads a clock: time comes in as an argument.

Frames are a tensor [batch, ...], one row per environment, or a dictionary of such tensors (camera name -> frames), so
that cameras of different sizes need no common shape. They are stored as uint8, a quarter of float32. That is exact for
every 8-bit camera, also when its frames arrive as value / 255 in [0, 1]; give the frames as the camera made them and
letterbox afterwards, so that past and present go through the same arithmetic.

What is stored is a ``Moment``: frames, and beside them what somebody worked out from them. Both are forgotten together.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import torch
from torch import Tensor

from lerobot_internvla.errors import InternVLAError

Frames = Tensor | dict[str, Tensor]
"""uint8 in 0..255 or floating point in [0, 1]; [batch, ...] or camera name -> [batch, ...]."""


@dataclass(eq=False)
class Moment[FramesT: (Tensor, dict[str, Tensor])]:
    """What was seen at one moment. A moment is equal to itself only: two may look alike."""

    frames: FramesT
    """uint8; read only, the history keeps the same tensors."""
    latents: Tensor | None = None
    """Of these frames, where they have been encoded already (observation_memory.py)."""


class FrameHistory[FramesT: (Tensor, dict[str, Tensor])]:
    """The frame of exactly ``interval`` ticks ago, for callers that push once per control tick.

    Args:
        interval: ticks between past and now, at least 1 (0.5 s at 30 Hz are 15).

    Raises:
        InternVLAError: ``interval`` is not a positive integer.
    """

    def __init__(self, interval: int) -> None:
        if interval < 1:
            raise InternVLAError(
                f"The history interval is {interval} ticks; expected at least 1. "
                "At a low frame rate choose a longer interval."
            )
        self.interval = interval
        self._moments: deque[Moment[FramesT]] = deque(maxlen=interval + 1)

    def reset(self) -> None:
        """Forget everything; call it when an episode begins. The next batch may have another size."""
        self._moments.clear()

    def push(self, frames: FramesT) -> Moment[FramesT]:
        """Remember the frames of this tick. They are copied: the caller may reuse its buffers.

        Returns:
            the moment as it is remembered.

        Raises:
            InternVLAError: other cameras, batch size or resolution than since the last reset, or values that are no
                images (checked on the first push after a reset only, because reading values back stalls a GPU).
        """
        if self._moments:
            _check_same_shapes(frames, self._moments[-1].frames)
        else:
            _check_values(frames)
        moment = Moment(_map(_as_uint8, frames))
        self._moments.append(moment)
        return moment

    def past(self) -> FramesT:
        """The uint8 frames of ``past_moment``. Read only: the history keeps the same tensors."""
        return self.past_moment().frames

    def past_moment(self) -> Moment[FramesT]:
        """The moment ``interval`` ticks before the newest push; the first one while the episode is younger.

        Raises:
            InternVLAError: nothing was pushed since the last reset.
        """
        if not self._moments:
            raise InternVLAError("The frame history is empty; push the frames of the current tick first.")
        # The ring holds interval + 1 entries, so its oldest is the answer: interval ticks old once the ring is full,
        # the first frame of the episode before.
        return self._moments[0]

    @property
    def moments(self) -> tuple[Moment[FramesT], ...]:
        """All that is remembered, oldest first."""
        return tuple(self._moments)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the stored frames occupy now; at most interval + 1 times one batch of frames."""
        return bytes_of_frames(self._moments)


class _TimedMoment(NamedTuple):
    ordinal: int
    """How many frames were stored before this one since the last reset."""
    timestamp_s: float
    moment: Moment[Any]


class TimedFrameHistory[FramesT: (Tensor, dict[str, Tensor])]:
    """The frame nearest in time to ``interval_s`` ago, for callers that push at irregular moments.

    One thread may push while another asks: a push replaces an immutable tuple. (No lock on purpose: a policy that
    holds one can be neither copied nor pickled.)

    Args:
        interval_s: seconds between past and now, positive.
        max_frames: upper bound of stored frames, at least 4. Frames that follow the last stored one by less than
            ``2 * interval_s / (max_frames - 2)`` seconds are not stored (with the default and 0.5 s: 8 ms, so nothing
            is lost up to about 125 frames per second).

    Raises:
        InternVLAError: arguments out of range.
    """

    def __init__(self, interval_s: float, max_frames: int = 128) -> None:
        if not interval_s > 0 or max_frames < 4:
            raise InternVLAError(
                f"TimedFrameHistory(interval_s={interval_s}, max_frames={max_frames}): expected a positive interval "
                "in seconds and at least 4 frames."
            )
        self.interval_s = interval_s
        # Frames are kept for twice the interval: a caller may ask for a moment up to interval_s before the newest
        # frame, as an inference thread does that lags behind the control loop.
        self._kept_s = 2 * interval_s
        self._spacing_s = self._kept_s / (max_frames - 2)
        self._newest_s = float("-inf")
        self._entries: tuple[_TimedMoment, ...] = ()

    def reset(self) -> None:
        """Forget everything; call it when an episode begins. The clock may start anew."""
        self._entries = ()
        self._newest_s = float("-inf")

    def push(self, timestamp_s: float, frames: FramesT) -> None:
        """Remember frames taken at ``timestamp_s``, in seconds of any clock that does not run backwards.

        Raises:
            InternVLAError: as ``FrameHistory.push``, or a timestamp older than the newest one.
        """
        if not timestamp_s >= self._newest_s:
            raise InternVLAError(
                f"Frames of {timestamp_s} s arrived after those of {self._newest_s} s; expected one clock that does "
                "not run backwards. Call reset() between episodes."
            )
        entries = self._entries
        if entries:
            _check_same_shapes(frames, entries[-1].moment.frames)
            if timestamp_s - entries[-1].timestamp_s < self._spacing_s:
                self._newest_s = timestamp_s
                return
        else:
            _check_values(frames)
        ordinal = entries[-1].ordinal + 1 if entries else 0
        entries = (*entries, _TimedMoment(ordinal, timestamp_s, Moment(_map(_as_uint8, frames))))
        # Of the frames older than the horizon only the youngest can still be the nearest to an allowed moment.
        horizon_s = timestamp_s - self._kept_s
        expired = sum(entry.timestamp_s <= horizon_s for entry in entries)
        self._entries = entries[max(0, expired - 1) :]
        self._newest_s = timestamp_s

    def past(self, now_s: float) -> FramesT:
        """The uint8 frames nearest in time to ``now_s - interval_s`` (the older ones of two equally near).

        The first frames while the episode is younger than the interval. Read only, as ``FrameHistory.past``.

        Raises:
            InternVLAError: nothing was pushed since the last reset, or the moment lies so far back that its frames
                were dropped already.
        """
        return self.past_moment(now_s).frames

    def past_moment(self, now_s: float) -> Moment[FramesT]:
        """The moment whose frames ``past`` gives.

        Raises:
            InternVLAError: as ``past``.
        """
        return self._nearest(now_s).moment

    def moment_at(self, timestamp_s: float) -> Moment[FramesT] | None:
        """The moment of exactly this time; None where none was stored then."""
        return next((entry.moment for entry in self._entries if entry.timestamp_s == timestamp_s), None)

    def gap_s(self, now_s: float) -> float:
        """How far in time the frames of ``past(now_s)`` are from the moment asked for; 0 at the start of an episode.

        Raises:
            InternVLAError: as ``past``.
        """
        found = self._nearest(now_s)
        wanted_s = now_s - self.interval_s
        return 0.0 if found.ordinal == 0 and wanted_s < found.timestamp_s else abs(found.timestamp_s - wanted_s)

    def _nearest(self, now_s: float) -> _TimedMoment:
        entries = self._entries
        if not entries:
            raise InternVLAError("The frame history is empty; push a frame first.")
        wanted_s = now_s - self.interval_s
        if wanted_s < entries[0].timestamp_s and entries[0].ordinal > 0:
            raise InternVLAError(
                f"Frames of {wanted_s} s were asked for, but the oldest kept are of {entries[0].timestamp_s} s; ask "
                f"no later than {self.interval_s} s after a newer frame arrived, and use one clock for push and past."
            )
        return min(entries, key=lambda entry: abs(entry.timestamp_s - wanted_s))

    @property
    def newest_s(self) -> float:
        """When the newest frames were taken; minus infinity before the first."""
        return self._newest_s

    @property
    def moments(self) -> tuple[Moment[FramesT], ...]:
        """All that is remembered, oldest first."""
        return tuple(entry.moment for entry in self._entries)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the stored frames occupy now; at most max_frames times one batch of frames."""
        return bytes_of_frames(self.moments)


def bytes_of_frames(moments: Iterable[Moment[Any]]) -> int:
    """What the frames of these moments occupy in memory."""
    tensors = [tensor for moment in moments for tensor in _named(moment.frames).values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _map[FramesT: (Tensor, dict[str, Tensor])](function: Callable[[Tensor], Tensor], frames: FramesT) -> FramesT:
    if isinstance(frames, Tensor):
        return function(frames)
    return {name: function(tensor) for name, tensor in frames.items()}


def _named(frames: Frames) -> dict[str, Tensor]:
    return {"frames": frames} if isinstance(frames, Tensor) else frames


def _as_uint8(frames: Tensor) -> Tensor:
    if frames.dtype == torch.uint8:
        return frames.detach().clone()
    frames = frames.detach()
    if _is_plain_picture(frames):
        # One pass over the values. This runs on every control tick, and with three 480 x 640 cameras torch, whose cast
        # to uint8 goes value by value, took longer than everything else. The same bytes: test_history.py.
        rows = frames.reshape(-1, frames.shape[-1]).numpy()
        return torch.from_numpy(cv2.convertScaleAbs(rows, alpha=255.0)).reshape(frames.shape)
    return (frames * 255).round_().clamp_(0, 255).to(torch.uint8)


def _is_plain_picture(frames: Tensor) -> bool:
    """float32 on the CPU, all of it in [0, 1]: OpenCV takes magnitudes, so it must not meet a negative value."""
    if frames.dtype != torch.float32 or frames.device.type != "cpu":
        return False
    low, high = frames.aminmax()
    return bool(low >= 0) and bool(high <= 1)  # NaN is neither


def _check_values(frames: Frames) -> None:
    problems: list[str] = []
    for name, tensor in _named(frames).items():
        if tensor.is_floating_point():
            low, high = (value.item() for value in torch.aminmax(tensor))
            if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
                problems.append(f"{name} has values from {low:.4g} to {high:.4g}")
        elif tensor.dtype != torch.uint8:
            problems.append(f"{name} has dtype {tensor.dtype}")
    if problems:
        raise InternVLAError(
            f"Frames do not look like images: {'; '.join(problems)}. "
            "Expected uint8 in 0..255 or floating point in [0, 1], before any normalisation."
        )


def _check_same_shapes(frames: Frames, known: Frames) -> None:
    got = {name: tuple(tensor.shape) for name, tensor in _named(frames).items()}
    expected = {name: tuple(tensor.shape) for name, tensor in _named(known).items()}
    if got != expected:
        raise InternVLAError(
            f"The frames changed from {expected} to {got} within an episode (number of environments, cameras or "
            "resolution). Call policy.reset() when a rollout begins."
        )
