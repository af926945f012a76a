"""Rotation operators of point groups, oriented as RELION's."""

from __future__ import annotations

import re

import numpy as np

# (order, axis) of the generators; RELION's orientations
_POLYHEDRAL: dict[str, tuple[tuple[int, tuple[float, float, float]], ...]] = {
    "T": ((3, (0, 0, 1)), (2, (0, 0.816496, 0.577350))),
    "O": ((3, (1, 1, 1)), (4, (0, 0, 1))),
    "I1": ((2, (1, 0, 0)), (5, (0.85065080702670, 0, -0.5257311142635)), (3, (0.9341723640, 0.3568220765, 0))),
    "I2": ((2, (0, 0, 1)), (5, (0.525731114, 0, 0.850650807)), (3, (0, 0.356822076, 0.934172364))),
}


def rotation(order: int, axis: tuple[float, float, float]) -> np.ndarray:
    """Return the rotation (3, 3) by 360° / order about an axis."""
    u = np.asarray(axis, float) / np.linalg.norm(axis)
    angle = 2 * np.pi / order
    cross = np.array([[0, -u[2], u[1]], [u[2], 0, -u[0]], [-u[1], u[0], 0]])
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(u, u)


def operators(name: str) -> np.ndarray:
    """Return the rotations (operator, 3, 3) of a point group: Cn, Dn, T, O, I (= I2), I1, I2.

    Raises
    ------
    ValueError
        A name that is none of these.
    """
    name = name.strip().upper()
    cyclic = re.fullmatch(r"([CD])([1-9]\d*)", name)
    if cyclic:
        generators = [rotation(int(cyclic[2]), (0, 0, 1))]
        if cyclic[1] == "D":
            generators.append(rotation(2, (1, 0, 0)))
    else:
        name = "I2" if name == "I" else name
        if name not in _POLYHEDRAL:
            raise ValueError(f"symmetry {name}: give one of Cn, Dn, T, O, I1, I2")
        generators = [rotation(*g) for g in _POLYHEDRAL[name]]
    return _closure(generators)


def _closure(generators: list[np.ndarray]) -> np.ndarray:
    found = [np.eye(3)]
    for one in found:  # grows while it is walked
        for g in generators:
            new = g @ one
            if not any(np.allclose(new, old, atol=1e-4) for old in found):
                found.append(new)
    return np.stack(found)
