"""What the robot imagines, beside its cameras, while it acts.

    lerobot-rollout ... --display_data=true --policy.live_foresight=true

After every chunk the policy's observation is offered to a thread of its own, which imagines the future from it, decodes
the pictures and hands them to LeRobot's own visualisation (rerun or foxglove), as ``observation.foresight.<slot>``.
With them comes ``observation.foresight.age_s``: seconds since the observation that they were imagined from. When it
reaches the foresight interval, the imagined moment is the present, and the picture should look like the camera's.

The control loop never waits: an offer puts the observation into a place for one and returns; what was there is dropped.
On a GPU the thread works on a stream of its own, of the lowest priority, after the chunk. It does share the processor,
and Python's lock, with the control loop. Without ``live_foresight`` nothing here is imported, and without
``--display_data`` no thread is started.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lerobot_internvla.foresight.psnr import crop, scene_box

logger = logging.getLogger(__name__)

AGE_PERIOD_S = 0.1
"""How often the age is shown, and how often at most anything is imagined: under real-time chunking a fast policy may
predict at every tick, and nobody looks at so many pictures."""

Show = Callable[[dict[str, Any]], None]
"""Takes pictures [height, width, 3] uint8 and numbers by name."""


@dataclass
class _Moment:
    observation: dict[str, Any]
    seen_at_s: float
    ready: Any = None
    """A CUDA event after which the GPU has done with the chunk; None on other devices."""


class LiveForesight:
    """Imagines in a thread of its own, from the newest observation that it was offered.

    Args:
        imagine: observation -> pictures by camera slot.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        imagine: Callable[[dict[str, Any]], Mapping[str, NDArray[np.uint8]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._imagine, self._clock = imagine, clock
        self._place = threading.Condition()
        self._seen: _Moment | None = None
        self._offered: _Moment | None = None
        self._show: Show | None = None
        self._thread: threading.Thread | None = None
        self._shown_from_s: float | None = None
        self._epoch = 0
        self._closed = False

    # ............ called by the control loop, or by an inference thread: never waits

    def observed(self, observation: Mapping[str, Any]) -> None:
        """A chunk is about to be predicted from this observation, which is not changed afterwards."""
        if self._thread is not None:
            self._seen = _Moment(dict(observation), self._clock())

    def chunk_done(self) -> None:
        """It is predicted; now the device has time to imagine."""
        moment, self._seen = self._seen, None
        if self._thread is None or moment is None:
            return
        if torch.cuda.is_available() and any(isinstance(v, Tensor) and v.is_cuda for v in moment.observation.values()):
            moment.ready = torch.cuda.Event()
            moment.ready.record()
        # The thread holds the lock for as long as it takes to swap two references.
        with self._place:
            self._offered = moment
            self._place.notify()

    def reset(self) -> None:
        """An episode begins: what was imagined in the one before is not shown any more."""
        self._seen = None
        if self._thread is not None:
            with self._place:
                self._offered = self._shown_from_s = None
                self._epoch += 1

    # ............ display

    def start(self, show: Show) -> None:
        """LeRobot displays data, so there is somebody to imagine for. Later calls do nothing."""
        if self._thread is None and not self._closed:
            self._show = show
            self._thread = threading.Thread(target=self._run, name="live foresight", daemon=True)
            self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop the thread."""
        with self._place:
            self._closed = True
            self._place.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None

    def _run(self) -> None:
        assert self._show is not None
        try:
            while True:
                with self._place:
                    self._place.wait_for(lambda: self._offered is not None or self._closed, timeout=AGE_PERIOD_S)
                    moment, self._offered = self._offered, None
                    epoch = self._epoch
                    if self._closed:
                        return
                pictures: dict[str, Any] = {}
                if moment is not None:
                    pictures = {f"foresight.{slot}": picture for slot, picture in self._imagined(moment).items()}
                with self._place:
                    if epoch != self._epoch:  # the episode ended while its future was imagined
                        continue
                    if moment is not None:
                        self._shown_from_s = moment.seen_at_s
                    shown_from_s = self._shown_from_s
                if shown_from_s is not None:
                    self._show({**pictures, "foresight.age_s": self._clock() - shown_from_s})
                if pictures:
                    with self._place:
                        self._place.wait_for(lambda: self._closed, timeout=AGE_PERIOD_S)
        except Exception:  # a picture is no reason to stop a robot
            logger.exception("Foresight is not shown any more. The rollout goes on.")

    def _imagined(self, moment: _Moment) -> Mapping[str, NDArray[np.uint8]]:
        if moment.ready is None:
            return self._imagine(moment.observation)
        stream = self._stream
        stream.wait_event(moment.ready)
        with torch.cuda.stream(stream):
            return self._imagine(moment.observation)

    @functools.cached_property
    def _stream(self) -> Any:
        return torch.cuda.Stream(priority=0)  # 0 is the lowest


def pictures_of(
    images: Float[Tensor, "1 view 3 height width"],
    frame_sizes: Mapping[str, tuple[int, int]],
    view_size: tuple[int, int],
) -> dict[str, NDArray[np.uint8]]:
    """Imagined views as pictures, without letterbox bars, by slot.

    Args:
        images: in [0, 1], views in the order of ``frame_sizes``.
        frame_sizes: slot -> height and width of the camera's own frames.
        view_size: of the model.
    """
    pictures: dict[str, NDArray[np.uint8]] = {}
    size = (images.shape[-2], images.shape[-1])
    for image, (slot, (height, width)) in zip(images[0].unbind(0), frame_sizes.items(), strict=True):
        scene = crop(image, scene_box(height, width, view_size, size))
        pictures[slot] = (scene * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return pictures


def watch(policy: Any) -> LiveForesight:
    """A live view of an InternVLAA1Policy, shown when LeRobot shows data.

    Args:
        policy: with foresight; it calls ``observed``, ``chunk_done`` and ``reset``.
    """

    def imagine(observation: dict[str, Any]) -> dict[str, NDArray[np.uint8]]:
        images = policy.predict_foresight(observation)[1].float()
        frames = policy._cameras(observation)
        sizes = {slot: (int(f.shape[-2]), int(f.shape[-1])) for slot, f in frames.items()}
        return pictures_of(images[:1], sizes, policy.config.architecture.view_size)

    view = LiveForesight(imagine)
    size = policy.config.architecture.image_tokenizer.image_size
    nothing_yet = {f"foresight.{slot}": np.full((*size, 3), 128, np.uint8) for slot in policy.camera_slots}
    _display.enter(view, nothing_yet)
    return view


_MARK = "shows_foresight"


class _Display:
    """Where we enter LeRobot's rollout: the function by which its control loop shows data."""

    def __init__(self) -> None:
        self.view: LiveForesight | None = None
        self.first: dict[str, Any] = {}

    def enter(self, view: LiveForesight, first: dict[str, Any]) -> None:
        """Show ``view`` from the next call on; ``first`` is shown once, by the loop itself.

        Rerun lays out its panes by what the very first call shows (LeRobot 0.6.1, ``log_rerun_data``).
        """
        from lerobot.rollout.strategies import core, episodic

        if self.view is not None:
            self.view.close(timeout_s=0)
        self.view, self.first = view, first
        for module in (core, episodic):
            stock: Any = getattr(module, "log_visualization_data", None)
            if stock is not None and not hasattr(stock, _MARK):
                module.log_visualization_data = self._with_foresight(stock)  # pyright: ignore[reportAttributeAccessIssue]  # a module

    def _with_foresight(self, stock: Any) -> Any:
        @functools.wraps(stock)
        def log_visualization_data(
            display_mode: str,
            observation: dict[str, Any] | None = None,
            action: dict[str, Any] | None = None,
            compress_images: bool = False,
        ) -> None:
            if self.first:
                observation = {**(observation or {}), **self.first, "foresight.age_s": 0.0}
                self.first = {}
                if self.view is not None:
                    self.view.start(
                        lambda shown: stock(display_mode, observation=shown, compress_images=compress_images)
                    )
            stock(display_mode, observation=observation, action=action, compress_images=compress_images)

        setattr(log_visualization_data, _MARK, True)
        return log_visualization_data


_display = _Display()
