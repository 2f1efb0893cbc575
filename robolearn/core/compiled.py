"""Kernels that numba compiles; imported only where one is used, for numba takes a second to import."""

from __future__ import annotations

from collections.abc import Callable

import numba


def compiled[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel without the interpreter lock, cached on disk; where no cache folder is writable, compiled in each process.

    A division by zero gives infinity or NaN, as in numpy, and raises nothing: an exception would leave a batch half stepped.

    Numba tries the folder of the source file, then the user's cache folder (or ``NUMBA_CACHE_DIR``). Its cache notices a change
    of the function's own file only, so keep what a kernel inlines in its file, or delete ``__pycache__`` after a change here.
    """
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True, error_model="numpy")(function)
