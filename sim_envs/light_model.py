"""A model for drawing: the meshes of a MuJoCo model reduced to a few hundred faces each, in place.

Mesh arrays of a compiled model are overwritten with their reduced form (quadric edge collapse, Garland and Heckbert 1997, by
fast-simplification); frames, geoms and materials stay, so positions of the full model are positions of the light one.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import fast_simplification
import mujoco
import numpy as np
from scipy.spatial import cKDTree

from robolearn.core.types import Array

FACES_PER_METRE = 1500
"""Faces that a mesh keeps for each metre of the square root of its area: a link of the Panda 400 to 500, a screw the fewest.

SIMULATION.md §3 measures the price of more: software rendering costs about 0.1 us per face."""
FEWEST_FACES, MOST_FACES = 60, 1500
_CREASE_COSINE = np.cos(np.deg2rad(35))
"""Faces that meet at a larger angle than this keep a visible edge between them."""
_VERSION = 3
"""Part of every cache key; goes up with any change of what is cached."""


def light_model(model: mujoco.MjModel) -> mujoco.MjModel:
    """Reduce the meshes of ``model`` in place, each to a number of faces that suits its size, and return the model.

    The result is for drawing only: its collision and inertia data no longer fit its meshes.
    """
    for mesh in range(model.nmesh):
        _reduce(model, mesh)
    return model


def _reduce(model: mujoco.MjModel, mesh: int) -> None:
    v0, f0, n0 = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh], model.mesh_normaladr[mesh]
    vertices = model.mesh_vert[v0 : v0 + model.mesh_vertnum[mesh]].copy()
    faces = model.mesh_face[f0 : f0 + model.mesh_facenum[mesh]].copy()
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    max_faces = int(np.clip(FACES_PER_METRE * np.sqrt(area), FEWEST_FACES, MOST_FACES))
    if len(faces) <= max_faces:
        return
    light_vertices, light_faces = _cached_simplify(vertices, faces, max_faces)
    normals, corner_normals = crease_normals(light_vertices, light_faces, most=int(model.mesh_normalnum[mesh]))
    t0 = model.mesh_texcoordadr[mesh]
    if t0 >= 0:
        # A vertex takes the texture coordinate of the nearest original vertex.
        corner_of = np.zeros(len(vertices), np.int64)
        corner_of[faces.ravel()] = model.mesh_facetexcoord[f0 : f0 + len(faces)].ravel()
        nearest = cKDTree(vertices).query(light_vertices)[1]
        model.mesh_facetexcoord[f0 : f0 + len(light_faces)] = corner_of[nearest][light_faces]
    model.mesh_vert[v0 : v0 + len(light_vertices)] = light_vertices
    model.mesh_face[f0 : f0 + len(light_faces)] = light_faces
    model.mesh_normal[n0 : n0 + len(normals)] = normals
    model.mesh_facenormal[f0 : f0 + len(light_faces)] = corner_normals
    model.mesh_vertnum[mesh], model.mesh_facenum[mesh] = len(light_vertices), len(light_faces)
    model.mesh_normalnum[mesh] = len(normals)


def crease_normals(vertices: Array, faces: Array, *, most: int) -> tuple[Array, Array]:
    """Return (n, 3) unit normals, n <= ``most``, and (f, 3) which of them each face's corner has.

    A corner's normal is the area-weighted mean over the faces around its vertex that are within the crease angle of its own face:
    round parts look round and edges stay sharp. Normals that hardly differ are shared until no more than ``most`` are left.
    """
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    area = np.cross(b - a, c - a)
    unit = area / np.maximum(np.linalg.norm(area, axis=1, keepdims=True), 1e-12)
    corner_vertex = faces.ravel()
    corner_face = np.repeat(np.arange(len(faces)), 3)
    order = np.argsort(corner_vertex, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(corner_vertex[order]) != 0])
    sums = np.zeros((len(corner_vertex), 3))
    for group in np.split(order, starts[1:]):
        around = corner_face[group]
        near = unit[around] @ unit[around].T >= _CREASE_COSINE
        sums[group] = near @ area[around]
    normals = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    for steps in (1000, 30, 10, 4):
        distinct, index = np.unique(np.round(normals * steps), axis=0, return_inverse=True)
        if len(distinct) <= most:
            break
    distinct /= np.maximum(np.linalg.norm(distinct, axis=1, keepdims=True), 1e-12)
    return distinct[:most], np.minimum(index.reshape(len(faces), 3), most - 1)


def simplified(vertices: Array, faces: Array, max_faces: int) -> tuple[Array, Array]:
    """Return (n, 3) vertices and (f, 3) faces of a mesh that looks alike with about ``max_faces`` faces.

    Edge collapse stops where a mesh is many small separate parts (bolts, holes); what is then still far too large has the
    vertices of each cell of an ever coarser grid joined.
    """
    vertices, faces = _joined(vertices, faces, np.round(vertices, 5))
    vertices, faces = fast_simplification.simplify(
        vertices.astype(np.float32), faces.astype(np.int32), target_count=min(max_faces, len(faces)), agg=5.0
    )
    extent = np.ptp(vertices, axis=0).max()
    cells = 32
    while len(faces) > 4 * max_faces:
        vertices, faces = _joined(vertices, faces, np.floor(vertices / extent * cells))
        cells = cells * 3 // 4
    return vertices, faces


def _joined(vertices: Array, faces: Array, labels: Array) -> tuple[Array, Array]:
    """Join the vertices of equal ``labels`` (n, k) into their mean, and drop faces that have become lines or doubles."""
    _, first, index = np.unique(labels, axis=0, return_index=True, return_inverse=True)
    index = index.ravel()
    sums = np.zeros((len(first), 3))
    np.add.at(sums, index, vertices)
    joined = sums / np.bincount(index)[:, None]
    faces = index[faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    _, keep = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    return joined, faces[np.sort(keep)]


def _cached_simplify(vertices: Array, faces: Array, max_faces: int) -> tuple[Array, Array]:
    """Simplify a mesh and keep the result under ~/.cache/robolearn (or XDG_CACHE_HOME); without a writable cache, each time."""
    key = hashlib.sha256(vertices.tobytes() + faces.tobytes() + f"{max_faces} {_VERSION}".encode()).hexdigest()[:32]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "robolearn" / "meshes"
    file = folder / f"{key}.npz"
    try:
        with np.load(file, allow_pickle=False) as stored:
            return stored["vertices"], stored["faces"]
    except (OSError, ValueError, KeyError):
        pass
    light_vertices, light_faces = simplified(vertices, faces, max_faces)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as temporary:
            np.savez(temporary, vertices=light_vertices, faces=light_faces)
        Path(temporary.name).replace(file)
    except OSError:
        pass  # The cache saves time and nothing else.
    return light_vertices, light_faces
