"""Two conformations on the same micrographs: what one joint job gains over rigid motion for each, and over two jobs.

    python benchmarks/two_references.py OUT [--relion] [--threads 2]

OUT keeps the simulated set and all results; a second call goes on from there. Mean FSC is that of corrected half-map
curves between 8 and 4 Å: by our own validation, and with --relion by relion_reconstruct and relion_postprocess (to be on
the PATH) on the particles written, and on particles of the same images summed along rigid motion with the standard dose
weights. Trajectory errors are against the truth.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path

import numpy as np
from common import rms

import refmotion_nb as rm
from refmotion_nb.data.maps import write_stack
from refmotion_nb.data.relion.motion import initial_displacement
from refmotion_nb.data.relion.results import read_fsc, read_tracks
from refmotion_nb.data.star import read_star, write_star
from refmotion_nb.data.synthetic.simulate import Simulation, SimulationSettings, simulate, trajectory_error_A
from refmotion_nb.stages.alignment import Tracks
from refmotion_nb.stages.job import Job
from refmotion_nb.stages.validation import COMBINATIONS

SETTINGS = SimulationSettings(
    n_micrographs=8, size_px=1152, pixel_size_A=1.1, box_px=160, particles_per_micrograph=60, second_share=0.5, seed=7
)
ENDS = (COMBINATIONS[0], COMBINATIONS[-1])  # rigid with standard weights, trajectories with empirical ones
SYMMETRY = "O"


def simulated(out: Path) -> Simulation:
    """Simulate, or take what an earlier call left."""
    if (out / "truth.npz").exists():
        return Simulation(out, SETTINGS, 0, np.nan, (np.nan, np.nan))
    return simulate(SETTINGS, out)


def run(simulation: Simulation, which: tuple[int, ...], out: Path, threads: int, until: str = "correct") -> Job:
    """Run a job on some of the species."""
    tables, references = [simulation.particle_tables[s] for s in which], [simulation.references[s] for s in which]
    data = rm.open_relion(tables, simulation.micrographs, references, simulation.folder)
    job = Job(data, out, {"symmetry": SYMMETRY, "threads": threads}, image_root=out, combinations=ENDS)
    job.run(until)
    return job


def errors(simulation: Simulation, job: Job, which: tuple[int, ...]) -> dict[int, tuple[float, float]]:
    """Trajectory error (Å) of each species, rigid and corrected."""
    truth = simulation.truth()
    found: dict[int, tuple[list[float], list[float]]] = {species: ([], []) for species in which}
    for movie, particles in job.data.micrographs():
        tracks = read_tracks(job.out / "Tracks" / f"{movie.micrograph}_tracks.star")
        rigid = initial_displacement(movie, particles["coordinate"].values)
        species = truth[f"{movie.micrograph}_species"]
        true = truth[f"{movie.micrograph}_total"][np.isin(species, which)]
        species = species[np.isin(species, which)]
        for one in which:
            for moved, into in zip((rigid, tracks), found[one]):
                mine = species == one
                into.append(trajectory_error_A(moved[mine], true[mine], truth["dose_mid"]))
    return {one: (rms(rigid), rms(corrected)) for one, (rigid, corrected) in found.items()}


def mean_fsc(curve: np.ndarray, frequency: np.ndarray) -> float:
    """Mean of a corrected FSC between 8 and 4 Å."""
    return float(curve[(frequency >= 1 / 8) & (frequency <= 1 / 4)].mean())


def write_rigid(job: Job, out: Path, threads: int) -> None:
    """Write the particles of a job once more, summed along rigid motion with standard weights."""
    session, settings = rm.Session(job.data, threads), rm.MotionCorrection()
    assert job.search is not None
    dose = rm.DoseWeights().run(session, job.search)
    standard = dose.assign(weight=dose["reference_weight"])
    for name, m in session.walk(list(session), settings):
        assert m is not None, session.failed[name]
        rigid = Tracks(m.placement.initial_A, np.zeros_like(m.placement.rigid_A), m.placement.rigid_A, 1.0, 0)
        images = settings.images(m, rigid, standard, threads)
        write_stack(out / "Particles" / f"{name}.mrcs", images, m.extent_A / images.shape[-1])
    for path in job.out.glob("particles_?.star"):
        write_star(out / path.name, read_star(path))  # image names are relative: the same numbers in the other stacks


def relion_fsc(folder: Path, species: int, mask: str | Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Corrected FSC of one reference's particles and its frequencies (1/Å), by RELION's programs."""
    stem = f"relion_{species + 1}"
    for half in (1, 2):
        target = folder / f"{stem}_half{half}_class001_unfil.mrc"
        if not target.exists():
            command = ["relion_reconstruct", "--i", f"particles_{species + 1}.star", "--o", target.name, "--subset",
                       str(half), "--ctf", "--sym", SYMMETRY, "--pad", "2", "--maxres", "3.8"]  # fmt: skip
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (folder / f"{stem}_post").mkdir(exist_ok=True)  # for its logfile.pdf
    subprocess.run(
        ["relion_postprocess", "--i", f"{stem}_half1_class001_unfil.mrc", "--mask", str(mask), "--angpix",
         str(SETTINGS.pixel_size_A), "--o", f"{stem}_post"], cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    curve = read_fsc(folder / f"{stem}_post.star")
    return curve, np.arange(len(curve)) / (SETTINGS.box_px * SETTINGS.pixel_size_A)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--relion", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    out, threads = options.out.absolute(), options.threads
    simulation = simulated(out / "simulated")
    start = time.perf_counter()
    joint = run(simulation, (0, 1), out / "joint", threads, "validate")
    print(f"joint job with validation: {time.perf_counter() - start:.0f} s")
    together = errors(simulation, joint, (0, 1))
    apart: dict[int, tuple[float, float]] = {}
    for species in (0, 1):
        job = run(simulation, (species,), out / f"alone_{species + 1}", threads)
        apart |= errors(simulation, job, (species,))
    print(f"\n{'':12s}{'particles':>10s}{'rigid':>9s}{'alone':>9s}{'joint':>9s}   trajectory error, Å")
    for species in (0, 1):
        count = int((joint.data.particles["reference"].values == species).sum())
        rigid, ours = together[species]
        print(f"species {species + 1:<4d}{count:10d}{rigid:9.3f}{apart[species][1]:9.3f}{ours:9.3f}")
    print(f"\n{'':12s}{'rigid':>9s}{'corrected':>11s}{'gain':>8s}   mean FSC 8–4 Å, own validation")
    assert joint.validation is not None
    curves = joint.validation["fsc_corrected"]
    for species in (0, 1):
        before, after = (mean_fsc(curve, curves["frequency"].values) for curve in curves.values[species])
        print(f"species {species + 1:<4d}{before:9.3f}{after:11.3f}{after - before:+8.3f}")
    if options.relion:
        if not list((out / "rigid").glob("particles_?.star")):
            write_rigid(joint, out / "rigid", threads)
        print(
            f"\n{'':12s}{'rigid':>9s}{'corrected':>11s}{'gain':>8s}   mean FSC 8–4 Å, relion_reconstruct, relion_postprocess"
        )
        for species in (0, 1):
            mask = simulation.references[species].mask
            before, after = (mean_fsc(*relion_fsc(out / where, species, mask)) for where in ("rigid", "joint"))
            print(f"species {species + 1:<4d}{before:9.3f}{after:11.3f}{after - before:+8.3f}", flush=True)


if __name__ == "__main__":
    main()
