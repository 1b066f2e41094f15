"""What the policy remembers while it acts: what was seen one foresight interval ago, and latents known already.

    select_action, on every tick               frames       -> FrameHistory: exactly so many ticks ago
    observe, predict_action_chunk(tick=...)    frames, tick -> TimedFrameHistory: nearest to so many ticks ago
                                                                  |
    where a chunk is predicted                  PastAndNow: two moments -> frames [B, 2, 3, H, W] -> letterboxed views
                                                                        -> latents, each moment encoded once

**Latents stay with their moment.** The image tokenizer is frozen, so a moment that was encoded as "now" need not be
encoded again when a later chunk compares with it as "past"; nor at the start of an episode, when past and now are the
same moment; nor when the live view imagines from the observation that a chunk was just predicted from. Two rules make
the answer the same, bit for bit, whatever happens to be known already: a moment is encoded by itself (all its cameras
and environments in one call of the image tokenizer, never together with another moment, because a batch of another
size may be added up in another order); and "now" leaves its latents with the remembered moment only if the frames that
the model was given are, value by value, the bytes that were remembered. They are for every 8-bit camera, and are not
where a pipeline resizes pictures to floating point numbers between bytes.

Nothing is encoded before it is needed. A frame's future as a "past" is not certain, and on a CPU encoding it earlier
only makes another tick late; docs/performance.md has the shares.
"""

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from lerobot_internvla.errors import InternVLAError

from .history import FrameHistory, Moment, TimedFrameHistory, bytes_of_frames

logger = logging.getLogger(__name__)

Frames = dict[str, Tensor]
"""[B, 3, H, W] by camera (whatever name the caller uses throughout); uint8, or floating point in [0, 1]."""


def index_of_now(frames: int) -> int:
    """Index of "now" among 1 (now), 2 (past, now) or 3 (past, now, future) frames.

    Raises:
        InternVLAError: another number of frames.
    """
    if frames not in (1, 2, 3):
        raise InternVLAError(
            f"Got {frames} frames per camera or state; expected 1 (now), 2 (past, now) or 3 (past, now, future)."
        )
    return 0 if frames == 1 else 1


def frames_of_now(cameras: Frames) -> Frames:
    """[B, 3, H, W] by camera, of frames [B, T, 3, H, W] or [B, 3, H, W]."""
    return {name: f if f.ndim == 4 else f[:, index_of_now(f.shape[1])] for name, f in cameras.items()}


class PastAndNow:
    """Two moments side by side: what one chunk is predicted from.

    Args:
        past: what was seen one interval ago.
        now: what is seen, as it is remembered; None where it is not.
        frames: what is seen, as the policy got it.
    """

    def __init__(self, past: Moment[Frames], now: Moment[Frames] | None, frames: Frames) -> None:
        self.past, self._remembered, self._given = past, now, frames

    @functools.cached_property
    def now(self) -> Moment[Frames]:
        """The remembered moment, or one of this chunk's own where the model was given other numbers."""
        remembered = self._remembered
        is_same = remembered is not None and _are_the_bytes(remembered.frames, self._given)
        return remembered if remembered is not None and is_same else Moment(self._given)

    def frames(self) -> Frames:
        """[B, 2, 3, H, W] in [0, 1] by camera."""
        return {
            name: torch.stack([_as_unit(self.past.frames[name].to(now.device)), _as_unit(now)], dim=1)
            for name, now in self._given.items()
        }

    def latents(self, views: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Latents [B, V, 2, C, h, w] of past and now; whatever is not known yet is encoded.

        Args:
            views: ``frames`` as the model sees them, [B, V, 2, 3, height, width].
            encode: [B, V, 1, 3, height, width] -> [B, V, 1, C, h, w].
        """
        for moment, place in ((self.now, 1), (self.past, 0)):
            if moment.latents is None:
                moment.latents = encode(views[:, :, place : place + 1])
        assert self.past.latents is not None and self.now.latents is not None
        return torch.cat([self.past.latents, self.now.latents], dim=2)


class ObservationMemory:
    """Moments of one episode.

    While one thread observes, another may recall, and any may reset: what is under way then ends with what it began.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()
        self.reset()

    def reset(self) -> None:
        """An episode begins."""
        self._dense: FrameHistory[Frames] | None = None
        self._timed: TimedFrameHistory[Frames] | None = None

    # ............ callers that see every tick

    def push(self, frames: Frames, interval: int) -> PastAndNow:
        """Remember the frames of this tick.

        Args:
            interval: ticks between past and now; the same until ``reset``.

        Raises:
            InternVLAError: frames that are no images, or of another size than before.
        """
        if (history := self._dense) is None:
            history = self._dense = FrameHistory(interval)
        now = history.push(frames)
        self._tell_size(now, interval + 1)
        return PastAndNow(history.past_moment(), now, frames)

    # ............ callers that see frames now and then

    def observe(self, frames: Frames, tick: float, interval: int) -> None:
        """Remember frames taken at ``tick``, in control ticks since any moment.

        Raises:
            InternVLAError: a tick before that of the frames before; as ``push``.
        """
        self._observed(frames, tick, interval)

    def _observed(self, frames: Frames, tick: float, interval: int) -> TimedFrameHistory[Frames]:
        if (history := self._timed) is None:
            history = self._timed = TimedFrameHistory(float(interval))
        history.push(tick, frames)
        # Twice the interval, and now: an inference thread asks for the past of a moment that is over.
        self._tell_size(history.moments[-1], 2 * interval + 1)
        return history

    def recall(self, frames: Frames, tick: float, interval: int) -> PastAndNow:
        """What was seen one interval before ``tick``, beside the frames of ``tick``; remembers them if they are news.

        A past that is more than a tick away from the moment asked for is told, once.

        Raises:
            InternVLAError: as ``observe``; a moment so long ago that its past is forgotten; cameras that were not
                observed.
        """
        if (history := self._timed) is None or history.newest_s < tick:
            history = self._observed(frames, tick, interval)
        past, gap = history.past_moment(tick), history.gap_s(tick)
        if missing := sorted(set(frames) - set(past.frames)):
            raise InternVLAError(
                f"The past of {', '.join(missing)} is not known: observe() was given {', '.join(sorted(past.frames))}. "
                "Give it all cameras that chunks are predicted from."
            )
        if gap > 1 and self._is_news("sparse"):
            logger.warning(
                "The past frame is %.1f ticks away from the moment that the model was trained with (%g ticks ago): "
                "frames arrive too rarely, or a camera was late. With LeRobot's robot_client pass "
                "--chunk_size_threshold=1.0; otherwise see why the control loop is slow.",
                gap,
                history.interval_s,
            )
        return PastAndNow(past, history.moment_at(tick), frames)

    @property
    def newest_tick(self) -> float | None:
        """Of the last frames that ``observe`` got in this episode."""
        return None if self._timed is None else self._timed.newest_s

    # ............ callers that keep no history

    def pair_up(self, cameras: Frames) -> Frames:
        """[B, 2, 3, H, W] by camera, whatever was given; a past that nobody knows is taken to be now, and told once.

        Args:
            cameras: [B, T, 3, H, W] with (past, now) or (past, now, future), or [B, 3, H, W].
        """
        if all(f.ndim == 5 and f.shape[1] >= 2 for f in cameras.values()):
            return {name: frames[:, :2] for name, frames in cameras.items()}
        if self._is_news("no history"):
            logger.warning(
                "predict_action_chunk got single frames and does not know when they were taken: the past frame is "
                "taken to be the current one, as at the start of an episode. select_action keeps the history by "
                "itself; pass tick= (the moment, in control ticks) to have it kept here, or frames [B, 2, 3, H, W] "
                "(past, now)."
            )
        return {name: torch.stack([frames, frames], dim=1) for name, frames in frames_of_now(cameras).items()}

    # ............ memory

    @property
    def moments(self) -> tuple[Moment[Frames], ...]:
        """All that is remembered of this episode."""
        return tuple(m for history in (self._dense, self._timed) if history is not None for m in history.moments)

    @property
    def frame_bytes(self) -> int:
        """What the remembered frames occupy now."""
        return bytes_of_frames(self.moments)

    @property
    def latent_bytes(self) -> int:
        """What the latents of remembered moments occupy now; float32."""
        known = [moment.latents for moment in self.moments if moment.latents is not None]
        return sum(latents.numel() * latents.element_size() for latents in known)

    def _tell_size(self, moment: Moment[Frames], count: int) -> None:
        if self._is_news("size"):
            each = bytes_of_frames([moment])
            logger.info(
                "Frames of the last %d ticks are remembered (%d cameras, one byte per value): %.1f MB.",
                count,
                len(moment.frames),
                count * each / 1e6,
            )

    def _is_news(self, what: str) -> bool:
        """Whether this was not told yet: once per policy is enough."""
        if what in self._told:
            return False
        self._told.add(what)
        return True


def _as_unit(frames: Tensor) -> Tensor:
    """Frames in [0, 1], float."""
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames


def _are_the_bytes(remembered: Frames, given: Frames) -> bool:
    """Whether the model would see the same numbers in the one as in the other."""
    for name, frames in given.items():
        if name not in remembered or frames.dtype not in (torch.uint8, torch.float32):
            return False
        stored = remembered[name].to(frames.device)
        if not torch.equal(stored if frames.dtype == torch.uint8 else _as_unit(stored), frames):
            return False
    return True
