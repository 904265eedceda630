"""Drawings of bodies, limbs coloured by agent: still, or pose after pose (`marl_kl.analysis.rendering`).

Drawn with matplotlib only, so that neither a display nor OpenGL is needed. A geom of the `mujoco.MjModel` is
taken as the sum of a box and an ellipsoid along its own axes: a capsule is a segment plus a ball, a cylinder a segment
plus a disc. Under an orthographic camera the outline of such a sum is exact and costs one formula (`_outlines`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from envs.base import Env
from envs.bodies.physics import actuators_of_bodies
from envs.pictures import agent_colours

ROOT_COLOUR = "#9A9A9A"
"""For geoms that no agent moves."""

_WORLD_COLOUR = "#D5D2CB"
_TILES = ("#F4F2ED", "#E9E6DF")
_SHADOW = "#CFCBC2"
_DIRECTIONS = np.stack([np.cos(a := np.linspace(0.0, 2 * np.pi, 40, endpoint=False)), np.sin(a)], axis=-1)
_LIGHT = np.array([-0.45, 0.75])
_TONES = ((1.0, 0.0), (0.66, 0.16), (0.33, 0.36))
"""From the rim inwards: the scale of the round part, and the share of white in its colour."""

_ROOM = 1.15
_ROOM_TO_MOVE = 1.45


class Camera(NamedTuple):
    """An orthographic camera; all [3] unit vectors of the world.

    Attributes:
        right, up: the axes of the image plane. near: towards the camera.
        is_side: whether it is a side view along the floor.
    """

    right: np.ndarray
    up: np.ndarray
    near: np.ndarray
    is_side: bool

    @property
    def plane(self) -> np.ndarray:
        """[2, 3], from the world to the image plane."""
        return np.stack([self.right, self.up])


class GeomParts(NamedTuple):
    """The drawn parts of a model: geoms, cut lengthwise if several agents drive one.

    Attributes:
        geom: [P] int. agent: [P] int, -1 for no agent, -2 for the world.
        box: [P, 3] half-lengths, round: [P, 3] semi-axes, along the geom's own axes.
        along: [P] position of the part's centre on the geom's third axis.
        floor: the height of the floor.
    """

    geom: np.ndarray
    agent: np.ndarray
    box: np.ndarray
    round: np.ndarray
    along: np.ndarray
    floor: float


class Outlines(NamedTuple):
    """The parts of one pose in the image plane, far ones first.

    Attributes:
        polygons: [P, tones, K, 2]. shadows: [P, K, 2] on the floor. agent: [P] int.
        focus: [3] the body's centre of mass, projected to the floor, which the camera follows.
    """

    polygons: np.ndarray
    shadows: np.ndarray
    agent: np.ndarray
    focus: np.ndarray


def owners(env: Env) -> tuple[tuple[int, ...], ...]:
    """Per geom of `env.drawing.model` the agents whose joints move it: those of its body, else of the nearest driven
    ancestor; in the order of the joints; empty for the root and the world."""
    model, tree = env.drawing.model, env.drawing.tree
    agent_of = {name: agent for agent, names in enumerate(env.spec.agents) for name in names.split("+")}
    actuators = actuators_of_bodies(model)

    def nearest(body: int) -> tuple[int, ...]:
        while body and not actuators[body]:
            body = int(model.body_parentid[body])
        in_order = [index for index in tree.joint_order if index in actuators[body]]
        return tuple(dict.fromkeys(agent_of[tree.actuators[index]] for index in in_order))

    return tuple(nearest(int(body)) for body in model.geom_bodyid)


def still(axes: Axes, env: Env, pose: np.ndarray) -> None:
    """Draws the body in one pose [nq], limbs coloured by agent."""
    _check_pose(env, pose)
    view, parts = camera(env), _geom_parts(env)
    outlines = _outlines(env, parts, view, pose)
    _Stage(axes, env, view, parts, [outlines]).show(outlines)


def legend(figure: Figure | Axes, env: Env, **options) -> None:
    """Adds a legend of agents and colours; `options` are those of matplotlib's legend."""
    handles = [
        Patch(facecolor=colour, edgecolor="none", label=_short(name))
        for name, colour in zip(env.spec.agents, agent_colours(env.spec.num_agents))
    ]
    handles.append(Patch(facecolor=ROOT_COLOUR, edgecolor="none", label="no agent"))
    figure.legend(handles=handles, frameon=False, handlelength=1.0, handleheight=1.0, **options)


def scene(axes: Axes, env: Env, poses: np.ndarray) -> Callable[[int], None]:
    """A function that draws pose i on `axes`, for pictures one after another: the camera follows the body.

    Args:
        poses: [T, nq], all that will be shown.
    """
    view, parts = camera(env), _geom_parts(env)
    frames = [_outlines(env, parts, view, pose) for pose in poses]
    stage = _Stage(axes, env, view, parts, frames, _ROOM_TO_MOVE)
    return lambda index: stage.show(frames[index])


def camera(env: Env) -> Camera:
    """A side view of bodies that move in a vertical plane, a top view of those in the plane of the floor, else oblique."""
    import mujoco

    model = env.drawing.model
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    hinges = model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE
    is_free = np.any(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    direction = np.abs(data.xaxis[hinges])
    if not is_free and np.all(direction[:, 1] > 0.99):
        is_one_plane = np.ptp(data.xanchor[hinges][:, 1]) < 0.1
        return _camera(-90.0, 9.0, True) if is_one_plane else _camera(-75.0, 20.0, False)
    if not is_free and np.all(direction[:, 2] > 0.99):
        return _camera(-90.0, 65.0, False)
    return _camera(-65.0, 28.0, False)


def _camera(azimuth: float, elevation: float, is_side: bool) -> Camera:
    """`azimuth`, `elevation`: of the camera, degrees."""
    a, e = np.radians([azimuth, elevation])
    near = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    return Camera(right, np.cross(near, right), near, is_side)


def _check_pose(env: Env, pose: np.ndarray) -> None:
    if env.drawing is None:
        raise ValueError(f"env '{env.spec.name}' is not a body and cannot be drawn")
    if np.shape(pose) != (env.drawing.model.nq,):
        raise ValueError(f"pose has shape {np.shape(pose)}; env '{env.spec.name}' has [nq] = ({env.drawing.model.nq},)")


def _geom_parts(env: Env) -> GeomParts:
    """All visible geoms but planes; meshes are drawn as their boxes."""
    import mujoco

    model = env.drawing.model
    kind = mujoco.mjtGeom
    box_and_round = {
        kind.mjGEOM_SPHERE: lambda size: ((0, 0, 0), (size[0],) * 3),
        kind.mjGEOM_CAPSULE: lambda size: ((0, 0, size[1]), (size[0],) * 3),
        kind.mjGEOM_CYLINDER: lambda size: ((0, 0, size[1]), (size[0], size[0], 0)),
        kind.mjGEOM_ELLIPSOID: lambda size: ((0, 0, 0), tuple(size)),
        kind.mjGEOM_BOX: lambda size: (tuple(size), (0, 0, 0)),
        kind.mjGEOM_MESH: lambda size: (tuple(size), (0, 0, 0)),
    }
    rows = []
    for geom, agents in enumerate(owners(env)):
        shape = box_and_round.get(kind(int(model.geom_type[geom])))
        if shape is None or model.geom_rgba[geom, 3] == 0:
            continue
        box, ball = shape(model.geom_size[geom])
        no_agent = -2 if model.geom_bodyid[geom] == 0 else -1
        shares = (agents or (no_agent,)) if box[2] > 0 else (agents or (no_agent,))[:1]
        for index, agent in enumerate(shares):
            along = box[2] * ((2 * index + 1) / len(shares) - 1)
            rows.append((geom, agent, (box[0], box[1], box[2] / len(shares)), ball, along))
    geom, agent, box, ball, along = map(np.asarray, zip(*rows))
    return GeomParts(geom, agent, box.astype(float), ball.astype(float), along.astype(float), _floor(model))


def _floor(model: Any) -> float:
    """The height of the model's highest plane, or of the lowest point in its initial pose."""
    import mujoco

    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    planes = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    if planes.any():
        return float(data.geom_xpos[planes, 2].max())
    return float((data.geom_xpos[:, 2] - model.geom_rbound).min())


def _outlines(env: Env, parts: GeomParts, view: Camera, pose: np.ndarray) -> Outlines:
    """Projects the parts, placed by the forward kinematics of `pose`."""
    import mujoco

    model = env.drawing.model
    data = mujoco.MjData(model)
    data.qpos[:] = pose
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    axes = data.geom_xmat[parts.geom].reshape(-1, 3, 3)
    centre = data.geom_xpos[parts.geom] + axes[:, :, 2] * parts.along[:, None]
    to_floor = np.diag([1.0, 1.0, 0.0])
    on_floor = centre @ to_floor + [0.0, 0.0, parts.floor]
    tones = []
    for scale, _ in _TONES:
        shift = (1 - scale) * 0.5 * parts.round.min(axis=-1, keepdims=True) * _LIGHT
        tones.append(_outline(view.plane, centre, axes, parts.box, scale * parts.round) + shift[:, None])
    shadows = _outline(view.plane, on_floor, to_floor @ axes, parts.box, parts.round)
    order = np.argsort(centre @ view.near, kind="stable")
    focus = np.array([*data.subtree_com[1, :2], parts.floor])
    return Outlines(np.stack(tones, axis=1)[order], shadows[order], parts.agent[order], focus)


def _outline(plane: np.ndarray, centre: np.ndarray, axes: np.ndarray, box: np.ndarray, ball: np.ndarray) -> np.ndarray:
    """[P, K, 2] the outline of box + ellipsoid: its furthest point in each of K directions u of the image plane,

        c + sum_i sign(u . g_i) g_i + E E^T u / |E^T u|

    where the columns of g and E are the projected half-lengths of the box and semi-axes of the ellipsoid.

    Args:
        plane: [2, 3]. centre: [P, 3]. axes: [P, 3, 3], columns. box: [P, 3]. ball: [P, 3].
    """
    projected = plane @ axes
    edges, radii = projected * box[:, None], projected * ball[:, None]
    pull = _DIRECTIONS @ radii
    length = np.linalg.norm(pull, axis=-1, keepdims=True)
    rounded = np.divide(pull, length, out=np.zeros_like(pull), where=length > 0) @ np.swapaxes(radii, 1, 2)
    corner = np.where(_DIRECTIONS @ edges >= 0, 1.0, -1.0) @ np.swapaxes(edges, 1, 2)
    return (centre @ plane.T)[:, None] + corner + rounded


class _Stage:
    """Axes with a floor and a body, drawn pose by pose."""

    def __init__(
        self, axes: Axes, env: Env, view: Camera, parts: GeomParts, frames: Sequence[Outlines], room: float = _ROOM
    ):
        self.axes, self.view, self.floor = axes, view, parts.floor
        axes.set_axis_off()
        axes.set_aspect("equal")
        around = [outlines.polygons[:, 0] - view.plane @ outlines.focus for outlines in frames]
        points = np.concatenate([polygons.reshape(-1, 2) for polygons in around])
        if not np.isfinite(points).all():
            raise ValueError(f"env '{env.spec.name}': a pose is not finite and cannot be drawn")
        self.low, self.high = _window(axes, points.min(axis=0), points.max(axis=0), room)
        width, inches = self.high[0] - self.low[0], axes.get_position(original=True).width * axes.figure.get_figwidth()
        self.spacing = _nice(float(width) / 6)
        self.labelled = self.spacing * max(1, round(6 / inches))
        self.tiles = axes.add_collection(PolyCollection([], linewidths=0, antialiaseds=False, zorder=0))
        self.shadows = axes.add_collection(PolyCollection([], linewidths=0, antialiaseds=False, zorder=1))
        self.shadows.set_facecolor(_SHADOW)
        self.body = axes.add_collection(PolyCollection([], linewidths=0.6, zorder=2))
        self.colours = _shades(env)
        self.labels = []

    def show(self, outlines: Outlines):
        here = self.view.plane @ outlines.focus
        low, high = here + self.low, here + self.high
        self.axes.set_xlim(low[0], high[0])
        self.axes.set_ylim(low[1], high[1])
        self._draw_floor(outlines.focus, low, high)
        self.shadows.set_verts(list(outlines.shadows))
        rims, faces = self.colours[:, :1], self.colours[:, 1:]
        edges = np.concatenate([rims, faces[:, 1:]], axis=1)
        self.body.set_verts(list(outlines.polygons.reshape(-1, *outlines.polygons.shape[-2:])))
        self.body.set_facecolors(faces[outlines.agent].reshape(-1, 3))
        self.body.set_edgecolors(edges[outlines.agent].reshape(-1, 3))

    def _draw_floor(self, focus: np.ndarray, low: np.ndarray, high: np.ndarray):
        """Tiles that are fixed in the world, and the distances along x."""
        step = self.spacing
        reach = float(np.linalg.norm(high - low))
        xs = np.arange(np.floor((focus[0] - reach) / step), np.ceil((focus[0] + reach) / step))
        depth = reach / max(self.view.near[2], 0.2)
        ys = np.arange(np.floor((focus[1] - depth) / step), np.ceil((focus[1] + depth) / step))
        ys = np.arange(-1, 1) if self.view.is_side else ys
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        i, j = (index.ravel() for index in np.meshgrid(xs, ys, indexing="ij"))
        flat = (np.stack([i, j], axis=-1)[:, None] + corners) * step
        heights = np.full((*flat.shape[:2], 1), self.floor)
        self.tiles.set_verts(list(np.concatenate([flat, heights], axis=-1) @ self.view.plane.T))
        self.tiles.set_facecolors([_TILES[int(parity)] for parity in (i + j) % 2])
        first, last = xs[[0, -1]] * step
        every = self.labelled
        self._label(np.arange(np.ceil(first / every), np.floor(last / every) + 1) * every, low, high)

    def _label(self, xs: np.ndarray, low: np.ndarray, high: np.ndarray):
        for label in self.labels:
            label.remove()
        size = high - low
        right, up = self.view.right, self.view.up
        if self.view.is_side:
            y = -self.spacing
        else:  # the y at which (x, y, floor) is projected to the lower edge of the image
            y = (low[1] + 0.06 * size[1] - up[2] * self.floor - up[0] * xs) / up[1]
        y = np.broadcast_to(y, xs.shape)
        across, height = right[0] * xs + right[1] * y, up[0] * xs + up[1] * y + up[2] * self.floor
        is_inside = np.abs(across - 0.5 * (low[0] + high[0])) < 0.46 * size[0]
        self.labels = [
            self.axes.text(u, v - 0.012 * size[1], f"{x:.6g} m", fontsize=7, color="0.45", ha="center", va="top")
            for u, v, x in zip(across[is_inside], height[is_inside], xs[is_inside])
        ]


def _window(axes: Axes, low: np.ndarray, high: np.ndarray, room: float) -> tuple[np.ndarray, np.ndarray]:
    """The smallest window with the aspect ratio of the axes that is `room` times as large as the body."""
    size = room * (high - low)
    figure_size = axes.figure.get_size_inches()
    position = axes.get_position(original=True)
    box = np.array([position.width, position.height]) * figure_size
    width = max(size[0], size[1] * box[0] / box[1])
    half = 0.5 * np.array([width, width * box[1] / box[0]])
    middle = 0.5 * (low + high)
    return middle - half, middle + half


def _nice(length: float) -> float:
    """The largest of 1, 2, 5, 10, ... that is at most `length`."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(power * max(digit for digit in (1, 2, 5) if digit * power <= length * (1 + 1e-9)))


def _shades(env: Env) -> np.ndarray:
    """[agents + 2, 1 + tones, 3] rim, then tones inwards, of each agent; the last two are for the world and for no agent."""
    colour = np.array([to_rgb(colour) for colour in (*agent_colours(env.spec.num_agents), _WORLD_COLOUR, ROOT_COLOUR)])
    return np.stack([0.55 * colour, *(colour + white * (1 - colour) for _, white in _TONES)], axis=1)


def _short(name: str) -> str:
    """An agent's name on at most two lines."""
    spaced = name.replace("+", "+ ")
    return "\n".join(textwrap.wrap(spaced, 24, max_lines=2, placeholder=" ...")).replace("+ ", "+")


def palette(env: Env) -> np.ndarray:
    """[up to 256, 3] uint8: the colours of a drawing of `env`, and greys for text and antialiased edges."""
    greys = np.linspace(0.0, 1.0, 20)[:, None].repeat(3, axis=1)
    floor = [to_rgb(colour) for colour in (*_TILES, _SHADOW)]
    shades = _shades(env)
    softened = 0.5 * shades[:, 0] + 0.5 * np.array(floor[0])
    palette = np.concatenate([greys, floor, shades.reshape(-1, 3), softened])
    return np.round(255 * palette[:256]).astype(np.uint8)
