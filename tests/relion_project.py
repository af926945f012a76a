"""A small RELION project in a folder: three movies, 30 particles, one reference; tests spoil it in one way each."""

from pathlib import Path

import numpy as np
import pandas as pd

from refmotion_nb.data.maps import write_map, write_stack
from refmotion_nb.data.schema import Reference
from refmotion_nb.data.star import read_star, write_star

MICS = ("a", "b", "c")
PARTICLES = "Refine3D/job020/run_data.star"
MICROGRAPHS = "MotionCorr/job002/corrected_micrographs.star"


def make_project(root: Path) -> Path:
    rng = np.random.default_rng(3)
    for name in MICS:
        write_stack(root / f"Movies/{name}.mrcs", rng.poisson(1, (4, 64, 96)), 1.0)
        write_star(root / f"MotionCorr/job002/Movies/{name}.star", motion_blocks(name))
    write_star(root / MICROGRAPHS, {"optics": optics(), "micrographs": pd.DataFrame({
        "rlnMicrographName": [f"MotionCorr/job002/Movies/{name}.mrc" for name in MICS],
        "rlnMicrographMetadata": [f"MotionCorr/job002/Movies/{name}.star" for name in MICS],
        "rlnOpticsGroup": 1})})  # fmt: skip
    write_star(root / PARTICLES, {"optics": optics(), "particles": particles(rng)})
    for name in ("half1", "half2"):
        write_map(root / f"Refine3D/job020/{name}.mrc", rng.normal(size=(16, 16, 16)), 2.5)
    write_map(root / "mask.mrc", np.ones((16, 16, 16)), 2.5)
    return root


def reference() -> Reference:
    return Reference(Path("Refine3D/job020/half1.mrc"), Path("Refine3D/job020/half2.mrc"), Path("mask.mrc"))


def optics() -> pd.DataFrame:
    return pd.DataFrame({
        "rlnOpticsGroupName": ["one"], "rlnOpticsGroup": [1], "rlnVoltage": [200.0], "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1], "rlnImagePixelSize": [2.5], "rlnImageSize": [16], "rlnImageDimensionality": [2],
        "rlnOddZernike": ["[-0.23,0.09]"], "rlnBeamTiltX": [0.1], "rlnMagMat00": [1.01],
        "rlnMagMat11": [0.99]})  # fmt: skip


def motion_blocks(name: str) -> dict:
    general = {
        "rlnImageSizeX": 96, "rlnImageSizeY": 64, "rlnImageSizeZ": 4, "rlnMicrographMovieName": f"Movies/{name}.mrcs",
        "rlnMicrographBinning": 2.0, "rlnMicrographOriginalPixelSize": 1.0, "rlnMicrographDoseRate": 1.5,
        "rlnMicrographPreExposure": 0.5, "rlnMicrographStartFrame": 1, "rlnMotionModelVersion": 0}  # fmt: skip
    shift = pd.DataFrame({"rlnMicrographFrameNumber": [1, 2, 3, 4], "rlnMicrographShiftX": [0.0, 1, 2, 3],
                          "rlnMicrographShiftY": [0.0, -1, -2, -3]})  # fmt: skip
    return {"general": general, "global_shift": shift}


def particles(rng: np.random.Generator) -> pd.DataFrame:
    n = 30
    table = pd.DataFrame(rng.uniform(5, 25, (n, 2)).round(3), columns=["rlnCoordinateX", "rlnCoordinateY"])
    table["rlnMicrographName"] = [f"MotionCorr/job002/Movies/{MICS[i % 3]}.mrc" for i in range(n)]
    table["rlnImageName"] = [f"{i // 3 + 1:06d}@Extract/job018/Movies/{MICS[i % 3]}.mrcs" for i in range(n)]
    for label in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"):
        table[label] = rng.normal(size=n).round(4)
    table["rlnDefocusU"], table["rlnDefocusV"], table["rlnDefocusAngle"] = 10000.0, 9800.0, 30.0
    table["rlnRandomSubset"], table["rlnOpticsGroup"] = np.arange(n) % 2 + 1, 1
    return table


def edit(path: Path, block: str, change) -> None:
    """Read a STAR file, let ``change`` work on one block (in place, or return the new one), and write it back."""
    blocks = read_star(path)
    blocks[block] = new if (new := change(blocks[block])) is not None else blocks[block]
    write_star(path, blocks)
