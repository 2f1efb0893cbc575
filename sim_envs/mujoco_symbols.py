"""MuJoCo's C functions for numba: a compiled loop calls ``mj_step1`` without the interpreter lock and without Python in between.

The shared library that the ``mujoco`` package has already loaded is made known to LLVM, so that a numba function may call its
exported symbols by name. Models, data and their arrays travel as addresses (``MjModel._address``, ``MjData._address``,
:func:`array_address`); :func:`float64_view` and :func:`int32_view` turn an address back into an array inside a kernel. Addresses
of one ``MjData`` are stable for its life, except those of contacts and constraints, which live in its arena.

Nothing here checks bounds or lifetimes: whoever passes an address keeps the owner of the memory alive.
"""
# ruff: noqa: N816 - the names are MuJoCo's own

from __future__ import annotations

from pathlib import Path

import mujoco
import numba
import numpy as np
from llvmlite import binding as llvm
from numba import types
from numba.extending import intrinsic

from robolearn.core.compiled import compiled as compiled
from robolearn.core.errors import RefusedError
from robolearn.core.types import Array


def _load_library() -> None:
    folder = Path(mujoco.__file__).parent
    for pattern in ("libmujoco.so*", "libmujoco*.dylib", "mujoco.dll"):
        for path in sorted(folder.glob(pattern)):
            llvm.load_library_permanently(str(path))
            return
    raise RefusedError(f"No MuJoCo library in {folder}; it holds {sorted(p.name for p in folder.iterdir())[:20]}.")


_load_library()

_PTR, _INT, _VOID, _REAL = types.intp, types.int32, types.void, types.float64


def _symbol(name: str, signature: object) -> types.ExternalFunction:
    return types.ExternalFunction(name, signature)


# Every pointer is an intp. Signatures: mujoco.h of MuJoCo 3.9.0.
mj_step = _symbol("mj_step", _VOID(_PTR, _PTR))
mj_step1 = _symbol("mj_step1", _VOID(_PTR, _PTR))
mj_step2 = _symbol("mj_step2", _VOID(_PTR, _PTR))
mj_forward = _symbol("mj_forward", _VOID(_PTR, _PTR))
mj_fwdPosition = _symbol("mj_fwdPosition", _VOID(_PTR, _PTR))
mj_fwdVelocity = _symbol("mj_fwdVelocity", _VOID(_PTR, _PTR))
mj_kinematics = _symbol("mj_kinematics", _VOID(_PTR, _PTR))
mj_comPos = _symbol("mj_comPos", _VOID(_PTR, _PTR))
mj_resetData = _symbol("mj_resetData", _VOID(_PTR, _PTR))
mj_resetDataKeyframe = _symbol("mj_resetDataKeyframe", _VOID(_PTR, _PTR, _INT))
mj_copyData = _symbol("mj_copyData", _PTR(_PTR, _PTR, _PTR))
"""(destination data, model, source data)."""
mj_setState = _symbol("mj_setState", _VOID(_PTR, _PTR, _PTR, _INT))
"""(model, data, state, mjtState bits)."""
mj_getState = _symbol("mj_getState", _VOID(_PTR, _PTR, _PTR, _INT))
mj_fullM = _symbol("mj_fullM", _VOID(_PTR, _PTR, _PTR))
"""(model, dense matrix nv x nv, data.qM)."""
mj_jac = _symbol("mj_jac", _VOID(_PTR, _PTR, _PTR, _PTR, _PTR, _INT))
"""(model, data, jacp 3 x nv, jacr 3 x nv, point, body)."""
mj_jacBody = _symbol("mj_jacBody", _VOID(_PTR, _PTR, _PTR, _PTR, _INT))
mj_jacSite = _symbol("mj_jacSite", _VOID(_PTR, _PTR, _PTR, _PTR, _INT))
"""(model, data, jacp 3 x nv, jacr 3 x nv, site)."""
mj_objectVelocity = _symbol("mj_objectVelocity", _VOID(_PTR, _PTR, _INT, _INT, _PTR, _INT))
"""(model, data, mjtObj, id, result 6 (rotation, translation), local frame 0/1)."""


@intrinsic
def _float64_pointer(_typing, address):  # type: ignore[no-untyped-def]
    """Reinterpret an integer address as ``double*``."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(types.intp), codegen


@intrinsic
def _int32_pointer(_typing, address):  # type: ignore[no-untyped-def]
    """Reinterpret an integer address as ``int*``."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int32)(types.intp), codegen


@numba.njit(nogil=True, inline="always")
def float64_view(address: int, size: int) -> Array:
    """Return ``size`` doubles at ``address`` as an array without copying; inside numba functions only."""
    return numba.carray(_float64_pointer(address), (size,))


@numba.njit(nogil=True, inline="always")
def int32_view(address: int, size: int) -> Array:
    """Return ``size`` 32-bit integers at ``address`` as an array without copying; inside numba functions only."""
    return numba.carray(_int32_pointer(address), (size,))


@numba.njit(nogil=True, inline="always")
def address_of(array: Array) -> np.intp:
    """Return the address of a contiguous array's first element, as the functions above take it; inside numba functions only."""
    return np.intp(array.ctypes.data)


def array_address(array: Array) -> int:
    """Return the address of an array's first element, from Python (``MjData.qpos`` and its kin are views of MuJoCo's memory)."""
    return int(array.__array_interface__["data"][0])
