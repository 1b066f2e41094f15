"""The MuJoCo conveyor's scene as MJCF, built from primitives: belt, two arms, two bins, three parcels, three cameras.

World frame: x along the belt (0 where the head camera's picture starts, 1 where the belt ends), y to the left of the
direction of travel, z up from the table. Metres: a belt speed in belt lengths per second is one in metres per second.

The belt's surface is a hidden slab on a slide joint, so heavy that nothing slows it; the world sets its speed and puts
it back on every tick, and friction does the rest. The belt that is seen does not move; its chevrons do.
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

_WRIST_TO_HAND = 0.06
_TIP_BELOW_TOOL = 0.022

_COLOURS = {
    "left": "0.95 0.56 0.23",
    "left_dull": "0.67 0.39 0.16",
    "right": "0.54 0.36 0.77",
    "right_dull": "0.38 0.25 0.54",
    "red": "0.87 0.18 0.20",
    "blue": "0.12 0.40 0.92",
    "yellow": "0.98 0.80 0.12",
    "tape": "0.98 0.96 0.92",
    "dark": "0.16 0.17 0.19",
    "metal": "0.62 0.64 0.67",
    "belt": "0.24 0.26 0.28",
    "chevron": "0.37 0.39 0.42",
    "bin_inside": "0.47 0.42 0.38",
    "bin_rim": "0.72 0.64 0.54",
    "table": "0.80 0.81 0.79",
}
"""Of materials. No parcel has the colour of an arm, so that one is never mistaken for the other."""


def mjcf() -> str:
    """The whole scene as an MJCF document. Geoms of class ``seen`` have no mass and touch nothing; ``link`` touch
    nothing."""
    materials = "".join(f'<material name="{name}" rgba="{rgb} 1" specular="0.2"/>' for name, rgb in _COLOURS.items())
    return f"""
<mujoco model="conveyor">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <quality shadowsize="0" offsamples="0" numslices="14" numstacks="8" numquads="2"/>
    <headlight ambient="0.42 0.42 0.42" diffuse="0.28 0.28 0.28" specular="0.05 0.05 0.05"/>
    <map znear="0.01" zfar="20"/>
  </visual>
  <default>
    <geom condim="4" friction="1.0 0.01 0.001" solref="0.01 1"/>
    <default class="seen"><geom contype="0" conaffinity="0" mass="0"/></default>
    <default class="link"><geom contype="0" conaffinity="0"/></default>
    <default class="finger">
      <joint type="slide" range="0 {FINGER_TRAVEL}" armature="0.1"/>
      <geom type="box" mass="0.03" friction="{FINGER_FRICTION} 0.02 0.001" priority="1" material="dark"/>
    </default>
  </default>
  <asset>{materials}</asset>
  <worldbody>
    <light pos="0.3 -0.6 2.2" dir="0.1 0.3 -1" diffuse="0.42 0.42 0.42" specular="0.1 0.1 0.1" castshadow="false"/>
    <camera name="head" pos="0.5 -0.45 1.90" xyaxes="1 0 0 0 0.972 0.236" fovy="33"/>
    <camera name="people" pos="1.35 -1.10 1.05" xyaxes="0.80 0.60 0 -0.30 0.40 0.87" fovy="42"/>
    <geom name="table" type="plane" size="20 20 0.1" material="table"/>
    {_belt()}
    {"".join(_bin(side) for side in SIDES)}
    {"".join(_arm(side) for side in SIDES)}
    {"".join(_parcel(i, colour) for i, colour in enumerate(COLOURS))}
  </worldbody>
  <contact>{"".join(f'<exclude body1="{side}_finger_a" body2="{side}_finger_b"/>' for side in SIDES)}</contact>
  <equality>{"".join(_coupling(side) for side in SIDES)}</equality>
  <actuator>{"".join(_servos(side) for side in SIDES)}</actuator>
</mujoco>
"""


def _belt() -> str:
    """The slab that carries, hidden in group 4; the belt and its chevrons, which are seen; rails and legs."""
    middle, half, thick = (BELT_START + BELT_END) / 2, (BELT_END - BELT_START) / 2, 0.02
    slab = f'type="box" size="{half} {BELT_HALF_WIDTH} {thick}"'
    parts = [
        f'<body name="belt" pos="{middle} 0 {BELT_TOP - thick}">'
        f'<joint name="belt" type="slide" axis="1 0 0" armature="10000"/>'
        f'<geom name="belt" {slab} mass="1" group="4"/></body>',
        f'<geom class="seen" {slab} pos="{middle} 0 {BELT_TOP - thick - 0.0015}" material="belt"/>',
    ]
    for y in (-BELT_HALF_WIDTH - 0.012, BELT_HALF_WIDTH + 0.012):
        parts.append(
            f'<geom type="box" pos="{middle} {y} {BELT_TOP - 0.02}" size="{half} 0.01 0.026" material="metal"/>'
        )
        leg = (BELT_TOP - 0.04) / 2
        parts += [
            f'<geom class="seen" type="box" pos="{x} {y} {leg}" size="0.015 0.01 {leg}" material="metal"/>'
            for x in (-0.3, 0.06, 0.94)
        ]
    strokes = [
        f'<geom class="seen" type="box" pos="{BELT_START + CHEVRON_PERIOD * i} {sign * BELT_HALF_WIDTH / 2} '
        f'{BELT_TOP - 0.001}" size="0.011 {0.55 * BELT_HALF_WIDTH} 5e-4" euler="0 0 {sign * 0.5}" material="chevron"/>'
        for i in range(1, math.floor((BELT_END - BELT_START) / CHEVRON_PERIOD))
        for sign in (-1, 1)
    ]
    parts.append(f'<body name="chevrons" mocap="true">{"".join(strokes)}</body>')
    return "".join(parts)


def _bin(side: Side) -> str:
    """A floor and four walls; the far wall has the arm's colour: whose bin this is."""
    (x, y), wall, half_height = BIN_CENTRES[side], 0.006, BIN_HEIGHT / 2
    parts = [
        f'<geom type="box" pos="{x} {y} 0.003" size="{BIN_HALF_SIZE} {BIN_HALF_SIZE} 0.003" material="bin_inside"/>'
    ]
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        length = BIN_HALF_SIZE + wall
        size = f"{wall} {length} {half_height}" if dx else f"{length} {wall} {half_height}"
        at = f"{x + dx * BIN_HALF_SIZE} {y + dy * BIN_HALF_SIZE} {half_height}"
        material = side if dy == (1 if side == "left" else -1) else "bin_rim"
        parts.append(f'<geom type="box" pos="{at}" size="{size}" material="{material}"/>')
    return "".join(parts)


def _parcel(index: int, colour: str) -> str:
    """A cube with a strip of tape around it. Parcels that an episode does not use wait out of sight."""
    half = PARCEL_HALF_SIZE
    return f"""
<body name="{colour}" pos="-4 {index} {half}">
  <freejoint name="{colour}"/>
  <geom name="{colour}" type="box" size="{half} {half} {half}" mass="{PARCEL_MASS}" material="{colour}"/>
  <geom class="seen" type="box" size="{half * 0.18} {half + 0.0004} {half + 0.0004}" material="tape"/>
</body>"""


def _arm(side: Side) -> str:
    """Pedestal, waist, upper arm, forearm, wrist, hand with two fingers and a camera. Links touch nothing; hands do."""
    (x, y), half = BASES[side], LINK_LENGTH / 2
    pedestal = SHOULDER_HEIGHT / 2 - 0.02
    # Downstream of the fingers and looking back at them, so that the camera sees what comes along the belt.
    camera = 0.10 if side == "left" else -0.10
    return f"""
<body name="{side}_base" pos="{x} {y} 0" euler="0 0 {BASE_YAWS[side]}">
  <geom class="link" type="cylinder" size="0.07 0.012" pos="0 0 0.012" material="dark"/>
  <geom class="link" type="cylinder" size="0.045 {pedestal}" pos="0 0 {pedestal}" material="metal"/>
  <body name="{side}_waist" pos="0 0 {SHOULDER_HEIGHT}" gravcomp="1">
    {_joint(side, "waist", "0 0 1")}
    <geom class="link" type="cylinder" size="0.05 0.035" material="dark" mass="0.8"/>
    <body name="{side}_upper" gravcomp="1">
      {_joint(side, "shoulder", "0 1 0")}
      <geom class="link" type="capsule" fromto="0 0 0 0 0 {LINK_LENGTH}" size="0.03" material="{side}_dull" mass="0.6"/>
      <body name="{side}_fore" pos="0 0 {LINK_LENGTH}" gravcomp="1">
        {_joint(side, "elbow", "0 1 0")}
        <geom class="link" type="cylinder" fromto="0 -0.036 0 0 0.036 0" size="0.036" material="dark" mass="0.1"/>
        <geom class="link" type="capsule" fromto="0 0 0 {half} 0 0" size="0.026" material="{side}" mass="0.3"/>
        <body name="{side}_roll" pos="{half} 0 0" gravcomp="1">
          {_joint(side, "forearm_roll", "1 0 0")}
          <geom class="link" type="capsule" fromto="0 0 0 {half} 0 0" size="0.023" material="{side}" mass="0.2"/>
          <body name="{side}_wrist" pos="{half} 0 0" gravcomp="1">
            {_joint(side, "wrist_angle", "0 1 0")}
            <geom class="link" type="cylinder" fromto="0 -0.028 0 0 0.028 0" size="0.026" material="dark" mass="0.1"/>
            <geom class="link" type="capsule" fromto="0 0 0 0.06 0 0" size="0.018" material="metal" mass="0.05"/>
            <body name="{side}_hand" pos="{_WRIST_TO_HAND} 0 0" gravcomp="1">
              {_joint(side, "wrist_rotate", "1 0 0")}
              <geom name="{side}_palm" type="box" pos="0.045 0 0" size="0.014 0.02 0.06" material="dark" mass="0.1"/>
              <geom class="link" type="cylinder" fromto="0 0 0 0.035 0 0" size="0.02" material="{side}" mass="0.05"/>
              <geom class="seen" type="box" pos="0.045 {camera / 2} 0" size="0.005 0.05 0.008" material="dark"/>
              <geom class="seen" type="box" pos="0.052 {camera * 1.1} 0" size="0.012 0.012 0.016" material="dark"/>
              <camera name="{side}_wrist" pos="0.052 {camera * 0.95} 0" xyaxes="{_wrist_view(camera)}" fovy="82"/>
              <site name="{side}_tool" pos="{TOOL_LENGTH - _WRIST_TO_HAND} 0 0" size="0.004" group="4"/>
              {_finger(side, "a", 1)}
              {_finger(side, "b", -1)}
            </body>
          </body>
        </body>
      </body>
    </body>
  </body>
</body>"""


def _joint(side: Side, name: str, axis: str) -> str:
    low, high = JOINT_LIMITS[name]
    return f'<joint name="{side}_{name}" axis="{axis}" range="{low} {high}" armature="0.05"/>'


def _finger(side: Side, name: str, sign: int) -> str:
    """Its inner face is in the middle of the hand when it is closed; its tip has the arm's colour."""
    tip = _TIP_BELOW_TOOL - 0.005
    return f"""
<body name="{side}_finger_{name}" pos="{TOOL_LENGTH - _WRIST_TO_HAND} 0 0" gravcomp="1">
  <joint class="finger" name="{side}_finger_{name}" axis="0 0 {sign}"/>
  <geom class="finger" name="{side}_finger_{name}" pos="{_TIP_BELOW_TOOL - 0.034} 0 {sign * 0.006}"
    size="0.034 0.011 0.006"/>
  <geom class="seen" type="box" pos="{tip} 0 {sign * 0.006}" size="0.006 0.0113 0.0063" material="{side}"/>
</body>"""


def _coupling(side: Side) -> str:
    fingers = f'joint1="{side}_finger_a" joint2="{side}_finger_b"'
    return f'<joint {fingers} polycoef="0 1 0 0 0" solref="0.005 1"/>'


def _wrist_view(offset: float) -> str:
    """Camera axes in the hand's frame: fingers left and right of the middle, what comes along the belt at the top."""
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
