"""Live foresight: shown beside the cameras, dropped rather than waited for, and nothing at all when it is off."""

import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.foresight import live
from lerobot_internvla.foresight.live import LiveForesight
from lerobot_internvla.testing import tiny_batch, tiny_config, tiny_policy

CAMERAS = {"head": (48, 64), "left_wrist": (64, 64)}


def wait_until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def offer(view, observation):
    view.observed(observation)
    view.chunk_done()


@pytest.fixture
def shown():
    return []


@pytest.fixture
def viewer(shown):
    """A view that was started, whose imagination is a picture of the observation's number."""
    views = []

    def make(imagine=lambda o: {"head": np.full((2, 2, 3), o["number"], np.uint8)}, **options):
        view = LiveForesight(imagine, **options)
        view.start(shown.append)
        views.append(view)
        return view

    yield make
    for view in views:
        view.close()


def pictures(shown):
    return [int(entry["foresight.head"][0, 0, 0]) for entry in shown if "foresight.head" in entry]


def test_the_control_loop_never_waits_and_old_observations_are_dropped(viewer, shown):
    may_go_on, begun = threading.Event(), threading.Event()

    def slow(observation):
        begun.set()
        assert may_go_on.wait(20)
        return {"head": np.full((2, 2, 3), observation["number"], np.uint8)}

    view = viewer(slow)
    offer(view, {"number": 0})
    assert begun.wait(20)
    started = time.monotonic()
    for number in range(1, 100):
        offer(view, {"number": number})
    assert time.monotonic() - started < 1.0, "imagining takes as long as it likes, and nobody waits for it"
    may_go_on.set()
    wait_until(lambda: len(pictures(shown)) == 2)
    time.sleep(0.3)
    assert pictures(shown) == [0, 99]


def test_the_age_is_that_of_the_observation_and_grows(viewer, shown):
    now = [100.0]
    view = viewer(clock=lambda: now[0])
    view.observed({"number": 1})
    now[0] = 100.2  # the chunk took so long
    view.chunk_done()
    wait_until(lambda: shown)
    assert shown[0]["foresight.age_s"] == pytest.approx(0.2)
    now[0] = 100.7
    wait_until(lambda: shown[-1]["foresight.age_s"] == pytest.approx(0.7))
    assert "foresight.head" not in shown[-1], "the same picture is not sent twice"


def test_a_policy_that_predicts_all_the_time_is_not_imagined_all_the_time(viewer, shown):
    view = viewer()
    started = time.monotonic()
    while time.monotonic() - started < 0.55:
        offer(view, {"number": 1})
        time.sleep(0.005)
    assert 2 <= len(pictures(shown)) <= 7, "ten pictures a second at most"


def test_nothing_of_an_episode_is_shown_in_the_next(viewer, shown):
    may_go_on, begun = threading.Event(), threading.Event()

    def slow(observation):
        begun.set()
        assert may_go_on.wait(20)
        return {"head": np.zeros((2, 2, 3), np.uint8)}

    view = viewer(slow)
    offer(view, {})
    assert begun.wait(20)
    view.reset()
    may_go_on.set()
    time.sleep(0.4)
    assert shown == []


def test_a_failure_ends_the_view_and_not_the_rollout(viewer, shown, caplog):
    view = viewer(lambda observation: 1 / 0)
    offer(view, {})
    wait_until(lambda: "Foresight is not shown any more" in caplog.text)
    offer(view, {})
    view.reset()


def test_without_a_display_there_is_no_thread():
    view = LiveForesight(lambda observation: pytest.fail("nobody looks"))
    before = threading.active_count()
    offer(view, {})
    view.reset()
    assert threading.active_count() == before


@pytest.fixture
def logged(monkeypatch):
    """What LeRobot's control loop shows, instead of rerun."""
    from lerobot.rollout.strategies import core, episodic

    calls = []

    def log(display_mode, observation=None, action=None, compress_images=False):
        calls.append((threading.current_thread().name, display_mode, dict(observation or {}), action, compress_images))

    for module in (core, episodic):
        monkeypatch.setattr(module, "log_visualization_data", log)
    yield calls
    if live._display.view is not None:
        live._display.view.close()
    live._display.view, live._display.first = None, {}


def test_a_rollout_that_displays_data_shows_what_the_policy_imagines(logged):
    from lerobot.rollout.strategies.core import RolloutStrategy

    policy = tiny_policy(tiny_config(cameras=list(CAMERAS), live_foresight=True, n_action_steps=3, fps=10.0))
    cfg = SimpleNamespace(display_data=True, display_mode="foxglove", display_compressed_images=True)
    context = SimpleNamespace(cfg=cfg)
    batch = {key: value[:1] for key, value in tiny_batch(policy.config, moment="tick").items()}
    for slot, size in CAMERAS.items():  # as cameras see: 256 values, which the history keeps exactly
        batch[f"observation.images.{slot}"] = torch.randint(256, (1, 3, *size)) / 255
    RolloutStrategy._log_telemetry({"elbow": 0.5}, {"elbow": 1.0}, context)
    policy.select_action(batch)
    wait_until(lambda: any(name == "live foresight" for name, *_ in logged))
    RolloutStrategy._log_telemetry({"elbow": 0.6}, {"elbow": 1.1}, context)

    first = logged[0]
    assert first[0] == threading.current_thread().name and first[2]["elbow"] == 0.5
    assert {"foresight.head", "foresight.left_wrist", "foresight.age_s"} <= set(first[2]), "rerun lays out panes once"
    assert first[2]["foresight.interval_s"] == pytest.approx(policy.config.interval_frames / policy.config.fps)
    mine = next(entry for entry in logged if entry[0] == "live foresight")
    assert mine[2]["foresight.interval_s"] == first[2]["foresight.interval_s"], "a line beside the age's"
    assert (mine[1], mine[3], mine[4]) == ("foxglove", None, True)
    last = [entry for entry in logged if "elbow" in entry[2]][-1]
    assert last[2] == {"elbow": 0.6} and last[3] == {"elbow": 1.1}, "the loop's own data pass unchanged"

    now = {
        key: torch.stack([value, value], dim=1) if "images" in key else value
        for key, value in batch.items()
        if key != "task"
    }
    images = policy.predict_foresight({**now, "task": batch["task"]})[1]
    shown = mine[2]["foresight.left_wrist"]
    expected = (images[0, 1] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    assert shown.dtype == np.uint8 and np.abs(shown.astype(int) - expected).max() <= 1
    assert mine[2]["foresight.head"].shape[0] < mine[2]["foresight.head"].shape[1], "without letterbox bars"


def test_rerun_shows_cameras_above_their_foresight_and_the_age_by_itself(logged, monkeypatch):
    """With rerun where it is installed, else with what stands for the few classes of it that are used."""
    try:
        import rerun
    except ImportError:
        rerun = SimpleNamespace(send_blueprint=None, blueprint=pretended_blueprint())
        monkeypatch.setitem(sys.modules, "rerun", rerun)
        monkeypatch.setitem(sys.modules, "rerun.blueprint", rerun.blueprint)
    from lerobot.rollout.strategies.core import RolloutStrategy
    from lerobot.utils import rerun_visualization as lerobots

    sent = []
    monkeypatch.setattr(rerun, "send_blueprint", sent.append)
    pictures = {f"observation.{name}" for name in ("head", "side", "foresight.head", "foresight.left_wrist")}
    scalars = {"observation.elbow", "observation.foresight.age_s", "observation.foresight.interval_s"}
    made = lerobots._build_blueprint(scalars, {"action.elbow"}, pictures)
    monkeypatch.setattr(lerobots.log_rerun_data, "blueprint", made, raising=False)

    tiny_policy(tiny_config(cameras=list(CAMERAS), live_foresight=True, foresight_interval=5, fps=10.0))
    for _ in range(2):
        cfg = SimpleNamespace(display_data=True, display_mode="rerun", display_compressed_images=False)
        RolloutStrategy._log_telemetry({"elbow": 0.5}, {"elbow": 1.0}, SimpleNamespace(cfg=cfg))
    (blueprint,) = sent
    columns, plots = blueprint.root_container.contents
    assert [[view.name for view in column.contents] for column in columns.contents] == [
        ["observation.head", "observation.foresight.head"],
        ["observation.foresight.left_wrist"],
        ["observation.side"],
    ], "one above the other; an imagined view without its camera, and a camera that nothing is imagined of, alone"
    age, observation, action = plots.contents
    assert age.contents == ["observation.foresight.age_s", "observation.foresight.interval_s"] and "0.5" in age.name
    assert (observation.contents, action.contents) == (["observation.elbow"], ["action.elbow"])

    monkeypatch.setattr(lerobots.log_rerun_data, "blueprint", None)
    live.arrange_rerun({"head": "head"}, 0.5)
    assert len(sent) == 1, "a layout that is not LeRobot's as known is left alone"


def pretended_blueprint():
    class Part:
        def __init__(self, *contents, **options):
            self.contents = contents or options.get("contents")
            self.name = options.get("name")

    class Blueprint:
        def __init__(self, root, collapse_panels=False):
            self.root_container = root

    class TimeRangeBoundary:
        @staticmethod
        def cursor_relative(seconds=0.0):
            return seconds

    names = ("Grid", "Vertical", "Horizontal", "Spatial2DView", "TimeSeriesView")
    parts = {name: type(name, (Part,), {}) for name in names}
    values = dict.fromkeys(("ScalarAxis", "PlotLegend", "VisibleTimeRange"), Part)
    return SimpleNamespace(**parts, **values, Blueprint=Blueprint, TimeRangeBoundary=TimeRangeBoundary)


def test_a_rollout_without_display_imagines_nothing(logged):
    from lerobot.rollout.strategies.core import RolloutStrategy

    policy = tiny_policy(tiny_config(cameras=list(CAMERAS), live_foresight=True))
    RolloutStrategy._log_telemetry({}, {}, SimpleNamespace(cfg=SimpleNamespace(display_data=False)))
    policy.select_action(tiny_batch(policy.config, moment="tick"))
    assert logged == [] and policy._live_foresight._thread is None


def test_actions_are_the_same_with_and_without(logged):
    torch.manual_seed(0)
    plain = tiny_policy(tiny_config(cameras=list(CAMERAS), noise_scale=0.0))
    assert plain._live_foresight is None
    watched = tiny_policy(tiny_config(cameras=list(CAMERAS), noise_scale=0.0, live_foresight=True))
    watched._live_foresight.start(lambda shown: None)
    batch = tiny_batch(plain.config, moment="tick")
    for _ in range(7):
        torch.testing.assert_close(watched.select_action(batch), plain.select_action(batch))


def test_it_needs_foresight():
    with pytest.raises(InternVLAError, match="live_foresight=true needs use_foresight=true"):
        tiny_config(use_foresight=False, live_foresight=True)
