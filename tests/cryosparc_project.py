"""A RELION folder as a CryoSPARC project (see data/synthetic/cryosparc.py), its tables by CryoSPARC's official writer."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import starfile

from refmotion_nb.data.synthetic.cryosparc import BACKGROUND_BIN, write_project


def dataset_class():
    return pytest.importorskip("cryosparc.dataset", reason="cryosparc-tools is not installed").Dataset


def save(path: Path, columns: dict, container: bool = False) -> Path:
    dataset = dataset_class()({name: np.asarray(value) for name, value in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save(path, format=2 if container else 1)
    return path


def convert(
    folder: Path, out: Path, orientation: str = "cryosparc", container: bool = False, spline=None, background=None,
    species=(("particles.star", "Ref"),),
) -> dict:  # fmt: skip
    """Return the arguments of ``open_cryosparc``; the background is of any scale, and flat unless given."""
    background = {
        stem: 17 * image for stem, image in (background or flat(folder, [name for name, _ in species])).items()
    }
    project = write_project(folder, out, species, orientation, partial(save, container=container), spline, background)
    return {name: one[0] if isinstance(one, list) and len(one) == 1 else one for name, one in project.items()}


def flat(folder: Path, tables: list[str]) -> dict[str, np.ndarray]:
    found = {}
    for one in tables:
        for name in starfile.read(folder / "Extract" / one)["particles"]["rlnMicrographName"].unique():
            general = starfile.read(folder / Path(name).with_suffix(".star"), always_dict=True)["general"]
            size = [int(np.squeeze(general[f"rlnImageSize{axis}"])) // BACKGROUND_BIN for axis in "YX"]
            found[Path(name).stem] = np.ones(size, np.float32)
    return found
