"""The MuJoCo conveyor's scene as MJCF, built from primitives: belt, two arms, two bins, three parcels, three cameras.

World frame: x along the belt (0 where the head camera's picture starts, 1 where the belt ends), y to the left of the
direction of travel, z up from the table. Metres, so a belt speed in belt lengths per second is one in metres per second.

The belt's surface is a hidden slab on a slide joint, so heavy that nothing slows it; the world sets its speed and puts it
back on every tick, and friction does the rest. The belt that is seen does not move; its chevrons do.
"""

import math

from lerobot_internvla.envs.conveyor.mujoco.arm import (
    BASE_YAWS,
    BASES,
    FINGER_TRAVEL,
    JOINT_LIMITS,
    JOINTS,
    LINK_LENGTH,
    SERVO_LAG_S,
    SHOULDER_HEIGHT,
    TOOL_LENGTH,
)
from lerobot_internvla.envs.conveyor.task import COLOURS, SIDES, Side

TIMESTEP = 0.005
BELT_TOP = 0.12
BELT_START, BELT_END = -0.60, 1.0
BELT_HALF_WIDTH = 0.10
CHEVRON_PERIOD = 0.25
"""Longer than the way of a parcel in half a second at training speeds, so that the texture's motion is unambiguous."""
PARCEL_HALF_SIZE = 0.025
PARCEL_MASS = 0.08
BIN_CENTRES: dict[Side, tuple[float, float]] = {"left": (0.82, 0.25), "right": (0.82, -0.25)}
BIN_HALF_SIZE = 0.10
BIN_HEIGHT = 0.09
FINGER_FRICTION = 1.5

# Stiffness in Nm/rad and largest torque in Nm of each joint's servo.
_SERVOS: dict[str, tuple[float, float]] = {
    "waist": (250.0, 80.0),
    "shoulder": (350.0, 120.0),
    "elbow": (250.0, 80.0),
    "forearm_roll": (60.0, 25.0),
    "wrist_angle": (60.0, 25.0),
    "wrist_rotate": (30.0, 15.0),
}

_ARM_COLOURS: dict[Side, str] = {"left": "0.95 0.56 0.23 1", "right": "0.54 0.36 0.77 1"}
_PARCEL_COLOURS = {"red": "0.87 0.18 0.20 1", "blue": "0.12 0.40 0.92 1", "yellow": "0.98 0.80 0.12 1"}
_DARK = "0.16 0.17 0.19 1"
_METAL = "0.62 0.64 0.67 1"
_SEEN_ONLY = 'contype="0" conaffinity="0" mass="0"'


def mjcf() -> str:
    """The whole scene as an MJCF document."""
    parcels = "".join(_parcel(i, colour) for i, colour in enumerate(COLOURS))
    arms = "".join(_arm(side) for side in SIDES)
    bins = "".join(_bin(side) for side in SIDES)
    servos = "".join(_servos(side) for side in SIDES)
    couplings = "".join(
        f'<joint joint1="{side}_finger_a" joint2="{side}_finger_b" polycoef="0 1 0 0 0" solref="0.005 1"/>'
        for side in SIDES
    )
    apart = "".join(f'<exclude body1="{side}_finger_a" body2="{side}_finger_b"/>' for side in SIDES)
    return f"""
<mujoco model="conveyor">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <quality shadowsize="0" offsamples="0"/>
    <headlight ambient="0.42 0.42 0.42" diffuse="0.28 0.28 0.28" specular="0.05 0.05 0.05"/>
    <map znear="0.01" zfar="20"/>
  </visual>
  <default>
    <geom condim="4" friction="1.0 0.01 0.001" solref="0.01 1"/>
    <default class="parcel"><geom mass="{PARCEL_MASS}" priority="0"/></default>
  </default>
  <worldbody>
    <light pos="0.3 -0.6 2.2" dir="0.1 0.3 -1" diffuse="0.42 0.42 0.42" specular="0.1 0.1 0.1" castshadow="false"/>
    <camera name="head" pos="0.5 -0.45 1.90" xyaxes="1 0 0 0 0.972 0.236" fovy="33"/>
    <camera name="people" pos="1.35 -1.10 1.05" xyaxes="0.80 0.60 0 -0.30 0.40 0.87" fovy="42"/>
    <geom name="table" type="plane" size="20 20 0.1" rgba="0.80 0.81 0.79 1"/>
    {_belt()}
    {bins}
    {arms}
    {parcels}
  </worldbody>
  <contact>{apart}</contact>
  <equality>{couplings}</equality>
  <actuator>{servos}</actuator>
</mujoco>
"""


def _belt() -> str:
    middle, half = (BELT_START + BELT_END) / 2, (BELT_END - BELT_START) / 2
    parts = [
        # What parcels lie on: as wide as what is seen, a little longer than it has to be.
        f'<body name="belt" pos="{middle} 0 {BELT_TOP - 0.02}"><joint name="belt" type="slide" axis="1 0 0" '
        f'armature="10000"/><geom name="belt" type="box" size="{half} {BELT_HALF_WIDTH} 0.02" mass="1" '
        f'group="4"/></body>',
        f'<geom type="box" pos="{middle} 0 {BELT_TOP - 0.0215}" size="{half} {BELT_HALF_WIDTH} 0.02" '
        f'rgba="0.24 0.26 0.28 1" {_SEEN_ONLY}/>',
    ]
    for y in (-BELT_HALF_WIDTH - 0.012, BELT_HALF_WIDTH + 0.012):
        parts.append(
            f'<geom type="box" pos="{middle} {y} {BELT_TOP - 0.02}" size="{half} 0.010 0.026" rgba="{_METAL}"/>'
        )
        parts += [
            f'<geom type="box" pos="{x} {y} {(BELT_TOP - 0.04) / 2}" size="0.015 0.010 {(BELT_TOP - 0.04) / 2}" '
            f'rgba="{_METAL}" {_SEEN_ONLY}/>'
            for x in (-0.3, 0.06, 0.94)
        ]
    strokes = []
    for i in range(math.floor((BELT_END - BELT_START) / CHEVRON_PERIOD) - 1):
        x = BELT_START + CHEVRON_PERIOD * (i + 1)
        for sign in (-1, 1):
            strokes.append(
                f'<geom type="box" pos="{x} {sign * BELT_HALF_WIDTH / 2} {BELT_TOP - 0.001}" '
                f'size="0.011 {BELT_HALF_WIDTH * 0.55} 0.0005" euler="0 0 {sign * 0.5}" rgba="0.37 0.39 0.42 1" '
                f"{_SEEN_ONLY}/>"
            )
    parts.append(f'<body name="chevrons" mocap="true">{"".join(strokes)}</body>')
    return "".join(parts)


def _bin(side: Side) -> str:
    (x, y), wall = BIN_CENTRES[side], 0.006
    outer, half_height = BIN_HALF_SIZE + wall, BIN_HEIGHT / 2
    inside, rim = "0.47 0.42 0.38 1", "0.72 0.64 0.54 1"
    parts = [f'<geom type="box" pos="{x} {y} 0.003" size="{BIN_HALF_SIZE} {BIN_HALF_SIZE} 0.003" rgba="{inside}"/>']
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        is_far = dy == (1 if side == "left" else -1)
        size = f"{wall} {outer} {half_height}" if dx else f"{outer} {wall} {half_height}"
        # The far wall has the arm's colour: whose bin this is.
        colour = _ARM_COLOURS[side] if is_far else rim
        at = f"{x + dx * BIN_HALF_SIZE} {y + dy * BIN_HALF_SIZE} {half_height}"
        parts.append(f'<geom type="box" pos="{at}" size="{size}" rgba="{colour}"/>')
    return "".join(parts)


def _parcel(index: int, colour: str) -> str:
    """A cube with a strip of tape over its top. Parcels that an episode does not use wait out of sight."""
    half = PARCEL_HALF_SIZE
    tape = (
        f'<geom type="box" size="{half * 0.18} {half + 0.0004} {half + 0.0004}" rgba="0.98 0.96 0.92 1" {_SEEN_ONLY}/>'
    )
    return (
        f'<body name="{colour}" pos="-4 {index} {half}"><freejoint name="{colour}"/>'
        f'<geom class="parcel" name="{colour}" type="box" size="{half} {half} {half}" rgba="{_PARCEL_COLOURS[colour]}"/>'
        f"{tape}</body>"
    )


def _joint(side: Side, name: str, axis: str) -> str:
    low, high = JOINT_LIMITS[name]
    return f'<joint name="{side}_{name}" axis="{axis}" range="{low} {high}" armature="0.05"/>'


def _arm(side: Side) -> str:
    """Pedestal, waist, upper arm, forearm, wrist, hand with two fingers and a camera. Links touch nothing; hands do."""
    x, y = BASES[side]
    colour = _ARM_COLOURS[side]
    dull = " ".join(str(round(float(value) * 0.7, 3)) for value in colour.split()[:3]) + " 1"
    link = 'contype="0" conaffinity="0"'
    body = 'gravcomp="1"'
    half = LINK_LENGTH / 2
    # Downstream of the fingers and looking back at them, so that it sees what comes along the belt.
    camera = 0.10 if side == "left" else -0.10
    fingers = "".join(
        f'<body name="{side}_finger_{name}" pos="{TOOL_LENGTH} 0 0" {body}>'
        f'<joint name="{side}_finger_{name}" type="slide" axis="0 0 {sign}" range="0 {FINGER_TRAVEL}" armature="0.1"/>'
        f'<geom name="{side}_finger_{name}" type="box" pos="-0.012 0 {sign * 0.006}" size="0.034 0.011 0.006" mass="0.03" '
        f'friction="{FINGER_FRICTION} 0.02 0.001" priority="1" rgba="{_DARK}"/>'
        f'<geom type="box" pos="0.017 0 {sign * 0.006}" size="0.006 0.0113 0.0063" rgba="{colour}" {_SEEN_ONLY}/></body>'
        for name, sign in (("a", 1), ("b", -1))
    )
    return f"""
<body name="{side}_base" pos="{x} {y} 0" euler="0 0 {BASE_YAWS[side]}">
  <geom type="cylinder" size="0.07 0.012" pos="0 0 0.012" rgba="{_DARK}" {link}/>
  <geom type="cylinder" size="0.045 {SHOULDER_HEIGHT / 2 - 0.02}" pos="0 0 {SHOULDER_HEIGHT / 2 - 0.02}" rgba="{_METAL}" {link}/>
  <body name="{side}_waist" pos="0 0 {SHOULDER_HEIGHT}" {body}>
    {_joint(side, "waist", "0 0 1")}
    <geom type="cylinder" size="0.05 0.035" rgba="{_DARK}" mass="0.8" {link}/>
    <body name="{side}_upper" {body}>
      {_joint(side, "shoulder", "0 1 0")}
      <geom type="capsule" fromto="0 0 0 0 0 {LINK_LENGTH}" size="0.030" rgba="{dull}" mass="0.6" {link}/>
      <body name="{side}_fore" pos="0 0 {LINK_LENGTH}" {body}>
        {_joint(side, "elbow", "0 1 0")}
        <geom type="cylinder" fromto="0 -0.036 0 0 0.036 0" size="0.036" rgba="{_DARK}" mass="0.1" {link}/>
        <geom type="capsule" fromto="0 0 0 {half} 0 0" size="0.026" rgba="{colour}" mass="0.3" {link}/>
        <body name="{side}_roll" pos="{half} 0 0" {body}>
          {_joint(side, "forearm_roll", "1 0 0")}
          <geom type="capsule" fromto="0 0 0 {half} 0 0" size="0.023" rgba="{colour}" mass="0.2" {link}/>
          <body name="{side}_wrist" pos="{half} 0 0" {body}>
            {_joint(side, "wrist_angle", "0 1 0")}
            <geom type="cylinder" fromto="0 -0.028 0 0 0.028 0" size="0.026" rgba="{_DARK}" mass="0.1" {link}/>
            <geom type="capsule" fromto="0 0 0 0.06 0 0" size="0.018" rgba="{_METAL}" mass="0.05" {link}/>
            <body name="{side}_hand" pos="0.06 0 0" {body}>
              {_joint(side, "wrist_rotate", "1 0 0")}
              <geom name="{side}_palm" type="box" pos="0.045 0 0" size="0.014 0.020 0.060" rgba="{_DARK}" mass="0.1"/>
              <geom type="cylinder" fromto="0 0 0 0.035 0 0" size="0.020" rgba="{colour}" mass="0.05" {link}/>
              <geom type="box" pos="0.045 {camera / 2} 0" size="0.005 {abs(camera) / 2} 0.008" rgba="{_DARK}" {_SEEN_ONLY}/>
              <geom type="box" pos="0.052 {camera * 1.1} 0" size="0.012 0.012 0.016" rgba="{_DARK}" {_SEEN_ONLY}/>
              <camera name="{side}_wrist" pos="0.052 {camera * 0.95} 0" xyaxes="{_wrist_view(camera)}" fovy="82"/>
              <site name="{side}_tool" pos="{TOOL_LENGTH - 0.06} 0 0" size="0.004" group="4"/>
              <body name="{side}_fingers" pos="-0.06 0 0" {body}>{fingers}</body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </body>
</body>"""


def _wrist_view(offset: float) -> str:
    """Camera axes in the hand's frame: the fingers left and right of the middle, what comes along the belt at the top."""
    sign = math.copysign(1.0, offset)
    tilt = 0.85
    # The view leans from the hand's x axis (down) towards the other side of the hand; up is square to it, right is z.
    up = (-math.sin(tilt), -sign * math.cos(tilt))
    return f"0 0 {-sign} {up[0]} {up[1]} 0"


def _servos(side: Side) -> str:
    parts = [
        f'<position name="{side}_{joint}" joint="{side}_{joint}" kp="{_SERVOS[joint][0]}" '
        f'kv="{_SERVOS[joint][0] * SERVO_LAG_S}" forcerange="{-_SERVOS[joint][1]} {_SERVOS[joint][1]}" '
        f'ctrlrange="{JOINT_LIMITS[joint][0]} {JOINT_LIMITS[joint][1]}"/>'
        for joint in JOINTS
    ]
    parts.append(
        f'<position name="{side}_gripper" joint="{side}_finger_a" kp="1500" kv="60" forcerange="-25 25" '
        f'ctrlrange="0 {FINGER_TRAVEL}"/>'
    )
    return "".join(parts)
