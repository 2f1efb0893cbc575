"""Pictures of MuJoCo scenes without a window, fast in software: one OpenGL context per process, one set of buffers per model.

All OpenGL calls run in one thread of their own. A context belongs to one thread at a time; so nothing has to be made current
again, and other libraries' contexts (robosuite's) in other threads are never disturbed.

What makes it fast (SIMULATION.md §3): no multisampling, no shadows, reflections, skybox, haze or fog, and meshes reduced to a few
hundred faces (:mod:`sim_envs.light_model`), because a software renderer spends its time on vertices.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.types import Array
from sim_envs.graphics import INSTALL, graphics_backend

_MAX_GEOMS = 2000
_SMALL_ROWS = 160
_VISUAL_GROUP = 1
"""Visual geoms are in group 1; group 0 holds what collides (robosuite's rule, and ours)."""
_OFF = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_SKYBOX,
    mujoco.mjtRndFlag.mjRND_HAZE,
    mujoco.mjtRndFlag.mjRND_FOG,
)


@dataclass(frozen=True)
class View:
    """What is drawn and how large."""

    camera: str
    """Name of a camera of the model."""
    height: int
    """Rows of the picture [pixels]."""
    width: int
    """Columns of the picture [pixels]."""
    supersample: int | None = None
    """Every pixel is the mean of ``supersample``^2 drawn ones. None takes 2 for pictures of more than 160 rows, which people look
    at, and 1 for the small ones that policies see."""

    @property
    def drawn_per_pixel(self) -> int:
        """Drawn pixels per pixel of the picture, along each axis."""
        if self.supersample is not None:
            return self.supersample
        return 2 if self.height > _SMALL_ROWS else 1


class _Graphics:
    """The OpenGL context of this process and the only thread that uses it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="robolearn-graphics")
        self._context: Any = self.call(self._open)
        # Runs before EGL's own clean-up, which was registered earlier.
        atexit.register(self._context.free)

    def call[T](self, function: Callable[[], T]) -> T:
        return self._thread.submit(function).result()

    @staticmethod
    def _open() -> Any:
        backend = graphics_backend()
        try:
            if backend == "egl":
                from mujoco.egl import GLContext
            else:
                from mujoco.osmesa import GLContext
            # Pictures are drawn into MuJoCo's own off-screen buffer; the context's default one is never used.
            context = GLContext(1, 1)
            context.make_current()
        except Exception as error:
            raise RefusedError(f"OpenGL through {backend} does not work on this machine: {error!r}. {INSTALL}") from error
        return context


_graphics: _Graphics | None = None
_renderers: dict[str, CameraRenderer] = {}


def _the_graphics() -> _Graphics:
    global _graphics
    if _graphics is None:
        _graphics = _Graphics()
    return _graphics


def _forget_after_fork() -> None:
    # Threads and OpenGL contexts do not survive a fork; the child opens its own.
    global _graphics
    _graphics = None
    _renderers.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def shared_renderer(name: str, build: Callable[[], mujoco.MjModel]) -> CameraRenderer:
    """Return this process's renderer called ``name``, made from ``build()`` at the first call."""
    if name not in _renderers:
        _renderers[name] = CameraRenderer(build())
    return _renderers[name]


class CameraRenderer:
    """Draws one model in states that are given; holds no episode.

    Args:
        model: a model of its own (body poses and quality settings are written to), see :func:`sim_envs.light_model.light_model`.

    Raises:
        RefusedError: OpenGL does not work on this machine; the message names what to install.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        self._cameras = tuple(model.camera(i).name for i in range(model.ncam))
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offheight = model.vis.global_.offwidth = 84
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[_VISUAL_GROUP] = 1
        self._option.sitegroup[:] = 0
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        for flag in _OFF:
            self._scene.flags[flag] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._graphics = _the_graphics()
        self._buffers: mujoco.MjrContext = self._graphics.call(self._make_buffers)

    def _make_buffers(self) -> mujoco.MjrContext:
        return mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_50)

    def render(self, qpos: Array, view: View, *, body_pos: Array | None = None, body_quat: Array | None = None) -> Array:
        """Return a (height, width, 3) uint8 picture of the scene at ``qpos`` (nq,).

        Args:
            qpos: positions in the order of this model's joints.
            view: camera and size.
            body_pos: (nbody, 3) where a task moves bodies of the model itself, as Door does at reset [m].
            body_quat: (nbody, 4) wxyz, likewise.

        Raises:
            RefusedError: unknown camera, an impossible size, or positions of another model.
        """
        if view.camera not in self._cameras:
            raise RefusedError(f"No camera {view.camera!r} in this scene. {nearest(view.camera, self._cameras)}")
        if min(view.height, view.width, view.drawn_per_pixel) < 1:
            raise RefusedError(f"Height, width and supersample of a picture must be at least 1, got {view}.")
        if np.shape(qpos) != (self._model.nq,):
            raise RefusedError(f"This scene has {self._model.nq} positions, got {np.shape(qpos)}.")
        return self._graphics.call(lambda: self._draw(qpos, view, body_pos, body_quat))

    def _draw(self, qpos: Array, view: View, body_pos: Array | None, body_quat: Array | None) -> Array:
        model, data = self._model, self._data
        if body_pos is not None:
            model.body_pos[:] = body_pos
        if body_quat is not None:
            model.body_quat[:] = body_quat
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        self._camera.fixedcamid = self._cameras.index(view.camera)
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene)
        fine = view.drawn_per_pixel
        height, width = view.height * fine, view.width * fine
        if height > self._buffers.offHeight or width > self._buffers.offWidth:
            size = max(width, self._buffers.offWidth), max(height, self._buffers.offHeight)
            mujoco.mjr_resizeOffscreen(*size, self._buffers)
        # Another renderer may have drawn last, and its buffer would still be bound.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._buffers)
        area = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(area, self._scene, self._buffers)
        picture: Array = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, area, self._buffers)
        # OpenGL's first row is the lowest.
        picture = np.ascontiguousarray(picture[::-1])
        if fine == 1:
            return picture
        blocks = picture.reshape(view.height, fine, view.width, fine, 3)
        return blocks.mean(axis=(1, 3)).astype(np.uint8)
