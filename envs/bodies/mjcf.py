"""Generated models: swimmers and ants of any length.

The dimensions are those of MuJoCo's swimmer and ant and of MA-MuJoCo's many-segment bodies built from them (Peng et al.
2021): links of length 1 in a dense medium; a row of ant torsos, each with a pair of legs.
"""

from __future__ import annotations

_SWIMMER = """
<mujoco model="swimmer">
  <compiler angle="degree" coordinate="local" inertiafromgeom="true"/>
  <option density="4000" integrator="{integrator}" timestep="0.01" viscosity="0.1"/>
  <default>
    <geom conaffinity="0" condim="1" contype="0" density="1000" rgba="0.8 0.6 0.4 1"/>
    <joint armature="0.1"/>
  </default>
  <worldbody>
    <body name="torso" pos="0 0 0">
      <joint axis="1 0 0" name="slider1" pos="0 0 0" type="slide"/>
      <joint axis="0 1 0" name="slider2" pos="0 0 0" type="slide"/>
      <joint axis="0 0 1" name="free_body_rot" pos="0 0 0" type="hinge"/>
      <geom fromto="1.5 0 0 0.5 0 0" size="0.1" type="capsule"/>
      {links}
    </body>
  </worldbody>
  <actuator>{motors}</actuator>
</mujoco>
"""


def swimmer(joints: tuple[str, ...], alternate: bool, integrator: str = "Euler") -> str:
    """A chain of len(joints) + 1 links.

    Args:
        joints: the joints' names, from the head on.
        alternate: whether axes of even links point down, but for the first and the last, as in MA-MuJoCo's many-segment
            swimmer.
        integrator: "Euler" or "RK4".
    """

    def link(index: int) -> str:
        if index == len(joints):
            return ""
        axis = -1 if alternate and index % 2 == 0 and 0 < index < len(joints) - 1 else 1
        return (
            f'<body name="link{index}" pos="{0.5 if index == 0 else -1} 0 0">'
            f'<joint axis="0 0 {axis}" limited="true" name="{joints[index]}" range="-100 100" type="hinge"/>'
            '<geom fromto="0 0 0 -1 0 0" size="0.1" type="capsule"/>'
            f"{link(index + 1)}</body>"
        )

    return _SWIMMER.format(links=link(0), motors=_motors(joints, 150), integrator=integrator)


def many_segment_swimmer(segments: int) -> str:
    """MA-MuJoCo's, with as many driven joints as segments and one link more."""
    return swimmer(many_segment_swimmer_joints(segments), alternate=True)


def many_segment_swimmer_joints(segments: int) -> tuple[str, ...]:
    """MA-MuJoCo's names."""
    return tuple(f"rot{index}" for index in range(segments))


_ANT = """
<mujoco model="many_segment_ant">
  <compiler angle="degree" coordinate="local" inertiafromgeom="true"/>
  <option integrator="{integrator}" timestep="0.01"/>
  <default>
    <joint armature="1" damping="1" limited="true"/>
    <geom conaffinity="0" condim="3" density="5.0" friction="1 0.5 0.5" margin="0.01" rgba="0.8 0.6 0.4 1"/>
  </default>
  <worldbody>
    <geom conaffinity="1" condim="3" name="floor" pos="0 0 0" size="40 40 40" type="plane"/>
    <body name="torso_0" pos="0 0 0.75">
      <joint armature="0" damping="0" limited="false" margin="0.01" name="root" pos="0 0 0" type="free"/>
      {segments}
    </body>
  </worldbody>
  <actuator>{motors}</actuator>
</mujoco>
"""


def many_segment_ant(segments: int, integrator: str = "Euler") -> str:
    """Pairs of legs along a stiff spine: the first pair points forward, the others backward."""

    def segment(index: int) -> str:
        if index == segments:
            return ""
        x, first_x = (0.2, 0.2) if index == 0 else (-0.2, 0.0)
        left, right = (_leg(index, side, x, first_x) for side in (1, 2))
        if index == 0:
            return left + right + segment(1)
        spine = '<geom density="100" fromto="1 0 0 0 0 0" size="0.1" type="capsule"/>'
        return f'<body name="torso_{index}" pos="-1 0 0">{spine}{left}{right}{segment(index + 1)}</body>'

    return _ANT.format(
        segments=segment(0), motors=_motors(many_segment_ant_joints(segments), 150), integrator=integrator
    )


def many_segment_ant_joints(segments: int) -> tuple[str, ...]:
    """MA-MuJoCo's names: two legs per segment."""
    return tuple(f"{joint}{side}_{index}" for index in range(segments) for side in (1, 2) for joint in ("hip", "ankle"))


def _leg(index: int, side: int, x: float, first_x: float) -> str:
    """A stub on the torso, then hip and ankle. Side 1 is to the left (y > 0), 2 to the right."""
    y = 0.2 if side == 1 else -0.2
    forwards = index == 0
    bend = "30 70" if forwards else "-70 -30"
    axis = "-1 1 0" if forwards == (side == 1) else "1 1 0"
    capsule = '<geom fromto="0 0 0 {} {} 0" size="0.08" type="capsule"/>'
    return (
        f"<body>{capsule.format(first_x, y)}"
        f'<body pos="{first_x} {y} 0"><joint axis="0 0 1" name="hip{side}_{index}" range="-30 30" type="hinge"/>'
        f"{capsule.format(x, y)}"
        f'<body pos="{x} {y} 0"><joint axis="{axis}" name="ankle{side}_{index}" range="{bend}" type="hinge"/>'
        f"{capsule.format(2 * x, 2 * y)}</body></body></body>"
    )


def _motors(joints, gear: float) -> str:
    return "".join(f'<motor ctrllimited="true" ctrlrange="-1 1" gear="{gear}" joint="{joint}"/>' for joint in joints)
