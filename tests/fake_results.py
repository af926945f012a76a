"""Results as the stages write them, made up with the look of real ones: to test the store and the report."""

from __future__ import annotations

import json
import re
from html import unescape

import numpy as np
import xarray as xr

from refmotion_nb.data.store import ResultStore

N_FRAMES, DOSE = 24, 1.25
CUMULATED = DOSE * (np.arange(N_FRAMES) + 0.5)
FREQUENCY = np.arange(1, 65) / 192.0


def text_of(html: str) -> str:
    """What a reader sees, tags replaced by spaces."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<style>.*?</style>", "", html))))


def figures_of(html: str) -> list[str]:
    """The drawings of a report."""
    return re.findall(r"<svg.*?</svg>", html, re.DOTALL)


def labelled(dims: object, values: object, long_name: str, units: str = "1") -> tuple[object, object, dict[str, str]]:
    return dims, values, {"units": units, "long_name": long_name}


def fake_search(retire: bool = True) -> xr.Dataset:
    rng = np.random.default_rng(1)
    balance, distance = (
        a.ravel() for a in np.meshgrid([10.0, 30.0, 50.0, 70.0], [500.0, 2000.0, 8000.0], indexing="ij")
    )
    strength = np.broadcast_to(0.02 * 2.0 ** np.arange(16), (12, 16)).copy()
    x = np.log(strength / 3.0) - ((balance - 40) / 40)[:, None] + 0.5 * np.log(distance / 2000)[:, None]
    depth = 1 - 0.12 * ((balance - 30) / 40) ** 2 - 0.05 * np.log(distance / 2000) ** 2
    score = -0.0411 - 0.0095 * depth[:, None] * np.exp(-(x**2) / np.where(x < 0, 6, 14)) + rng.normal(0, 3e-5, x.shape)
    local = 4.2 / (1 + np.exp(1.05 * x + 0.4))
    total = np.hypot(local, 1.35)
    steps = (local < 0.05).cumsum(1) if retire else np.zeros(local.shape, int)
    gone = steps > 2
    for values in (score, local, total, strength):
        values[gone] = np.nan
    retired = gone.any(1)
    last = np.nanmin(local, axis=1)
    reason = [f"local activity {a:.3f} Å, below 0.05 Å twice" if r else "" for a, r in zip(last, retired)]
    ray, step = np.unravel_index(np.nanargmin(score), score.shape)
    grid = ("ray", "step")
    return xr.Dataset(
        {
            "strength": labelled(grid, strength, "Total prior strength"),
            "cv_score": labelled(grid, score, "Cross-validation score"),
            "activity_local": labelled(grid, local, "Trajectory activity, local", "Å"),
            "activity_total": labelled(grid, total, "Trajectory activity, total", "Å"),
            "retired": labelled("ray", retired, "Retired"),
            "reason": labelled("ray", reason, "Reason"),
        },
        coords={
            "balance": labelled("ray", balance, "Acceleration/spatial balance", "degrees"),
            "distance": labelled("ray", distance, "Correlation distance", "Å"),
        },
        attrs={"strength": float(strength[ray, step]), "balance_deg": float(balance[ray]),
               "distance_A": float(distance[ray]), "best_ray": int(ray), "best_step": int(step), "common_std_A": 0.71,
               "profile_decay_e_A2": 4.6, "profile_floor": 0.12, "n_particles": 5012, "max_strength": 655.36,
               "micrographs": [f"mic_{i:03d}" for i in range(8)], "k_cut_per_A": 0.162, "k_out_per_A": 0.229},
    )  # fmt: skip


def fake_dose_weights(groups: int = 1, fewer_frames: int = 0) -> xr.Dataset:
    """With several groups the first is the pool, and the last has ``fewer_frames``: NaN stands for those it lacks."""
    rng = np.random.default_rng(2)
    b_factor = 3.1 * np.abs(np.arange(N_FRAMES) - 2.0) ** 1.05 + 38 * np.exp(-np.arange(N_FRAMES) / 0.7)
    b_factor -= b_factor.min()
    scale = 1 - 0.012 * np.arange(N_FRAMES) - 0.12 * np.exp(-np.arange(N_FRAMES) / 0.8)
    model = scale[:, None] * np.exp(-b_factor[:, None] * FREQUENCY**2 / 4) * 0.11 / (1 + (FREQUENCY / 0.16) ** 4)
    fcc = model + rng.normal(0, 0.0015, model.shape)
    damage = 0.5 * CUMULATED[:, None] / (0.245 * FREQUENCY**-1.665 + 2.81)
    weight, reference = (a / a.sum(0) for a in (model, np.exp(-damage)))
    band = 0.05 + 0.3 * (FREQUENCY / FREQUENCY.max()) ** 2
    full, each = ("group", "frame", "frequency"), ("group", "frame")

    def stack(values: np.ndarray) -> np.ndarray:
        return np.stack([values * 1.0] * groups).astype("f4")

    names = ["all", *(f"opticsGroup{i}" for i in range(1, groups))]
    table = xr.Dataset(
        {
            "fcc": labelled(full, stack(fcc), "Fourier cylinder correlation"),
            "fcc_model": labelled(full, stack(model), "Fourier cylinder correlation, model"),
            "weight": labelled(full, stack(weight), "Dose weight"),
            "weight_lo": labelled(full, stack(weight * (1 - band)), "Dose weight, 5 %"),
            "weight_hi": labelled(full, stack(weight * (1 + band)), "Dose weight, 95 %"),
            "reference_weight": labelled(full, stack(reference), "Grant–Grigorieff weight"),
            "dose": labelled(each, stack(CUMULATED), "Accumulated dose", "e/Å²"),
            "frame_dose": labelled(each, stack(np.full(N_FRAMES, DOSE)), "Dose of the frame", "e/Å²"),
            "particles": labelled("group", [3000 * max(groups - 1, 1)] + [3000] * (groups - 1), "Particles measured"),
            "b_factor": labelled(each, stack(b_factor), "B-factor relative to the best frame", "Å²"),
            "frame_scale": labelled(each, stack(scale), "Scale factor"),
        },
        coords={
            "group": names,
            "optics_group": ("group", ["", *names[1:]]),
            "frequency": labelled("frequency", FREQUENCY, "Spatial frequency", "1/Å"),
        },
        attrs={"fitted_from_A": 20.0, "fitted_to_A": 3.6},
    )
    if fewer_frames:
        for name in (name for name, variable in table.data_vars.items() if "frame" in variable.dims):
            table[name][-1, -fewer_frames:] = np.nan
    return table


def fake_tracks(seed: int = 0, particles: int = 36, width: float = 5760.0, height: float = 4092.0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    place = rng.uniform(0.04, 0.96, (particles, 2)) * (width, height)
    decay = np.exp(-np.arange(N_FRAMES) / 4.0) + 0.12
    u, v = (place / (width, height) * 2 - 1).T
    a = rng.normal(0, 0.35, (2, 6))
    velocity = (a @ np.stack([u**0, u, v, u * v, u**2, v**2])).T[:, None, :] * decay[:, None]
    local = velocity.cumsum(1) + rng.normal(0, 0.02, (particles, N_FRAMES, 2)).cumsum(1)
    rigid = (rng.normal(0, 1, 2) * 2.5 * decay[:, None] + rng.normal(0, 0.15, (N_FRAMES, 2))).cumsum(0)
    common = rng.normal(0, 0.45, (N_FRAMES, 2))
    path = ("frame", "axis")
    return xr.Dataset(
        {
            "shift": labelled(("particle", *path), (local + rigid + common).astype("f4"), "Displacement", "Å"),
            "common": labelled(path, common, "Common correction", "Å"),
            "rigid": labelled(path, rigid, "Rigid motion", "Å"),
            "coordinate": labelled(("particle", "axis"), place, "Coordinate", "Å"),
            "row": labelled("particle", np.arange(particles) + 100 * seed, "Row of the input table"),
            "reference": labelled("particle", np.zeros(particles, int), "Reference"),
        },
        coords={"axis": ["x", "y"]},
        attrs={"width_A": width, "height_A": height},
    )


def fake_noise(seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    power = 2.1e3 * (1 + 0.1 * rng.normal()) * (1 + 6 * np.exp(-FREQUENCY / 0.02)) * (1 - 0.6 * FREQUENCY)
    power *= 1 + rng.normal(0, 0.004, power.shape)
    return xr.Dataset(
        {"noise_power": labelled("frequency", power, "Noise power", "grey value²")},
        coords={"frequency": labelled("frequency", FREQUENCY, "Spatial frequency", "1/Å")},
        attrs={"reference_scale": 0.93},
    )


def fake_particles(micrographs: int = 48, each: int = 52) -> xr.Dataset:
    n = micrographs * each
    name = np.repeat([f"mic_{i:03d}" for i in range(micrographs)], each)
    reason = np.full(n, "", object)
    reason[7::97] = "its patch leaves the movie in frames 1 to 24"
    reason[name == "mic_031"] = "its movie has 20 frames, the others 24"
    image = [f"{i % each + 1:06d}@Particles/{m}.mrcs" if not r else "" for i, (m, r) in enumerate(zip(name, reason))]
    return xr.Dataset(
        {
            "row": labelled("particle", np.arange(n), "Row of the input table"),
            "micrograph": labelled("particle", name, "Micrograph"),
            "written": labelled("particle", reason == "", "Written"),
            "image_name": labelled("particle", image, "Image"),
            "reason": labelled("particle", reason.astype(str), "Reason"),
        }
    )


def fake_validation(references: int = 1) -> xr.Dataset:
    names = ["rigid", "+ weights", "+ trajectories", "both"]
    cut = np.array([[3.84, 3.62, 3.31, 3.15]]) + 0.5 * np.arange(references)[:, None]
    fsc = 1 / (1 + 6 * (FREQUENCY * cut[..., None]) ** 9)
    rng = np.random.default_rng(5)
    masked = np.clip(fsc + rng.normal(0, 0.006, fsc.shape), -1, 1)
    half = cut * (6 / 1.0) ** (1 / 9)
    full, each = ("reference", "combination", "frequency"), ("reference", "combination")
    return xr.Dataset(
        {
            "fsc_corrected": labelled(full, fsc, "FSC, corrected for the mask"),
            "fsc_masked": labelled(full, masked, "FSC, masked"),
            "fsc_unmasked": labelled(full, masked * 0.9, "FSC"),
            "fsc_randomised": labelled(full, np.where(fsc < 0.8, 0.05, masked), "FSC, masked, phases randomised"),
            "b_factor": labelled(each, 90.0 - 10 * np.arange(4) + 0 * cut, "Guinier B-factor of the map", "Å²"),
            "resolution_0143": labelled(each, cut, "Resolution at FSC 0.143", "Å"),
            "resolution_05": labelled(each, half, "Resolution at FSC 0.5", "Å"),
        },
        coords={
            "combination": names,
            "meaning": ("combination", [f"what {name} means" for name in names]),
            "frequency": labelled("frequency", FREQUENCY, "Spatial frequency", "1/Å"),
        },
    )


def fake_micrograph(seed: int = 0, width: float = 5760.0, height: float = 4092.0) -> xr.Dataset:
    """How a micrograph moved that was written whole."""
    tracks = fake_tracks(seed, 25, width, height)
    y, x = ((np.arange(5) + 0.5) / 5 * size for size in (height, width))
    moved = tracks["shift"].values.reshape(5, 5, N_FRAMES, 2)
    return xr.Dataset(
        {
            "displacement": labelled(("y", "x", "frame", "axis"), moved, "displacement that was undone", "Å"),
            "dose": labelled("frame", DOSE * np.arange(1, N_FRAMES + 1), "dose after the frame", "e/Å²"),
        },
        coords={"axis": ["x", "y"], "y": labelled("y", y, "y", "Å"), "x": labelled("x", x, "x", "Å")},
        attrs={"motion_of_particles": False, "names": [f"Micrographs/mic_{seed:03d}.mrc"], "shape": [4092, 5760],
               "pixel_size_A": 0.85},
    )  # fmt: skip


def fake_corrected(micrographs: int = 3, failed: int = 1) -> xr.Dataset:
    names = [f"mic_{i:03d}" for i in range(micrographs + failed)]
    written = np.arange(len(names)) < micrographs
    return xr.Dataset(
        {
            "micrograph": ("row", names),
            "written": ("row", written),
            "image_name": ("row", [f"Micrographs/{name}.mrc" if there else "" for name, there in zip(names, written)]),
            "pixel_size_A": ("row", np.where(written, 0.85, np.nan)),
            "reason": ("row", ["" if there else f"{name}.tif was not found" for name, there in zip(names, written)]),
        }
    )


def fake_audit() -> xr.Dataset:
    return xr.Dataset(
        {"resemblance": labelled("reference", [12.3], "correlation with the reference", "standard errors")},
        attrs={"findings": [["warning", "5 % of the particles are in the other half map"], ["note", "few particles"]]},
    )


EXPOSURE = {"frames": N_FRAMES, "first_frame": 0, "dose_per_frame_e_A2": DOSE, "pre_exposure_e_A2": 0.0,
            "pixel_size_A": 0.85, "width_px": 5760, "height_px": 4092, "voltage_kV": 300.0}  # fmt: skip
INPUTS = {
    "program": "RELION",
    "files": [["particles", "Extract/job012/particles.star"], ["micrographs", "MotionCorr/job002/corrected_micrographs.star"],
              ["half map 1", "Refine3D/job020/run_half1_class001_unfil.mrc"]],
    "movies": 48, "particles": 2496, "exposures": [{"movies": 48, **EXPOSURE}], "half_sets": [[1, 1240, 1256]],
    "optics_groups": [{"name": "opticsGroup1", "particles": 2496, "pixel_size_A": 0.85, "box_size": 384}],
    "skipped": [{"reason": "it has no particles", "particles": 0, "n_micrographs": 5, "micrographs": ["mic_050", "mic_051"]}],
}  # fmt: skip
COMMAND = "refmotion run --particles Extract/job012/particles.star --out polished --target-particles 5000"
SECONDS = {"alignment": 148.2, "search": 61.5, "dose weights": 3.1, "motion correction": 212.7, "validation": 35.4}


def fill(store: ResultStore, micrographs: int = 6, retire: bool = True) -> ResultStore:
    """Write a whole run into ``store``."""
    store.write("search", fake_search(retire), key="s1")
    store.write("dose_weights", fake_dose_weights(), key="d1")
    for i in range(micrographs):
        store.write(f"tracks/mic_{i:03d}", fake_tracks(i), key="t1")
        store.write(f"noise/mic_{i:03d}", fake_noise(i), key="n1")
    store.write("particles", fake_particles())
    store.write("validation", fake_validation())
    store.update_attrs(
        seconds=json.dumps(SECONDS),
        version="0.1.0",
        command=COMMAND,
        versions={"Python": "3.12.1", "numpy": "2.1.0"},
        defaults={"target_particles": 10000, "thoroughness": "balanced", "float16": False, "seed": 77},
        settings={"target_particles": 5000, "thoroughness": "fast", "float16": True},
        inputs=INPUTS,
        warnings=[],
    )
    return store
