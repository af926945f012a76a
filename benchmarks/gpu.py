"""What a movie and a ray search take on a GPU, stage by stage, beside their floors and beside the CPU's results.

    python benchmarks/gpu.py [--device cuda] [--boxes 320,512] [--threads 16] [--folder DIR]

Simulates a movie (4096 × 4096 × 40 with 250 particles, LZW TIFF, kept in DIR), takes it from file to particles, and repeats its
windows until the search has its 5000 particles. The floor of a stage is its bytes at the rate of copying memory on the device,
or of uploading, or of decoding, all measured first. With ``--device cpu`` and a small movie it shows that it works:

    python benchmarks/gpu.py --device cpu --size 1024 --frames 8 --particles 20 --boxes 160,192 --search-particles 60
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import refmotion_nb as rm
from refmotion_nb.data.movies.look import look_at
from refmotion_nb.data.movies.reader import open_movie
from refmotion_nb.data.synthetic.simulate import Simulation, SimulationSettings
from refmotion_nb.numerics import gpu
from refmotion_nb.numerics.backend import over_chunks, to_host
from refmotion_nb.numerics.patches import PatchSpectra, particle_power, patch_corners
from refmotion_nb.numerics.recombine import normalise, recombine
from refmotion_nb.stages import micrograph as steps
from refmotion_nb.stages import search as searching
from refmotion_nb.stages.alignment import Geometry, MotionPrior, alignment_windows, score_windows, solve
from refmotion_nb.stages.base import Silent
from refmotion_nb.stages.device import Device, choose
from refmotion_nb.stages.dose_weights import micrograph_fcc_sums
from refmotion_nb.stages.micrographs import frame_weights
from refmotion_nb.stages.runs import viewer_of


@dataclass
class Clock:
    """Measures and prints."""

    device: Device
    repeats: int

    def seconds(self, work: Callable[[], Any], repeats: int = 0) -> tuple[float, Any]:
        """Return the shortest of some runs after one that compiles, and the last result; the device has finished."""
        work()
        times = []
        for _ in range(repeats or self.repeats):
            start = time.perf_counter()
            result = work()
            if self.device.is_gpu:
                gpu.synchronise()
            times.append(time.perf_counter() - start)
        return min(times), result

    def stage(self, what: str, work: Callable[[], Any], floor: float = 0.0) -> Any:
        """Measure a stage, print it beside its floor in seconds, and return its result."""
        seconds, result = self.seconds(work)
        print(f"{what:38s}{seconds:9.4f}{floor:9.4f}{f'{seconds / floor:7.1f}' if floor else ''}", flush=True)
        return result


def rates(clock: Clock, n_bytes: int) -> tuple[float, float]:
    """Return bytes per second of copying ``n_bytes`` on the device (read and written) and of uploading them."""
    host = np.ones(n_bytes, np.uint8)
    array = clock.device.put(host)
    copied, _ = clock.seconds(array.copy)
    uploaded, _ = clock.seconds(lambda: clock.device.put(host)) if clock.device.is_gpu else (copied, None)
    return 2 * host.nbytes / copied, host.nbytes / uploaded


def simulated(options: argparse.Namespace, folder: Path) -> Simulation:
    """Return the movie, simulated into the folder unless it lies there."""
    wanted = SimulationSettings(
        n_micrographs=1, size_px=options.size, n_frames=options.frames, pixel_size_A=0.85, dose_per_frame_e_A2=1.25,
        box_px=min(options.boxes), particles_per_micrograph=options.particles, seed=5,
    )  # fmt: skip
    name = f"movie_{options.size}_{options.frames}_{options.particles}_{min(options.boxes)}"
    return rm.example(folder / name, wanted)


def reading(session: rm.Session, settings: rm.MotionCorrection, clock: Clock, copy: float, upload: float) -> None:
    """Print the stages from the file of a movie to its spectra and predicted views."""
    device, threads = session.device, session.threads
    name = next(iter(session))
    movie, particles = session.micrographs[name]
    references = session.references(False)
    placement = steps.place(movie, particles, session.extent_A(settings), True)
    n, n_frames, box = len(placement.centre_px), movie.n_frames, placement.box
    print(f"\nbox {box}, {n} particles, {n_frames} frames of {movie.width} × {movie.height}")
    print(f"{'stage':38s}{'seconds':>9s}{'floor':>9s}{'ratio':>7s}")
    raw: list[Any] = [None] * n_frames
    with open_movie(movie) as reader:

        def decode(part: slice) -> None:
            for f in range(part.start, part.stop):
                raw[f] = reader.frame(f)

        clock.stage(
            f"decode ({movie.path.suffix}, {threads} threads)", lambda: over_chunks(n_frames, decode, threads, 1)
        )
        look = clock.stage(
            "look: sample, hot pixels, background",
            lambda: look_at(movie, reader, True, True, threads, device.put, session._gain.put),
        )
    counts = sum(frame.nbytes for frame in raw)
    frames = clock.stage("upload of raw counts", lambda: [device.put(frame) for frame in raw], counts / upload)
    spectra = PatchSpectra.empty(n, n_frames, box, device.xp)
    offset_px = np.rint(placement.initial_A / movie.pixel_size_A).astype(np.int64)
    spectra.offset_px[:] = offset_px

    def transform(part: slice) -> None:
        for f in range(part.start, part.stop):
            corners = patch_corners(placement.centre_px, box, offset_px[:, f])
            spectra.add_frame(f, look.repaired(frames[f], f), look.gain, corners, look.background)

    patches, stored = n * n_frames * box * box * 4, spectra.stored.nbytes
    at_once = n_frames if device.is_gpu else 1
    clock.stage(
        "repair, cut, transform, store", lambda: over_chunks(n_frames, transform, 1 if device.is_gpu else threads, at_once),
        (counts + 4 * patches + 2 * stored) / copy,
    )  # fmt: skip
    clock.stage("noise spectrum", lambda: particle_power(spectra, threads), stored / copy)
    k = steps._last_shell(box, box * movie.pixel_size_A, references)
    clock.stage(
        "CTF and predicted views",
        lambda: steps._predict(movie, particles, placement, session.data.optics, references, k, False, threads, device),
        n * 40 * (2 * k + 1) * (k + 1) / copy,
    )


def working(session: rm.Session, settings: rm.MotionCorrection, clock: Clock, copy: float, upload: float) -> Any:
    """Print the stages from spectra to particles; return trajectories and images for a comparison."""
    threads, name = session.threads, next(iter(session))
    m = session.micrograph(name, settings)
    movie, n, n_frames, box, k = m.movie, m.n, m.spectra.n_frames, m.spectra.box, m.own.shape[2] - 1
    stored = m.spectra.stored.nbytes
    prior = MotionPrior(rm.Hyperparameters.from_relion(0.5, 5000, 2, movie.dose_per_frame_e_A2), 0.7, 10.0, 0.15)
    band = n * n_frames * 2 * 8 * (2 * k + 1) * (k + 1)
    aligned = clock.stage("windows, all components", lambda: alignment_windows(m, settings, True, threads), band / copy)
    windows = clock.stage("  own noise taken out", lambda: aligned.scaled(prior, threads), band / copy)
    clock.stage("windows, score", lambda: score_windows(m, settings, threads), band / copy)
    geometry = Geometry.of(m)
    found = clock.stage("trajectories", lambda: solve(windows, geometry, [prior], False))
    tracks = found.displacement_A[0]
    clock.stage("FCC", lambda: micrograph_fcc_sums(m, tracks, threads), stored / copy)
    shift, weight = tracks / movie.pixel_size_A, np.full((n_frames, box), 1.0 / n_frames)
    images = clock.stage("recombine", lambda: recombine(m.spectra, shift, weight, box, threads), stored / copy)
    images = clock.stage("normalise", lambda: normalise(images, m.background_radius_px(box), threads))
    images = clock.stage("particles to the host", lambda: to_host(images), images.nbytes / upload)

    def whole() -> None:
        """Read eight times the same movie, one while another is worked on."""

        def correct(_: rm.Session, one: steps.Micrograph) -> None:
            track = solve(alignment_windows(one, settings, True, threads).scaled(prior), geometry, [prior], False)
            one_shift = track.displacement_A[0] / movie.pixel_size_A
            to_host(normalise(recombine(one.spectra, one_shift, weight, box, threads), 0.4 * box, threads))

        assert all(not session.failed for _ in session.place.each([name] * 8, settings, correct))

    seconds, _ = clock.seconds(whole, 1)
    print(f"{'movie to particles, one after another':38s}{seconds / 8:9.4f}   ({8 / seconds:.2f} movies per second)")
    return tracks, images


def ray_search(session: rm.Session, settings: rm.HyperparameterSearch, target: int) -> None:
    """Print what a search takes with the windows of one movie counted again and again."""
    m = session.micrograph(next(iter(session)), settings)
    read = settings._windows(session, m)
    copies = max(1, round(target / m.n))
    prior = MotionPrior(rm.Hyperparameters(1.0, 50.0, 3000.0), 1.0, 10.0, 0.15)
    held = [searching._scaled(session, read, prior)] * copies
    power = float(copies**2 * read.score.movie_power * read.score.reference_power * read.score.unit**2)
    everything = searching.Searched(session.place, held, ("movie",) * copies, copies * m.n, power, False)
    resolution, viewer = settings._resolution(session), viewer_of(Silent())
    start = time.perf_counter()
    rays = settings._walk(everything, prior, resolution, viewer)
    best = settings._refine(everything, rays, resolution, viewer)
    seconds = time.perf_counter() - start
    steps_taken = sum(len(ray.trials) for ray in rays)
    print(
        f"\nray search, {settings.thoroughness}, {copies} × {m.n} particles: {seconds:.2f} s, {len(rays)} rays, {steps_taken} "
        f"steps, best score {best.cv_score:.5f} (movies read already: {copies} times the seconds of a movie come on top)"
    )


def whole_micrographs(session: rm.Session, clock: Clock, copy: float) -> dict[str, np.ndarray]:
    """Print what the dose-weighted micrograph takes, without and with local motion; return the images."""
    movie, _ = session.micrographs[next(iter(session))]
    linear = np.eye(18)[3] * 2 / movie.n_frames  # 2 px across the field by the last frame
    moving = replace(movie, local_motion=np.concatenate([linear, linear]))
    weights, pixels = partial(frame_weights, None, movie, ""), movie.height * movie.width
    print(f"\n{'whole micrograph':38s}{'seconds':>9s}{'floor':>9s}{'ratio':>7s}")
    images = {}
    # bytes of a frame: raw, as float32 out of and into transforms, the spectrum and its weighting, the sum read and written
    for motion, one, passes in (("of the frame", movie, 7), ("local", moving, 11)):
        work = partial(rm.MicrographCorrection().images, one, weights, session.threads, device=session.device)
        floor = movie.n_frames * 4 * pixels * passes / copy
        images[motion] = clock.stage(f"motion {motion}, decoding included", work, floor)[0]
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--particles", type=int, default=250)
    parser.add_argument("--boxes", type=lambda text: [int(one) for one in text.split(",")], default=[320, 512])
    parser.add_argument("--search-particles", type=int, default=5000)
    parser.add_argument("--thoroughness", default="balanced", help="of the search")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the movie is kept; a temporary folder unless given")
    options = parser.parse_args()
    device = choose(options.device)
    device.activate()
    clock = Clock(device, options.repeats)
    probe = 16 * options.size**2  # bytes; of as many floats as four frames have pixels
    copy, upload = rates(clock, probe)
    with tempfile.TemporaryDirectory() as temporary:
        simulation = simulated(options, options.folder or Path(temporary))
        session = rm.Session(simulation.open(), options.threads, 0, device=device)
        print(f"on {device.about(session.threads)}")
        print(f"copying {copy / 1e9:.1f} GB/s, uploading {upload / 1e9:.1f} GB/s")
        for box in options.boxes:
            settings = rm.MotionCorrection(box_size=box)
            reading(session, settings, clock, copy, upload)
            tracks, images = working(session, settings, clock, copy, upload)
            if device.is_gpu:
                on_cpu = rm.Session(session.data, options.threads, 0, device="cpu")
                once = replace(clock, device=on_cpu.device, repeats=1)
                cpu_tracks, cpu_images = working(on_cpu, settings, once, *rates(once, probe))
                difference = np.linalg.norm(images - cpu_images) / np.linalg.norm(cpu_images)
                print(f"\nGPU against CPU: trajectories differ by {np.abs(tracks - cpu_tracks).max():.2e} Å at most (aim 0.01), "
                      f"particles by {difference:.2e} (aim 1e-4)")  # fmt: skip
        ray_search(session, rm.HyperparameterSearch(thoroughness=options.thoroughness), options.search_particles)
        images = whole_micrographs(session, clock, copy)
        if device.is_gpu:
            expected = whole_micrographs(on_cpu, once, rates(once, probe)[0])
            for motion, image in images.items():
                difference = np.linalg.norm(image - expected[motion]) / np.linalg.norm(expected[motion])
                print(f"GPU against CPU, motion {motion}: micrographs differ by {difference:.2e} (aim 1e-4)")


if __name__ == "__main__":
    main()
