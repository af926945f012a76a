"""What a run found out about the motion of particles, for the rest of their micrographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from refmotion_nb.data.relion.motion import initial_displacement, rigid_displacement
from refmotion_nb.data.schema import InputError, Movie
from refmotion_nb.data.store import ResultStore, read_hyperparameters
from refmotion_nb.numerics.motion_field import motion_field

_SAME_A = 0.01  # rigid motion that differs by more is of another motion correction, or of mirrored movies


@dataclass(frozen=True)
class ParticleMotion:
    """Trajectories of a finished run, and the distance over which its prior correlates them."""

    store: ResultStore
    distance_A: float
    program: str = ""  # that the run's input was from, RELION or CryoSPARC; empty if it is not recorded
    orientation: str = ""  # of a run on CryoSPARC's input, likewise

    @classmethod
    def of_run(cls, out: str | Path) -> ParticleMotion:
        """Open the output folder of a run.

        Raises
        ------
        InputError
            It holds no trajectories or hyperparameters.
        """
        out = Path(out)
        store = ResultStore(out.absolute() / "results.zarr")  # also read by workers, which run in another folder
        if not store.groups("tracks"):
            raise InputError(f"{out} holds no trajectories; give the output folder of a finished refmotion run")
        distance_A = float(read_hyperparameters(out / "hyperparameters.json")["distance_A"])
        inputs = store.attrs.get("inputs", {})
        return cls(store, distance_A, inputs.get("program", ""), inputs.get("orientation", ""))

    def of(self, movie: Movie) -> xr.Dataset | None:
        """Return the trajectories on a movie, in its frame; None if the run has none.

        Raises
        ------
        InputError
            They lie otherwise on it, start from another motion correction, or are of other frames.
        """
        tracks = self.store.read(f"tracks/{movie.micrograph}")
        if tracks is None:
            return None
        if self.rows_as_stored not in (None, movie.rows_as_stored):
            of_run = f"orientation {self.orientation}" if self.orientation else f"{self.program} input"
            raise InputError(
                f"{movie.path}: the trajectories in {self.store.path} are of {of_run}, its rows lie the other way; give the "
                "same input and orientation as for that run"
            )
        if self.orientation == "relion":
            tracks = mirrored(tracks, movie)
        rigid = tracks["rigid"].values
        if rigid.shape != (movie.n_frames, 2) or np.abs(rigid - rigid_displacement(movie)).max() > _SAME_A:
            raise InputError(
                f"{movie.path}: the trajectories in {self.store.path} start from another motion of the whole frame; give the "
                "same frames, motion correction and orientation as for that run"
            )
        return tracks

    @property
    def rows_as_stored(self) -> bool | None:
        """Whether movies must be read so that the trajectories, mirrored for ``relion``, lie on them; None if unknown."""
        if self.program == "RELION":
            return False
        return self.orientation in ("cryosparc", "relion") if self.orientation else None


def mirrored(tracks: xr.Dataset, movie: Movie) -> xr.Dataset:
    """Return trajectories on a movie with its rows in reverse order."""
    up = np.array([1.0, -1.0])
    bottom = np.array([0.0, (movie.height - 1) * movie.pixel_size_A])
    turned = {name: tracks[name].copy(data=tracks[name].values * up) for name in ("rigid", "common", "shift")}
    turned["coordinate"] = tracks["coordinate"].copy(data=tracks["coordinate"].values * up + bottom)
    return tracks.assign(turned)


def displacement(
    movie: Movie, tracks: xr.Dataset, distance_A: float, at_A: np.ndarray, frame_weight: np.ndarray
) -> np.ndarray:
    """Return how the field moved at positions (position, 2) Å, as its particles did: (position, frame, 2) Å.

    The sum over frames by ``frame_weight`` (frame,) lies where motion correction left it: particles stay at their
    coordinates, and where they are in the first frame, which is mixed up with errors of their poses, does not matter.
    """
    first, position = np.unique(tracks["coordinate"].values, axis=0, return_index=True)[::-1]
    along = tracks["rigid"].values + tracks["common"].values
    moved = along + motion_field(position, tracks["shift"].values[first] - along, at_A, distance_A)
    before = initial_displacement(movie, at_A)
    weight = frame_weight / frame_weight.sum()
    return moved - np.einsum("f,pfa->pa", weight, moved - before)[:, None]
