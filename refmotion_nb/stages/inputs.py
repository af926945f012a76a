"""What is read of the movies: the parameters of opening a dataset, whichever program it is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import param

from refmotion_nb.data.schema import Gain, InputError
from refmotion_nb.stages.base import Stage

GAIN = ("gain", "gain_flip_x", "gain_flip_y", "gain_rotate", "gain_invert")
ORIENTATIONS = ["auto", "cryosparc", "relion", "imported"]


class Inputs(Stage):
    """What is read of the movies, and what replaces the metadata; options of `check`, arguments of `open_relion` too."""

    dose_per_frame_e_A2 = param.Number(
        default=None, allow_None=True, bounds=(0, None), inclusive_bounds=(False, True),
        doc="Dose (e/Å²) per frame of motion correction, instead of the metadata's.",
    )  # fmt: skip
    pre_exposure_e_A2 = param.Number(
        default=None, allow_None=True, bounds=(0, None),
        doc="Dose (e/Å²) before the first frame of the movie, instead of the metadata's.",
    )  # fmt: skip
    eer_fractions = param.Integer(
        default=None, allow_None=True, bounds=(1, None),
        doc="Number of fractions to cut EER movies into; motion and dose are carried over. Only where motion correction "
        "saw the whole movie. Default: as motion correction cut them.",
    )  # fmt: skip
    first_frame = param.Integer(
        default=1, bounds=(1, None),
        doc="First frame of the movie to use, from 1 (of an EER movie: fraction). The dose of those before it counts.",
    )  # fmt: skip
    last_frame = param.Integer(default=0, bounds=(0, None), doc="Last frame of the movie to use; 0: the last there is.")
    skip_movies_with_wrong_frame_count = param.Boolean(
        default=False,
        doc="Leave out movies without the most common number of frames, and list their particles; off: fail.",
    )  # fmt: skip
    skip_unusable_movies = param.Boolean(
        default=False,
        doc="Leave out movies that are missing, damaged or do not fit their metadata, and list their particles; off: fail.",
    )  # fmt: skip
    mixed_frame_counts = param.Boolean(
        default=False, doc="Process movies of different frame counts together, each on its own dose axis; off: fail."
    )
    hot_pixel_threshold = param.Number(
        default=6.0, bounds=(0, 30),
        doc="Find hot pixels in movies that none are listed for (all from CryoSPARC): they count more than their "
        "surroundings by what is as rare as this many standard deviations; fewer find more. 0: only those listed.",
    )  # fmt: skip
    subtract_background = param.Boolean(
        default=True,
        doc="Subtract the background of each movie, CryoSPARC's or else one estimated from its frames (not for "
        "--energy relion).",
    )  # fmt: skip
    gain = param.String(default=None, allow_None=True, doc="Gain reference instead of the one the movies name.")
    gain_flip_x = param.Boolean(default=False, doc="Mirror the gain given left to right.")
    gain_flip_y = param.Boolean(default=False, doc="Mirror the gain given top to bottom.")
    gain_rotate = param.Integer(default=0, bounds=(0, 3), doc="Quarter turns of the gain given, before it is mirrored.")
    gain_invert = param.Boolean(
        default=None, allow_None=True, doc="Divide by the gain given. Default: as RELION, for the .mrc of EER movies."
    )
    orientation: Any = param.Selector(
        default="auto", objects=ORIENTATIONS,
        doc="CryoSPARC only: how the rows of TIFF movies lie (see `open_cryosparc`); auto compares particles with the "
        "reference.",
    )  # fmt: skip

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of ``open_relion`` and, with ``orientation``, of ``open_cryosparc``.

        Raises
        ------
        InputError
            A gain is to be turned that is not named.
        """
        values = self.settings()
        path, *turned = (values.pop(name) for name in GAIN)
        if path is None and any(value is not None and value is not False and value != 0 for value in turned):
            raise InputError("the gain is to be turned, flipped or inverted; give gain too")
        del values["orientation"]
        return {**values, "gain": None if path is None else Gain(Path(path), *turned)}
