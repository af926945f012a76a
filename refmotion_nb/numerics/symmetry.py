"""Rotation operators of point groups, oriented as RELION's."""

from __future__ import annotations

import re

import numpy as np

_PHI = 0.5 * (1 + np.sqrt(5))
Axis = tuple[float, float, float]
# (order, axis) of the generators; RELION's orientations
POLYHEDRAL: dict[str, tuple[tuple[int, Axis], ...]] = {
    "T": ((3, (0, 0, 1)), (2, (0, np.sqrt(2), 1))),
    "O": ((3, (1, 1, 1)), (4, (0, 0, 1))),
    "I1": ((2, (1, 0, 0)), (5, (_PHI, 0, -1)), (3, (_PHI**2, 1, 0))),
    "I2": ((2, (0, 0, 1)), (5, (1, 0, _PHI)), (3, (0, 1, _PHI**2))),
    "I3": ((5, (0, 0, 1)), (2, (-1, 0, _PHI))),
    "I4": ((5, (0, 0, 1)), (2, (1, 0, _PHI))),
}


def rotation(order: float, axis: Axis) -> np.ndarray:
    """Return the rotation (3, 3) by 360° / order about an axis."""
    u = np.asarray(axis, float) / np.linalg.norm(axis)
    angle = 2 * np.pi / order
    cross = np.array([[0, -u[2], u[1]], [u[2], 0, -u[0]], [-u[1], u[0], 0]])
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(u, u)


def generators(name: str) -> list[tuple[int, Axis]]:
    """Return (order, axis) of rotations that generate a point group: Cn, Dn, T, O, I (= I2), I1, I2, I3, I4.

    Raises
    ------
    ValueError
        A name that is none of these.
    """
    name = name.strip().upper()
    cyclic = re.fullmatch(r"([CD])([1-9]\d?)", name)
    if cyclic:
        about_z: tuple[int, Axis] = int(cyclic[2]), (0, 0, 1)
        return [about_z, (2, (1, 0, 0))] if cyclic[1] == "D" else [about_z]
    known = "I2" if name == "I" else name
    if known not in POLYHEDRAL:
        raise ValueError(f"symmetry {name}: give one of Cn, Dn, T, O, I1, I2, I3, I4")
    return [*POLYHEDRAL[known]]


def operators(name: str) -> np.ndarray:
    """Return all rotations (operator, 3, 3) of a point group, the identity first; errors as for ``generators``."""
    turns, found = [rotation(*g) for g in generators(name)], [np.eye(3)]
    for one in found:  # grows while it is walked
        for turn in turns:
            new = turn @ one
            if not any(np.allclose(new, old, atol=1e-4) for old in found):
                found.append(new)
    return np.stack(found)


def grid_cosets(rotations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split a group (operator, 3, 3) into its operators that map a cubic grid onto itself and one of each coset.

    Returns the former (H) as integers and representatives r such that every operator is one h @ r: a transform filled
    at the places r k only becomes symmetric by adding up, at every grid point, the values at its places h k.
    """
    on_grid = np.abs(rotations - np.rint(rotations)).max((1, 2)) < 1e-6
    subgroup = np.rint(rotations[on_grid]).astype(np.int64)
    representatives: list[np.ndarray] = []
    for one in rotations:
        if not any((np.abs(subgroup @ r - one).max((1, 2)) < 1e-4).any() for r in representatives):
            representatives.append(one)
    return subgroup, np.stack(representatives)
