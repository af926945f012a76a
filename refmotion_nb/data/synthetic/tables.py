"""STAR files and truth of a simulation, named, laid out and signed as RELION's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refmotion_nb.data.star import write_star
from refmotion_nb.data.synthetic.images import Microscope
from refmotion_nb.data.synthetic.plan import MicrographPlan, euler_angles_deg
from refmotion_nb.data.synthetic.settings import SimulationSettings
from refmotion_nb.numerics.reconstruct import MaskedFSC

EARLY_DOSE_E_A2 = 4.0  # RELION's border between early and late motion


def write_motion(settings: SimulationSettings, plan: MicrographPlan, gain_name: str, out: Path) -> None:
    """Write the motion STAR of one micrograph: shifts in px are corrections, frames count from 1."""
    general = {
        "rlnImageSizeX": settings.shape[1],
        "rlnImageSizeY": settings.shape[0],
        "rlnImageSizeZ": settings.n_frames,
        "rlnMicrographMovieName": f"Movies/{plan.name}.{settings.movie_format}",
        "rlnMicrographGainName": gain_name,
        "rlnMicrographBinning": 1.0,
        "rlnMicrographOriginalPixelSize": settings.pixel_size_A,
        "rlnMicrographDoseRate": settings.dose_per_frame_e_A2,
        "rlnMicrographPreExposure": settings.pre_exposure_e_A2,
        "rlnVoltage": settings.voltage_kV,
        "rlnMicrographStartFrame": 1,
    }
    if settings.movie_format == "eer":
        general |= {"rlnEERUpsampling": 1, "rlnEERGrouping": settings.eer_grouping}
    general["rlnMotionModelVersion"] = 0 if plan.local_model_px is None else 1
    shifts = pd.DataFrame(
        {
            "rlnMicrographFrameNumber": np.arange(1, settings.n_frames + 1),
            "rlnMicrographShiftX": np.round(plan.shift_px[:, 0], 6),
            "rlnMicrographShiftY": np.round(plan.shift_px[:, 1], 6),
        }
    )
    blocks: dict[str, Any] = {"general": general, "global_shift": shifts}
    if plan.local_model_px is not None:
        coefficients = plan.local_model_px.ravel()
        blocks["local_motion_model"] = pd.DataFrame(
            {"rlnMotionModelCoeffsIdx": np.arange(len(coefficients)), "rlnMotionModelCoeff": coefficients}
        )
    if len(plan.hot):
        blocks["hot_pixels"] = pd.DataFrame(plan.hot.astype(float), columns=["rlnCoordinateX", "rlnCoordinateY"])
    write_star(out / "MotionCorr" / "Movies" / f"{plan.name}.star", blocks)


def write_tables(settings: SimulationSettings, plans: list[MicrographPlan], out: Path) -> None:
    """Write the tables of movies, corrected micrographs and particles."""
    scope, pixel_A = settings.microscope, settings.pixel_size_A
    movies = pd.DataFrame({"rlnMicrographMovieName": [f"Movies/{p.name}.{settings.movie_format}" for p in plans]})
    movies["rlnOpticsGroup"] = 1
    write_star(out / "movies.star", {"optics": _optics(scope), "movies": movies})
    rows = []
    for plan in plans:
        steps = np.linalg.norm(np.diff(plan.shift_px * pixel_A, axis=0), axis=1)
        early = steps[settings.dose_mid[1:] <= EARLY_DOSE_E_A2].sum()
        rows.append(
            {
                "rlnMicrographName": f"MotionCorr/Movies/{plan.name}.mrc",
                "rlnMicrographMetadata": f"MotionCorr/Movies/{plan.name}.star",
                "rlnOpticsGroup": 1,
                "rlnAccumMotionTotal": round(float(steps.sum()), 4),
                "rlnAccumMotionEarly": round(float(early), 4),
                "rlnAccumMotionLate": round(float(steps.sum() - early), 4),
            }
        )
    blocks = {
        "optics": _optics(scope, rlnMicrographPixelSize=pixel_A),
        "micrographs": pd.DataFrame(rows),
    }
    write_star(out / "MotionCorr" / "corrected_micrographs.star", blocks)
    particles = pd.concat([_particle_rows(settings, plan) for plan in plans], ignore_index=True)
    species = np.concatenate([plan.species for plan in plans])
    for which, box in enumerate(settings.boxes_px):
        image = {"rlnImagePixelSize": pixel_A, "rlnImageSize": box, "rlnImageDimensionality": 2}
        blocks = {"optics": _optics(scope, **image), "particles": particles[species == which]}
        write_star(out / "Extract" / particle_table(which), blocks)


def particle_table(which: int) -> str:
    """Name of the particle table of a species."""
    return f"particles_{which + 1}.star" if which else "particles.star"


def _particle_rows(settings: SimulationSettings, plan: MicrographPlan) -> pd.DataFrame:
    angles = np.round(euler_angles_deg(plan.rotations_given), 5)
    number = np.arange(1, plan.count + 1)
    return pd.DataFrame(
        {
            "rlnCoordinateX": plan.coordinates_px[:, 0].astype(float),
            "rlnCoordinateY": plan.coordinates_px[:, 1].astype(float),
            "rlnMicrographName": f"MotionCorr/Movies/{plan.name}.mrc",
            "rlnAngleRot": angles[:, 0],
            "rlnAngleTilt": angles[:, 1],
            "rlnAnglePsi": angles[:, 2],
            "rlnOriginXAngst": np.round(plan.origins_A[:, 0], 5),
            "rlnOriginYAngst": np.round(plan.origins_A[:, 1], 5),
            "rlnDefocusU": np.round(plan.defocus_A[:, 0], 2),
            "rlnDefocusV": np.round(plan.defocus_A[:, 1], 2),
            "rlnDefocusAngle": round(plan.astigmatism_deg, 4),
            "rlnCtfBfactor": 0.0,
            "rlnCtfScalefactor": 1.0,
            "rlnPhaseShift": settings.phase_shift_deg,
            "rlnRandomSubset": plan.half,
            "rlnOpticsGroup": 1,
            "rlnImageName": [f"{n:06d}@Extract/MotionCorr/Movies/{plan.name}.mrcs" for n in number],
        }
    )


def write_truth(settings: SimulationSettings, plans: list[MicrographPlan], out: Path) -> None:
    """Write truth.npz (displacements in Å per micrograph) and particles_truth.npz.

    Arrays hold all particles of a micrograph in the order in which they were placed, which is that of their numbers in
    ``rlnImageName``. With a second species ``<micrograph>_species`` and ``species`` tell which are of it: row i of a
    micrograph in the table of species s is the i-th particle with that value.
    """
    truth: dict[str, Any] = {"dose_mid": settings.dose_mid}
    for plan in plans:
        truth[f"{plan.name}_total"] = plan.total_A.mean(axis=2)
        truth[f"{plan.name}_local"] = plan.local_A
        truth[f"{plan.name}_drift"] = plan.drift_A
        truth[f"{plan.name}_pos"] = plan.positions_px
        truth[f"{plan.name}_hot"] = plan.hot
        if settings.second_share > 0:
            truth[f"{plan.name}_species"] = plan.species
    np.savez(out / "truth.npz", **truth)
    columns: dict[str, list] = {
        "mic": [np.full(p.count, p.index) for p in plans],
        "x": [p.positions_px[:, 0] for p in plans],
        "y": [p.positions_px[:, 1] for p in plans],
        "R": [p.rotations_given for p in plans],
        "Rtrue": [p.rotations for p in plans],
        "du": [p.defocus_A[:, 0] for p in plans],
        "dv": [p.defocus_A[:, 1] for p in plans],
        "ang": [np.full(p.count, p.astigmatism_deg) for p in plans],
        "ox": [p.origins_A[:, 0] for p in plans],
        "oy": [p.origins_A[:, 1] for p in plans],
        "half": [p.half for p in plans],
        "scale": [p.scale for p in plans],
    }
    if settings.second_share > 0:
        columns["species"] = [p.species for p in plans]
    arrays: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
    np.savez(out / "particles_truth.npz", **arrays)


def _optics(microscope: Microscope, **more: Any) -> pd.DataFrame:
    """One row of data_optics."""
    row = {
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnOpticsGroup": 1,
        "rlnMicrographOriginalPixelSize": microscope.pixel_size_A,
        "rlnVoltage": microscope.voltage_kV,
        "rlnSphericalAberration": microscope.spherical_aberration_mm,
        "rlnAmplitudeContrast": microscope.amplitude_contrast,
    }
    return pd.DataFrame([row | more])


def write_postprocess(path: Path, curves: MaskedFSC, pixel_size_A: float, box: int, mask: np.ndarray) -> None:
    """Write the FSC in the form of RELION's postprocess.star, beside the half maps and the mask it names."""
    shells = np.arange(len(curves.corrected))
    frequency = shells / (box * pixel_size_A)
    resolution = np.divide(1.0, frequency, out=np.full(len(shells), 999.0), where=shells > 0)
    below = np.flatnonzero(curves.corrected < 0.143)
    folder = path.parent.name
    general = {
        "rlnFinalResolution": float(resolution[max(below[0] - 1, 1) if below.size else -1]),
        "rlnUnfilteredMapHalf1": f"{folder}/half1.mrc",
        "rlnUnfilteredMapHalf2": f"{folder}/half2.mrc",
        "rlnParticleBoxFractionSolventMask": float(100 * mask.mean()),
        "rlnMaskName": f"{folder}/mask.mrc",
        "rlnRandomiseFrom": float(resolution[curves.randomised_from]),
    }
    table = pd.DataFrame(
        {
            "rlnSpectralIndex": shells,
            "rlnResolution": frequency,
            "rlnAngstromResolution": resolution,
            "rlnFourierShellCorrelationCorrected": curves.corrected,
            "rlnFourierShellCorrelationUnmaskedMaps": curves.unmasked,
            "rlnFourierShellCorrelationMaskedMaps": curves.masked,
            "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": curves.randomised,
        }
    )
    write_star(path, {"general": general, "fsc": table})
