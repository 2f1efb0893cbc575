"""Pictures: the light meshes, the renderer, the choice of OpenGL, and that visual and physical scenes agree."""

import os
import subprocess
import sys
import threading

import mujoco
import numpy as np
import pytest

from robolearn.core.errors import RefusedError
from sim_envs import graphics
from sim_envs.light_model import _joined, crease_normals, light_model, simplified
from sim_envs.native_model import native_scene
from sim_envs.render import CameraRenderer, View, shared_renderer
from sim_envs.task import EnvOptions, make_env

RED_BOX = """<mujoco>
  <worldbody>
    <light pos="0 0 3" dir="0 0 -1" directional="true"/>
    <camera name="above" pos="0 0 2" fovy="45"/>
    <body name="box" pos="0 0 0.1"><geom type="box" size="0.1 0.1 0.1" rgba="1 0 0 1" group="1"/>
      <joint name="x" type="slide" axis="1 0 0"/></body>
    <geom name="unseen" type="sphere" size="0.5" group="0" contype="0" conaffinity="0"/>
  </worldbody>
</mujoco>"""


@pytest.fixture(scope="module")
def gl() -> str:
    try:
        return graphics.graphics_backend()
    except RefusedError as refusal:
        pytest.skip(str(refusal))


def red_box(colour: str = "1 0 0 1") -> CameraRenderer:
    return CameraRenderer(mujoco.MjModel.from_xml_string(RED_BOX.replace("1 0 0 1", colour)))


def redness(picture: np.ndarray) -> np.ndarray:
    """Return (h, w) bool: clearly red pixels."""
    r, g, b = (picture[..., i].astype(int) for i in range(3))
    return (r > 60) & (r > 2 * g) & (r > 2 * b)


def test_box_appears_where_geometry_says(gl: str) -> None:
    # Camera at 2 m, box top at 0.2 m: 1.8 m away. A picture of 100 px spans 2 * 1.8 * tan(22.5 deg) = 1.491 m, so the 0.2 m box
    # is 0.2 / 1.491 * 100 = 13.4 px wide, centred; moved by 0.3 m in x it shifts right by 0.3 / 1.491 * 100 = 20.1 px.
    renderer = red_box()
    still = redness(renderer.render(np.zeros(1), View("above", 100, 100)))
    moved = redness(renderer.render(np.array([0.3]), View("above", 100, 100)))
    assert abs(still.any(axis=0).sum() - 13.4) <= 1.5
    assert abs(np.argwhere(still)[:, 1].mean() - 49.5) < 1
    assert abs(np.argwhere(still)[:, 0].mean() - 49.5) < 1
    top = np.argwhere(moved)[:, 1].max() - np.argwhere(still)[:, 1].max()
    assert abs(top - 20.1) <= 1.5


def test_rows_run_downwards_and_bodies_can_be_moved(gl: str) -> None:
    renderer = red_box()
    body_pos = np.array([[0, 0, 0], [0, 0.3, 0.1]])  # +y is up in this camera's picture
    picture = redness(renderer.render(np.zeros(1), View("above", 100, 100), body_pos=body_pos))
    assert np.argwhere(picture)[:, 0].mean() < 40


def test_supersampled_pixels_are_means(gl: str) -> None:
    renderer = red_box()
    fine = renderer.render(np.array([0.07]), View("above", 64, 80))
    smooth = renderer.render(np.array([0.07]), View("above", 32, 40, supersample=2))
    assert (View("above", 160, 90).drawn_per_pixel, View("above", 161, 90).drawn_per_pixel) == (1, 2)
    expected = fine.reshape(32, 2, 40, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
    np.testing.assert_array_equal(smooth, expected)


def test_several_renderers_and_threads_do_not_disturb_each_other(gl: str) -> None:
    red, green = red_box(), red_box("0 1 0 1")
    view = View("above", 60, 60)
    alone_red, alone_green = red.render(np.zeros(1), view), green.render(np.zeros(1), view)
    assert redness(alone_red).any()
    assert not redness(alone_green).any()
    wrong = []

    def draw(renderer: CameraRenderer, expected: np.ndarray) -> None:
        wrong.extend(i for i in range(20) if (renderer.render(np.zeros(1), view) != expected).any())

    threads = [threading.Thread(target=draw, args=a) for a in ((red, alone_red), (green, alone_green), (red, alone_red))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_one_renderer_per_process_and_name(gl: str) -> None:
    built = []

    def build() -> mujoco.MjModel:
        built.append(1)
        return mujoco.MjModel.from_xml_string(RED_BOX)

    assert shared_renderer("test", build) is shared_renderer("test", build)
    assert built == [1]


def test_impossible_pictures_are_refused(gl: str) -> None:
    renderer = red_box()
    with pytest.raises(RefusedError, match="Did you mean 'above'"):
        renderer.render(np.zeros(1), View("abov", 10, 10))
    with pytest.raises(RefusedError, match="at least 1"):
        renderer.render(np.zeros(1), View("above", 0, 10))
    with pytest.raises(RefusedError, match=r"1 positions, got \(3,\)"):
        renderer.render(np.zeros(3), View("above", 10, 10))


def test_backend_choice_and_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(RefusedError, match="egl, osmesa"):
        graphics.graphics_backend()
    monkeypatch.setenv("MUJOCO_GL", "OSMESA")
    assert graphics.graphics_backend() == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(graphics, "_loadable", lambda name, *files: None)
    with pytest.raises(RefusedError, match="libegl1 libgl1 libosmesa6"):
        graphics.graphics_backend()
    monkeypatch.setattr(graphics, "_loadable", lambda name, *files: object())
    monkeypatch.setattr(graphics, "egl_devices", lambda: 0)
    assert graphics.graphics_backend() == "osmesa"
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_osmesa_draws_the_same_picture(gl: str, tmp_path) -> None:
    if graphics._loadable("OSMesa", "libOSMesa.so.8", "libOSMesa.so.6") is None:
        pytest.skip("libosmesa6 is not installed")
    out = tmp_path / "picture.npy"
    code = (
        "import mujoco, numpy as np, sys\n"
        "from sim_envs.render import CameraRenderer, View\n"
        "r = CameraRenderer(mujoco.MjModel.from_xml_string(sys.argv[1]))\n"
        "np.save(sys.argv[2], r.render(np.zeros(1), View('above', 50, 50)))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"} | {"MUJOCO_GL": "osmesa"}
    done = subprocess.run(
        [sys.executable, "-c", code, RED_BOX, str(out)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ours = red_box().render(np.zeros(1), View("above", 50, 50))
    assert np.abs(np.load(out).astype(int) - ours).mean() < 2.0


def sphere(rings: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return a unit sphere of about 2 * rings^2 triangles."""
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, rings), indexing="ij")
    grid = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1).reshape(-1, 3)
    index = np.arange(rings * rings).reshape(rings, rings)
    a, b, c, d = index[:-1, :-1].ravel(), index[1:, :-1].ravel(), index[1:, 1:].ravel(), index[:-1, 1:].ravel()
    return grid, np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def test_simplified_sphere_is_still_a_sphere() -> None:
    vertices, faces = simplified(*sphere(), max_faces=300)
    assert 200 <= len(faces) <= 330
    assert np.abs(np.linalg.norm(vertices, axis=1) - 1).max() < 0.1
    normals, corners = crease_normals(vertices, faces, most=2000)
    outward = vertices[faces] / np.linalg.norm(vertices[faces], axis=-1, keepdims=True)
    assert (np.sum(normals[corners] * outward, axis=-1) > 0.7).mean() > 0.95


def test_a_roof_keeps_its_ridge() -> None:
    # Two triangles that share the edge 0-1 and meet at 90 degrees, and a third that continues the second in its plane.
    vertices = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 0], [0, -1, 0], [1, -1, 0]], float)
    faces = np.array([[0, 1, 2], [0, 3, 1], [1, 3, 4]])
    normals, corners = crease_normals(vertices, faces, most=10)
    s = 0.5**0.5
    np.testing.assert_allclose(normals[corners[0]], [[0, s, s]] * 3, atol=2e-3)
    np.testing.assert_allclose(normals[corners[1:]], [[[0, -s, s]] * 3] * 2, atol=2e-3)


def test_joined_vertices_drop_collapsed_faces() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.2, 0, 0]], float)
    faces = np.array([[0, 1, 2], [0, 3, 2], [3, 1, 2]])
    joined, left = _joined(vertices, faces, np.array([[0], [1], [2], [0]]))
    np.testing.assert_allclose(joined, [[0.1, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert left.tolist() == [[0, 1, 2]]  # the second face has become a line, the third a double of the first


def test_light_model_keeps_frames_and_fits_the_arrays(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vertices, faces = sphere(60)
    spec = mujoco.MjSpec()
    spec.add_mesh(
        name="ball", uservert=(0.05 * vertices).ravel(), userface=faces.ravel()
    ).inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    body = spec.worldbody.add_body(pos=[1, 2, 3])
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="ball", pos=[0.1, 0, 0])
    full, light = spec.compile(), light_model(spec.compile())
    # Area of a sphere of 0.05 m: 0.0314 m^2, square root 0.177 m, times 1500 faces per metre = 266.
    assert 200 <= light.mesh_facenum[0] <= 290 < full.mesh_facenum[0]
    np.testing.assert_array_equal(light.geom_pos, full.geom_pos)
    used = light.mesh_face[: light.mesh_facenum[0]]
    assert used.max() < light.mesh_vertnum[0]
    assert light.mesh_facenormal[: light.mesh_facenum[0]].max() < light.mesh_normalnum[0]
    again = light_model(spec.compile())  # from the cache
    assert len(list((tmp_path / "robolearn" / "meshes").iterdir())) == 1
    np.testing.assert_array_equal(again.mesh_vert, light.mesh_vert)


def test_visual_and_physical_native_scene_have_the_same_poses() -> None:
    from sim_envs.native_visual import native_visual_model

    physics, visual = native_scene().model, native_visual_model()
    qpos = native_scene().home_qpos + np.random.default_rng(0).normal(0, 0.1, 16)
    frames = []
    for model in (physics, visual):
        data = mujoco.MjData(model)
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        frames.append({n: data.body(n).xpos.copy() for n in ("link4", "hand", "finger1", "finger2", "cube")})
    for name, position in frames[0].items():
        np.testing.assert_allclose(position, frames[1][name], atol=1e-12, err_msg=name)


def test_native_camera_observations_show_the_cube(gl: str) -> None:
    cameras = ("agentview", "robot0_eye_in_hand")
    env = make_env("native_lift", EnvOptions(num_envs=4, cameras=cameras, image_size=84))
    observation = env.reset(range(4))
    pictures = observation["observation.images.agentview"]
    assert pictures.shape == (4, 84, 84, 3)
    assert pictures.dtype == np.uint8
    assert env.spec.spaces.observation["observation.images.agentview"].shape == (84, 84, 3)
    # agentview looks at the robot from the front: world +y is on the right of the picture.
    columns = [np.argwhere(redness(p))[:, 1].mean() for p in pictures]
    assert np.argsort(columns).tolist() == np.argsort(observation["observation.environment_state"][:, 1]).tolist()
    np.testing.assert_array_equal(env.render(2, "agentview", 84, 84), pictures[2])
    assert env.render(1, "frontview", 120, 160).shape == (120, 160, 3)
    with pytest.raises(RefusedError, match="environment 9"):
        env.render(9, "frontview", 120, 160)
    with pytest.raises(RefusedError, match="frontview"):
        env.render(0, "frontveiw", 120, 160)
