"""What the robot imagines, beside its cameras, while it acts.

    lerobot-rollout ... --display_data=true --policy.live_foresight=true

After every chunk the policy's observation is offered to a thread of its own, which imagines the future from it, decodes
the pictures and hands them to LeRobot's own visualisation (rerun or foxglove), as ``observation.foresight.<slot>``.
With them comes ``observation.foresight.age_s``: seconds since the observation that they were imagined from. When it
reaches ``observation.foresight.interval_s``, the imagined moment is the present, and the picture should look like the
camera's. In rerun each camera stands above what is imagined of it, and the age has a plot of its own.

The control loop never waits: an offer puts the observation into a place for one and returns; what was there is dropped.
On a GPU the thread works on a stream of its own, of the lowest priority, after the chunk. It does share the processor,
and Python's lock, with the control loop. Without ``live_foresight`` nothing here is imported, and without
``--display_data`` no thread is started.
"""

import functools
import importlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lerobot.utils.constants import OBS_IMAGES
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
    grey = np.full((*size, 3), 128, np.uint8)
    nothing_yet: dict[str, Any] = {f"foresight.{slot}": grey for slot in policy.camera_slots}
    rate = policy.control_rate_hz
    if rate is not None:  # unknown: several robots, and it is not said yet which
        nothing_yet["foresight.interval_s"] = policy.config.interval_frames / rate
    cameras = {slot: key.removeprefix(f"{OBS_IMAGES}.") for slot, key in policy.camera_slots.items()}
    _display.enter(view, {**nothing_yet, "foresight.age_s": 0.0}, cameras)
    return view


_MARK = "shows_foresight"


class _Display:
    """Where we enter LeRobot's rollout: the function by which its control loop shows data."""

    def __init__(self) -> None:
        self.view: LiveForesight | None = None
        self.first: dict[str, Any] = {}
        self.cameras: dict[str, str] = {}

    def enter(self, view: LiveForesight, first: dict[str, Any], cameras: dict[str, str]) -> None:
        """Show ``view`` from the next call on.

        Args:
            first: shown once, by the loop itself. Rerun lays out its panes by what the very first call shows (LeRobot
                0.6.1, ``log_rerun_data``).
            cameras: slot -> the camera's name.
        """
        from lerobot.rollout.strategies import core, episodic

        if self.view is not None:
            self.view.close(timeout_s=0.0)
        self.view, self.first, self.cameras = view, first, cameras
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
            first, self.first = self.first, {}
            if not first:
                stock(display_mode, observation=observation, action=action, compress_images=compress_images)
                return
            interval = {name: value for name, value in first.items() if name == "foresight.interval_s"}

            def show(shown: dict[str, Any]) -> None:
                stock(display_mode, observation={**shown, **interval}, compress_images=compress_images)

            observation = {**(observation or {}), **first}
            stock(display_mode, observation=observation, action=action, compress_images=compress_images)
            if display_mode == "rerun":
                arrange_rerun(self.cameras, first.get("foresight.interval_s"))
            if self.view is not None:
                self.view.start(show)

        setattr(log_visualization_data, _MARK, True)
        return log_visualization_data


_display = _Display()


# ------------------------------------------------------------------------------------------------------ rerun's panes


SHOWN_S = 20.0
"""Seconds of the past in the plot of the age."""


def arrange_rerun(cameras: Mapping[str, str], interval_s: float | None) -> None:
    """Rerun's panes again, for a person to compare: LeRobot sorts them by name, the age among the joints.

        head                 | left_wrist                 | right_wrist
        foresight.head       | foresight.left_wrist       | foresight.right_wrist
        foresight: seconds old | observation              | action

    The views are those that LeRobot has made. Nothing changes where they are not found: another version of it.

    Args:
        cameras: slot -> the camera's name.
        interval_s: how far ahead is imagined; None: unknown.
    """
    from lerobot.utils.rerun_visualization import log_rerun_data

    # By name: rerun comes with LeRobot's extra "viz" alone, and whoever displays data has it.
    rerun: Any = importlib.import_module("rerun")
    rrb: Any = importlib.import_module("rerun.blueprint")
    made: Any = getattr(log_rerun_data, "blueprint", None)
    views: list[Any] = list(getattr(getattr(made, "root_container", None), "contents", ()))
    pictures = {view.name.removeprefix("observation."): view for view in views if isinstance(view, rrb.Spatial2DView)}
    plots = [view for view in views if isinstance(view, rrb.TimeSeriesView)]
    companions = {camera: pictures.pop(f"foresight.{slot}", None) for slot, camera in cameras.items()}
    imagined = {camera: view for camera, view in companions.items() if view is not None}
    if not imagined or not plots:
        logger.debug("Rerun's panes are not arranged: LeRobot's layout is %r.", made)
        return
    columns = [[pictures.pop(camera), view] if camera in pictures else [view] for camera, view in imagined.items()]
    columns += [[view] for view in pictures.values()]  # cameras that the policy does not see
    ages = ["observation.foresight.age_s", "observation.foresight.interval_s"]
    for plot in plots:
        plot.contents = [path for path in plot.contents if path not in ages]
    now = rrb.TimeRangeBoundary.cursor_relative
    age = rrb.TimeSeriesView(
        name="foresight: seconds old" + ("" if interval_s is None else f"; at {interval_s:g} (line) it shows now"),
        contents=ages,
        axis_y=None if interval_s is None else rrb.ScalarAxis(range=(0.0, 2 * interval_s)),
        plot_legend=rrb.PlotLegend(visible=False),
        time_ranges=rrb.VisibleTimeRange("log_time", start=now(seconds=-SHOWN_S), end=now()),
    )
    layout = rrb.Vertical(
        rrb.Horizontal(*(rrb.Vertical(*column) for column in columns)),
        rrb.Horizontal(age, *plots),
        row_shares=[5, 2],
    )
    rerun.send_blueprint(rrb.Blueprint(layout, collapse_panels=True))
