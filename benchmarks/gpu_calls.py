"""How often the host asks a GPU for something: kernels, products, transforms and copies of one micrograph.

    python tests/cupy_on_host/build.py FOLDER
    FOLDER/run python benchmarks/gpu_calls.py [--particles 36] [--frames 24]

Counted on CuPy itself with the host in place of CUDA, which says nothing of times: a call costs a host some 5 to 15 µs, a
download, which waits for all that was asked for before, some 20 µs.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import tempfile
from collections import Counter
from pathlib import Path

import refmotion_nb as rm
from refmotion_nb.data.synthetic.simulate import SimulationSettings, simulate
from refmotion_nb.numerics.rays import STEP, ray_table
from refmotion_nb.stages import search as searching
from refmotion_nb.stages.alignment import Geometry, MotionPrior, alignment_windows, solve

PRIOR = MotionPrior(rm.Hyperparameters(0.3, 50.0, 3000.0), 1.0, 10.0, 0.15)


def priors(thoroughness: str, strength: float) -> list[MotionPrior]:
    """Return the priors of all rays at a strength."""
    rays = zip(*ray_table(thoroughness))
    return [PRIOR.with_hyperparameters(rm.Hyperparameters(strength, b, z)) for b, z in rays]


def asked(library: ctypes.CDLL) -> Counter[str]:
    """Return what was asked for since the last call, by kind."""
    library.host_asked.restype = ctypes.c_char_p
    lines = (line.split(" ", 1) for line in library.host_asked().decode().splitlines())
    return Counter({name: int(n) for n, name in lines})


def told(what: str, found: Counter[str], names: int) -> None:
    """Print the counts of a step, and which kernels were launched most."""
    kernels = Counter({name[7:]: n for name, n in found.items() if name.startswith("kernel ")})
    kinds = ("product of matrices", "transform", "upload", "download", "copy on devices", "memset")
    own = sum(n for name, n in kernels.items() if not name.startswith("cupy"))
    print(f"{what:44s}{sum(kernels.values()):8d}{own:8d}" + "".join(f"{found[kind]:10d}" for kind in kinds), flush=True)
    for name, n in kernels.most_common(names):
        print(f"    {n:6d} {name[:110]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=36)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--names", type=int, default=0, help="of kernels to show")
    options = parser.parse_args()
    library = ctypes.CDLL(os.environ["CUPY_ON_HOST"] + "/libdevice.so")
    wanted = SimulationSettings(
        n_micrographs=1, size_px=640, n_frames=options.frames, pixel_size_A=1.6, dose_per_frame_e_A2=48 / options.frames,
        box_px=64, particles_per_micrograph=options.particles,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        session = rm.Session(simulate(wanted, Path(folder)).open(), 1, 0, device="cuda:0")
        count(session, library, options.names)


def count(session: rm.Session, library: ctypes.CDLL, names: int) -> None:
    """Do everything twice, and print what the second time, with all that is kept, asked for."""
    name, settings = next(iter(session)), rm.MotionCorrection()
    session.references(False)
    header = ("ours", "products", "transf.", "up", "down", "copies", "memset")
    print(f"{'':44s}{'kernels':>8s}{header[0]:>8s}" + "".join(f"{one:>10s}" for one in header[1:]))
    for again in (False, True):
        asked(library)
        m = session.micrograph(name, settings)
        found = [("movie to patches and views", asked(library))]
        read = rm.HyperparameterSearch()._windows(session, m)
        found.append(("windows of a search, both", asked(library)))
        held = searching._scaled(session, read, PRIOR)
        found.append(("own noise taken out", asked(library)))
        for thoroughness in ("fast", "balanced"):
            before = searching._aligned(session, held, None, priors(thoroughness, 0.3), [], False, 1e-4, 1)
            asked(library)
            step = priors(thoroughness, 0.3 * STEP)
            searching._aligned(session, held, before, step, list(range(len(step))), False, 1e-4, 1)
            found.append((f"a step of {len(step)} rays", asked(library)))
        windows = alignment_windows(m, settings, True, 1).scaled(PRIOR)
        found.append(("windows of the final alignment", asked(library)))
        solution = solve(windows, Geometry.of(m), [PRIOR], False)
        found.append((f"final trajectories, {solution.iterations[0]} iterations", asked(library)))
        tracks = session.track(m, settings, PRIOR)
        dose = rm.DoseWeights(target_particles=1).run(session, rm.hand_picked(session, PRIOR.hyperparameters, settings))
        asked(library)
        settings.images(m, tracks, dose, 1)
        found.append(("particles", asked(library)))
        print(f"{m.n} particles, {m.spectra.n_frames} frames")
        if again:
            for what, counts in found:
                told(what, counts, names)


if __name__ == "__main__":
    main()
