"""What to simulate: one checked set of settings, and presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from refmotion_nb.data.schema import InputError
from refmotion_nb.data.synthetic.images import Microscope

FORMATS = ("tif", "mrc", "eer")
MOTIONS = ("smooth", "rough", "recorded", "none")


def setting(default: Any, doc: str) -> Any:
    """Return a field with what it means, which is also the help of the option."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class SimulationSettings:
    """Settings of a simulation; the defaults make a small set that shows what motion correction is worth.

    Raises
    ------
    InputError
        At construction, where a setting makes no sense: one line naming it and the remedy.
    """

    n_micrographs: int = setting(4, "movies")
    size_px: int = setting(1024, "width of the movie, pixels")
    height_px: int | None = setting(None, "height of the movie, as the width unless given")
    n_frames: int = setting(24, "frames of a movie")
    pixel_size_A: float = setting(1.0, "pixel size of the movies, Å")
    dose_per_frame_e_A2: float = setting(2.0, "dose of a frame, e/Å²")
    pre_exposure_e_A2: float = setting(0.0, "dose before the first frame, e/Å²")
    voltage_kV: float = setting(300.0, "acceleration voltage, kV")
    spherical_aberration_mm: float = setting(2.7, "spherical aberration, mm")
    amplitude_contrast: float = setting(0.1, "amplitude contrast, 0 to 1")
    phase_shift_deg: float = setting(0.0, "phase shift of a phase plate, degrees")
    movie_format: str = setting("tif", "tif, mrc or eer")
    eer_grouping: int = setting(20, "raw EER frames per frame")

    model: Path | None = setting(None, "PDB or mmCIF file; mouse apoferritin unless given")  # noqa: RUF009
    symmetry: str = setting("assembly", "of the reference: that of the model's assembly, or none")
    b_factor_A2: float = setting(20.0, "fall-off of the signal by the microscope and the model, Å²")
    box_px: int = setting(160, "box of the particle images, pixels of the movie")
    particles_per_micrograph: int = setting(36, "particles on a movie")
    min_distance_A: float | None = setting(
        None, "between centres, Å; just short of the particle's diameter unless given"
    )
    edge_px: float | None = setting(
        None, "from the edge to a particle's centre, pixels; half the box and a little unless given"
    )
    defocus_min_A: float = setting(7000.0, "lowest defocus, Å")
    defocus_max_A: float = setting(14000.0, "highest defocus, Å")
    defocus_spread_A: float = setting(110.0, "defocus between the particles of a micrograph, RMS, Å")
    astigmatism_A: float = setting(340.0, "difference of the two defoci, Å")
    scale_spread: float = setting(0.05, "spread of the particles' contrast, RMS")

    second_share: float = setting(
        0.0, "share of particles of a second species, with a table and a reference of its own"
    )
    second_model: Path | None = setting(None, "PDB or mmCIF file; the first with its subunits displaced unless given")  # noqa: RUF009
    second_swelling_A: float = setting(6.0, "by which the second conformation's subunits lie farther out, Å")
    second_turn_deg: float = setting(0.0, "by which they are turned about their radius, degrees")
    second_box_px: int | None = setting(None, "box of the second species, as the first's unless given")

    motion: str = setting("smooth", "smooth, rough (exponential kernel), recorded (from motion STARs), none")
    speed_A_per_dose: float = setting(2.2, "local motion at the start, RMS per axis, Å per e/Å²")
    correlation_distance_A: float = setting(2500.0, "over which local motion is alike, Å")
    drift_A_per_dose: float = setting(0.5, "motion of the whole field at the start, RMS per axis, Å per e/Å²")
    motion_scale: float = setting(1.0, "multiplies all motion")
    motion_stars: Path | None = setting(None, "folder of RELION motion STARs with local models, for recorded motion")  # noqa: RUF009
    rigid_error_A: float = setting(0.8, "error of the whole-frame alignment, RMS over frames, Å")
    patch_alignment: bool = setting(False, "the motion STARs hold a local model too, fitted to the motion on a grid")

    pose_error_deg: float = setting(0.3, "error of the particles' orientations, RMS, degrees")
    origin_error_A: float = setting(0.25, "error of the particles' origins, RMS per axis, Å")
    pick_error_A: float = setting(2.0, "error of the coordinates, RMS per axis, known to the origins, Å")

    ice_noise: float = setting(0.03, "structural noise, RMS relative to the mean intensity")
    illumination_spread: float = setting(0.05, "slow variation of the intensity over the field, RMS")
    hot_pixels: int = setting(6, "hot pixels of a movie")
    gain_spread: float = setting(0.03, "spread of the gain between pixels, RMS")
    seed: int = setting(1, "of the random numbers")
    workers: int | None = setting(None, "threads; all processors that may be used unless given")

    def __post_init__(self) -> None:
        positive = (
            "n_micrographs size_px n_frames pixel_size_A dose_per_frame_e_A2 voltage_kV eer_grouping box_px "
            "particles_per_micrograph defocus_min_A correlation_distance_A"
        )
        not_negative = (
            "pre_exposure_e_A2 spherical_aberration_mm b_factor_A2 defocus_spread_A astigmatism_A scale_spread "
            "speed_A_per_dose drift_A_per_dose motion_scale rigid_error_A pose_error_deg origin_error_A pick_error_A "
            "ice_noise illumination_spread hot_pixels gain_spread seed second_share"
        )
        for one in fields(self):
            if isinstance(value := getattr(self, one.name), float) and not math.isfinite(value):
                raise InputError(f"{one.name} is {value}; give a number")
        for name in positive.split():
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"workers is {self.workers}; give 1 or more, or leave it out")
        for name in not_negative.split():
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name, allowed in (("movie_format", FORMATS), ("motion", MOTIONS), ("symmetry", ("assembly", "none"))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if any((value or 0) % 2 for value in (self.box_px, self.second_box_px, self.size_px, self.height_px)):
            raise InputError("box_px, second_box_px, size_px and height_px must be even")
        if not 0 <= self.amplitude_contrast < 1:
            raise InputError(f"amplitude_contrast is {self.amplitude_contrast}; it lies between 0 and 1")
        if self.second_share >= 1:
            raise InputError(
                f"second_share is {self.second_share}; it lies between 0 and 1, so that both species are there"
            )
        if self.defocus_max_A < self.defocus_min_A:
            raise InputError("defocus_max_A is below defocus_min_A")
        if self.motion == "recorded" and self.motion_stars is None:
            raise InputError("motion is 'recorded' without motion_stars; give a folder of RELION motion STAR files")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the movie, px."""
        return self.height_px or self.size_px, self.size_px

    @property
    def boxes_px(self) -> tuple[int, ...]:
        """Box of the reference of each species, px."""
        return (self.box_px, self.second_box_px or self.box_px) if self.second_share > 0 else (self.box_px,)

    @property
    def dose_edges(self) -> np.ndarray:
        """Accumulated dose before each frame and after the last, pre-exposure included: (frame + 1,) e/Å²."""
        return self.pre_exposure_e_A2 + np.arange(self.n_frames + 1) * self.dose_per_frame_e_A2

    @property
    def dose_mid(self) -> np.ndarray:
        """Accumulated dose at the middle of each frame (frame,) e/Å²."""
        return 0.5 * (self.dose_edges[:-1] + self.dose_edges[1:])

    @property
    def microscope(self) -> Microscope:
        """The optics."""
        return Microscope(
            self.voltage_kV,
            self.spherical_aberration_mm,
            self.amplitude_contrast,
            self.phase_shift_deg,
            self.pixel_size_A,
        )

    def motion_star_files(self) -> list[Path]:
        """Motion STAR files to take motion from, sorted by name; InputError where there are none."""
        folder = Path(self.motion_stars or "")
        found = sorted(folder.glob("*.star"))
        if not found:
            raise InputError(f"{folder}: no motion STAR files (*.star); name the folder that holds them")
        return found

    @classmethod
    def demo(cls, **changes: Any) -> SimulationSettings:
        """Take the defaults: four small movies of apoferritin."""
        return replace(cls(), **changes)

    @classmethod
    def tutorial_motion(cls, motion_stars: Path | str, **changes: Any) -> SimulationSettings:
        """More than 400 particles that move as the ice did in real movies, whose motion STARs are in a folder."""
        base = cls(
            n_micrographs=6, size_px=1536, height_px=1600, n_frames=24, pixel_size_A=1.062, dose_per_frame_e_A2=1.277,
            voltage_kV=200.0, box_px=160, particles_per_micrograph=80, motion="recorded",
            motion_stars=Path(motion_stars), motion_scale=2.0, seed=2,
        )  # fmt: skip
        return replace(base, **changes)

    @classmethod
    def rough_motion(cls, **changes: Any) -> SimulationSettings:
        """More than 400 particles that move with an exponential kernel of short range, in finer frames."""
        base = cls(
            n_micrographs=8, size_px=1280, height_px=1152, n_frames=32, pixel_size_A=1.1, dose_per_frame_e_A2=1.3,
            box_px=144, particles_per_micrograph=56, motion="rough", speed_A_per_dose=1.3,
            correlation_distance_A=1200.0, seed=3,
        )  # fmt: skip
        return replace(base, **changes)
