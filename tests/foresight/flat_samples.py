"""Samples whose pictures are flat colours: a tile of a panel can be found, and measured, by its colour."""

import torch

from lerobot_internvla.foresight import ForesightSample, Moment, SquaredErrors

PAST, NOW, PREDICTED, TRUE = (200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 30, 200)


def flat(colour, views, size):
    return (torch.tensor(colour, dtype=torch.float32) / 255)[None, :, None, None].expand(views, 3, *size).clone()


def a_sample(views=2, size=(64, 64), *, prediction=0.01, copy=0.02, frame=40):
    """One moment; ``prediction`` and ``copy`` are its squared errors."""
    everywhere = torch.ones(views, dtype=torch.bool)
    return ForesightSample(
        moment=Moment(index=frame, episode=3, frame=frame, time_s=frame / 10, task="pick the blue parcel"),
        interval_s=0.5,
        camera_slots=("head", "left_wrist", "right_wrist")[:views],
        scene=((0, 0, *size),) * views,
        past=flat(PAST, views, size),
        now=flat(NOW, views, size),
        predicted=flat(PREDICTED, views, size),
        true=flat(TRUE, views, size),
        reconstruction=flat(TRUE, views, size),
        camera_is_present=everywhere,
        past_is_valid=everywhere,
        future_is_valid=everywhere,
        errors=SquaredErrors(
            torch.full((views,), prediction), torch.full((views,), copy), torch.full((views,), 0.0001)
        ),
    )
