"""Which OpenGL draws without a window: EGL where there is a device, else OSMesa (software), else a refusal that helps."""

from __future__ import annotations

import ctypes
import ctypes.util
import os

from robolearn.core.errors import RefusedError

BACKENDS = ("egl", "osmesa")
INSTALL = "Install it with: apt-get install libegl1 libgl1 libosmesa6"


def graphics_backend() -> str:
    """Return ``egl`` or ``osmesa`` and set ``MUJOCO_GL`` to it, so that MuJoCo and robosuite make the same choice.

    A value of ``MUJOCO_GL`` that is already set is obeyed.

    Raises:
        RefusedError: ``MUJOCO_GL`` names something else, or this machine has neither library.
    """
    wish = os.environ.get("MUJOCO_GL", "").lower()
    if wish:
        if wish not in BACKENDS:
            raise RefusedError(f"MUJOCO_GL={wish!r} cannot draw without a window. Allowed: {', '.join(BACKENDS)}, or unset.")
        return wish
    if not _loadable("GL", "libGL.so.1"):
        raise RefusedError(f"No OpenGL library (libGL.so.1) on this machine, so no pictures can be drawn. {INSTALL}")
    if egl_devices() > 0:
        chosen = "egl"
    elif _loadable("OSMesa", "libOSMesa.so.8", "libOSMesa.so.6"):
        chosen = "osmesa"
    else:
        raise RefusedError(f"Neither an EGL device nor OSMesa on this machine, so no pictures can be drawn. {INSTALL}")
    os.environ["MUJOCO_GL"] = chosen
    return chosen


def egl_devices() -> int:
    """Return how many devices EGL can draw on, a software device included; 0 where the library is missing.

    Asked through ctypes: importing PyOpenGL would tie the process to one platform before it is known to work.
    """
    library = _loadable("EGL", "libEGL.so.1")
    if library is None:
        return 0
    library.eglGetProcAddress.restype = ctypes.c_void_p
    library.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    address = library.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int(0)
    return count.value if query(0, None, ctypes.byref(count)) else 0


def _loadable(name: str, *files: str) -> ctypes.CDLL | None:
    for file in (*files, ctypes.util.find_library(name)):
        if file:
            try:
                return ctypes.CDLL(file)
            except OSError:
                continue
    return None
