"""The native lift scene as a compiled physics model, with its settled start state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mujoco
import numpy as np

from robolearn.core.types import Array
from sim_envs.mujoco_symbols import array_address
from sim_envs.native_kernel import ARM_DOF, Scene

SCENE_FILE = Path(__file__).parent / "assets" / "panda_lift.xml"
CONTROL_RATE_HZ = 20.0
LIFT_HEIGHT_M = 0.04
"""robosuite's rule for Lift: the cube's centre is this far above what it stood on."""
_SETTLE_STEPS = 400


@dataclass(frozen=True)
class NativeScene:
    """A compiled model with everything that is computed from it once."""

    model: mujoco.MjModel
    kernel: Scene
    home_qpos: Array
    """(nq,) the home pose with the cube at rest; 16 numbers, then those of further joints."""
    home_ctrl: Array
    """(nu,) servo targets that hold it; 9 numbers, then those of further joints."""


@cache
def native_scene() -> NativeScene:
    """Compile the scene and let the cube settle, once per process."""
    return settled_scene(mujoco.MjModel.from_xml_path(str(SCENE_FILE)), support="table")


def settled_scene(model: mujoco.MjModel, *, support: str) -> NativeScene:
    """Let the cube of a compiled model settle on the body ``support``, which has one box geom of the same name."""
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("home").id)
    mujoco.mj_step(model, data, nstep=_SETTLE_STEPS)
    plate = model.geom(support)
    top = float(model.body(support).pos[2] + plate.pos[2] + plate.size[2])
    home = model.key("home")
    # The arm starts exactly at the keyframe; only the resting height of the cube comes from settling.
    qpos = home.qpos.copy()
    qpos[ARM_DOF + 4] = data.qpos[ARM_DOF + 4]
    kernel = Scene(
        model=model._address,
        joint_low=model.jnt_range[:ARM_DOF, 0].copy(),
        joint_high=model.jnt_range[:ARM_DOF, 1].copy(),
        home=home.qpos[:ARM_DOF].copy(),
        cube_body=model.body("cube").id,
        success_height=top + LIFT_HEIGHT_M,
        substeps=round(1 / (CONTROL_RATE_HZ * model.opt.timestep)),
    )
    return NativeScene(model=model, kernel=kernel, home_qpos=qpos, home_ctrl=home.ctrl.copy())


def address_row(data: mujoco.MjData) -> Array:
    """Return the row of addresses that :data:`sim_envs.native_kernel.POINTERS` names, (11,) int64."""
    arrays = (data.qpos, data.qvel, data.ctrl, data.xanchor, data.xaxis, data.site_xpos, data.site_xmat, data.xpos, data.xmat)
    # MuJoCo hands out the counters as a strided view of its (last info, number) pairs; the pair begins one word earlier.
    warning = array_address(data.warning.number) - 4
    return np.array([data._address, *(array_address(a) for a in arrays), warning], dtype=np.int64)
