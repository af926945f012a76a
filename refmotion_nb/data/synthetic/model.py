"""From an atomic model to exact projections of its electrostatic potential in ice, atom by atom."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import finufft
import gemmi
import numpy as np
import scipy.fft
from scipy import ndimage
from scipy.spatial.transform import Rotation

from refmotion_nb.data.schema import InputError

POTENTIAL_V_A2 = 47.87801  # h²/(2π m e): potential in V of an electron scattering factor in Å, per Å³
ICE_MOLECULES_PER_A3 = 0.93 / 18.015 * 0.602214  # vitreous ice, 0.93 g/cm³
# Volume of solvent an atom displaces, Å³: Fraser, MacRae & Suzuki, J. Appl. Cryst. 11, 693 (1978), and CRYSOL's ions
DISPLACED_A3 = {
    "H": 5.15, "C": 16.44, "N": 2.49, "O": 9.13, "P": 5.73, "S": 19.86, "Mg": 17.16, "Na": 6.54, "Cl": 24.84,
    "K": 9.63, "Ca": 31.89, "Mn": 9.20, "Fe": 7.99, "Co": 6.88, "Ni": 6.88, "Cu": 8.78, "Zn": 9.85,
}  # fmt: skip
# Hydrogens bound on average to an atom of protein, for models that leave them out
HYDROGENS = {"C": 1.15, "N": 1.25, "O": 0.2, "S": 0.3}


@dataclass(frozen=True)
class AtomicModel:
    """Atoms of a biological assembly, grouped by element, with the assembly's centre at the origin."""

    elements: tuple[str, ...]
    positions_A: tuple[np.ndarray, ...]  # per element (atom, xyz)
    occupancies: tuple[np.ndarray, ...]  # per element (atom,)
    subunits: tuple[np.ndarray, ...]  # per element (atom,) number of the chain
    symmetry: np.ndarray  # (operator, 3, 3) rotations that leave the assembly as it is, the identity first
    has_hydrogens: bool

    @property
    def radius_A(self) -> float:
        """Distance of the outermost atom from the centre."""
        return max(float(np.linalg.norm(p, axis=1).max()) for p in self.positions_A)


def read_model(path: Path | str | None = None) -> AtomicModel:
    """Atoms of the first biological assembly in a PDB or mmCIF file (.gz too); without a path mouse apoferritin, 7A4M.

    Ordered water is left out: the ice around and inside the particle stands for it.

    Raises
    ------
    InputError
        The file cannot be read or holds no atoms.
    """
    source = Path(str(resources.files("refmotion_nb.data") / "models" / "7a4m.cif.gz")) if path is None else Path(path)
    try:
        structure = gemmi.read_structure(str(source))
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{source}: not a readable PDB or mmCIF file ({error})") from error
    if not len(structure):
        raise InputError(f"{source}: no atoms; give a PDB or mmCIF file with coordinates")
    atoms, assembly = structure[0], next(iter(structure.assemblies), None)
    if assembly is not None:
        atoms = gemmi.make_assembly(assembly, atoms, gemmi.HowToNameCopiedChain.Short)
    found = [cra for cra in atoms.all() if cra.atom.occ > 0 and not cra.residue.is_water()]
    if not found:
        raise InputError(f"{source}: no atoms; give a PDB or mmCIF file with coordinates")
    names = np.array([cra.atom.element.name for cra in found])
    positions = np.array([cra.atom.pos.tolist() for cra in found])
    occupancy = np.array([cra.atom.occ for cra in found])
    chain = np.unique([cra.chain.name for cra in found], return_inverse=True)[1]
    operators = [] if assembly is None else [o.transform for g in assembly.generators for o in g.operators]
    rotations, centre = _point_group(operators or [gemmi.Transform()], positions.mean(axis=0))
    positions -= centre
    elements = tuple(sorted(set(names)))
    return AtomicModel(
        elements,
        tuple(positions[names == e] for e in elements),
        tuple(occupancy[names == e] for e in elements),
        tuple(chain[names == e] for e in elements),
        rotations,
        "H" in elements or "D" in elements,
    )


def displaced(model: AtomicModel, outwards_A: float, turn_deg: float) -> AtomicModel:
    """Return another conformation: every subunit moved outwards along its radius and turned about it, as a rigid body.

    The symmetry of the assembly stays.

    Raises
    ------
    InputError
        There are no subunits around the centre.
    """
    atoms, chain = np.concatenate(model.positions_A), np.concatenate(model.subunits)
    moved = np.empty_like(atoms)
    for one in np.unique(chain):
        mine = chain == one
        middle = atoms[mine].mean(axis=0)
        distance = np.linalg.norm(middle)
        if distance < 1:
            raise InputError("a subunit lies in the middle of the model and cannot move outwards; give a second_model")
        turn = Rotation.from_rotvec(np.deg2rad(turn_deg) * middle / distance)
        moved[mine] = turn.apply(atoms[mine] - middle) + middle * (1 + outwards_A / distance)
    cuts = np.cumsum([len(part) for part in model.positions_A])[:-1]
    return replace(model, positions_A=tuple(np.split(moved, cuts)))


def _point_group(transforms: list[gemmi.Transform], middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations of an assembly and the point they leave in place, as near the middle of the atoms as can be.

    Only the identity and the middle where the operators form no point group.
    """
    rotations = np.array([t.mat.tolist() for t in transforms])
    shifts = np.array([t.vec.tolist() for t in transforms])
    products = np.unique(np.round(np.einsum("iab,jbc->ijac", rotations, rotations), 3).reshape(-1, 9), axis=0)
    apart = np.abs(products[:, None] - rotations.reshape(1, -1, 9)).max(axis=2).min(axis=1)
    turns = rotations - np.eye(3)
    # the centre c = middle + d solves R c + t = c for all operators; along the axis of a cyclic group d stays 0
    offset = np.linalg.lstsq(turns.reshape(-1, 3), -(turns @ middle + shifts).reshape(-1), rcond=1e-6)[0]
    centre = middle + offset
    if apart.max() > 5e-3 or np.abs(turns @ centre + shifts).max() > 0.05:
        return np.eye(3)[None], middle
    return rotations[np.argsort(np.linalg.norm(turns, axis=(1, 2)), kind="stable")], centre


def ice_potential_V() -> float:
    """Mean inner potential of vitreous ice, from free atoms as the particle's own potential is."""
    per_molecule = float(_scattering_A("O", np.zeros(1))[0] + 2 * _scattering_A("H", np.zeros(1))[0])
    return POTENTIAL_V_A2 * ICE_MOLECULES_PER_A3 * per_molecule


def scattering_factors(model: AtomicModel, frequency: np.ndarray, b_factor_A2: float) -> tuple[np.ndarray, ...]:
    """Per element the transform, in V·Å³, of an atom's potential less that of the ice it displaces.

    Electron scattering factors of International Tables C, table 4.3.2.2 (Peng et al. 1996); displaced ice as a Gaussian
    of the atom's volume (Fraser et al. 1978). ``frequency`` is in 1/Å; any shape.
    """
    ice_V = ice_potential_V()
    factors = []
    for element in model.elements:
        bound = 0.0 if model.has_hydrogens else HYDROGENS.get(element, 0.0)
        atom = _scattering_A(element, frequency) + bound * _scattering_A("H", frequency)
        volume = DISPLACED_A3.get(element, 10.0) + bound * DISPLACED_A3["H"]
        ice = ice_V * volume * np.exp(-np.pi * volume ** (2 / 3) * frequency**2)
        factors.append((POTENTIAL_V_A2 * atom - ice) * np.exp(-b_factor_A2 * frequency**2 / 4))
    return tuple(factors)


def _scattering_A(element: str, frequency: np.ndarray) -> np.ndarray:
    table = gemmi.Element(element).c4322
    stol2 = (frequency / 2) ** 2
    return sum((a * np.exp(-b * stol2) for a, b in zip(table.a, table.b)), np.zeros_like(stol2))


def half_plane_frequency(size: int, pixel_size_A: float) -> np.ndarray:
    """|k| in 1/Å of the coefficients of ``rfft2`` of a square box: (size, size//2+1)."""
    ky = np.fft.fftfreq(size, pixel_size_A)
    kx = np.fft.rfftfreq(size, pixel_size_A)
    return np.hypot(ky[:, None], kx[None])


def project(
    model: AtomicModel,
    rotation: np.ndarray,  # (3, 3) Euler matrix
    factors: tuple[np.ndarray, ...],  # per element (size, size//2+1), from scattering_factors
    pixel_size_A: float,
) -> np.ndarray:
    """Transform (size, size//2+1) complex64 of the projected potential, V·Å³, with the particle's centre at the origin.

    Exact up to Nyquist: the sum over atoms of f(k)·exp(-2πi k·x), by a non-uniform FFT (relative error 1e-5).
    ``irfft2(...) / pixel_size_A²`` is the projected potential in V·Å.
    """
    size = factors[0].shape[0]
    total = np.zeros(factors[0].shape, np.complex64)
    for positions, occupancy, factor in zip(model.positions_A, model.occupancies, factors):
        xy = (positions @ np.asarray(rotation)[:2].T * (2 * np.pi / (size * pixel_size_A))).astype(np.float32)
        if not np.isfinite(xy).all():  # finufft would write beyond its memory
            raise InputError(
                f"atoms lie beyond all bounds in pixels of {pixel_size_A:g} Å; correct model and pixel_size_A"
            )
        sums = finufft.nufft2d1(
            np.ascontiguousarray(xy[:, 1]), np.ascontiguousarray(xy[:, 0]), occupancy.astype(np.complex64),
            (size, size), eps=1e-5, isign=-1, nthreads=1, modeord=1,
        )  # fmt: skip
        total += sums[:, : size // 2 + 1] * factor.astype(np.float32)
    return total


def soft_mask(model: AtomicModel, size: int, pixel_size_A: float, extend_A: float, edge_A: float) -> np.ndarray:
    """Mask (z, y, x): 1 within ``extend_A`` of an atom, falling to 0 over a raised cosine of ``edge_A``."""
    coarse_px = max(1.0, 2.0 / pixel_size_A)  # distances are smooth: 2 Å voxels do, and large boxes stay quick
    n = int(np.ceil(size / coarse_px)) + 2
    atoms = np.concatenate(model.positions_A)[:, ::-1] / (coarse_px * pixel_size_A) + n // 2
    empty = np.ones((n, n, n), bool)
    cells = np.rint(atoms).astype(int)
    empty[tuple(cells[((cells >= 0) & (cells < n)).all(axis=1)].T)] = False
    distance = ndimage.distance_transform_edt(empty).astype(np.float32) * (coarse_px * pixel_size_A)
    at = ((np.arange(size) - size // 2) / coarse_px + n // 2).astype(np.float32)
    for axis in range(3):  # trilinear, one axis at a time
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        distance = np.take(distance, low, axis) * (1 - share) + np.take(distance, low + 1, axis) * share
    phase = np.clip((distance - extend_A) / edge_A, 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * phase)).astype(np.float32)


def render_size(model: AtomicModel, pixel_size_A: float, spread_A: float) -> int:
    """FFT-friendly even box, px, that holds a projection and the ``spread_A`` its defocused signal reaches further."""
    need = int(np.ceil(2 * (model.radius_A + spread_A) / pixel_size_A))
    return 2 * scipy.fft.next_fast_len((need + 1) // 2, real=True)
