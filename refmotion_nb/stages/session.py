"""A session: one dataset with what its stages have in common, so that nothing is read or computed twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from time import perf_counter

import numpy as np
import xarray as xr

from refmotion_nb.data.schema import Dataset, InputError, Movie
from refmotion_nb.numerics.backend import cpu_count
from refmotion_nb.stages.alignment import Alignment, MotionPrior, Tracks, track
from refmotion_nb.stages.micrograph import Micrograph, load_micrograph
from refmotion_nb.stages.references import PreparedReference, prepare_references

TRACKS_SHARE = 0.1  # of the cache, for trajectories


class Session:
    """Prepared references and the micrographs last in use, kept within a memory limit."""

    def __init__(self, data: Dataset, threads: int = 0, cache_bytes: float = 1e9):
        """Hold ``data``; ``threads`` 0 takes all processors, ``cache_bytes`` bounds what is kept of micrographs."""
        self.data = data
        self.threads = threads or cpu_count()
        self.cache_bytes = cache_bytes
        self._references: dict[bool, list[PreparedReference]] = {}
        self._kept: OrderedDict[tuple[str, ...], Micrograph] = OrderedDict()
        self._lock = Lock()
        self.tracks: dict[tuple[str, str], Tracks] = {}  # by micrograph and key of prior and settings
        self.micrographs: dict[str, tuple[Movie, xr.Dataset]] = {m.micrograph: (m, p) for m, p in data.micrographs()}

        self.failed: dict[str, str] = {}  # micrographs that could not be used, and why
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the micrographs that have particles."""
        return iter(self.micrographs)

    def particle_count(self, name: str) -> int:
        """Return how many particles a micrograph has."""
        return int(self.micrographs[name][1].sizes["particle"])

    def draw(self, names: list[str], target_particles: int, seed: int) -> list[str]:
        """Return the names of random micrographs with at least ``target_particles`` in all, in the order they are read."""
        chosen, count = set(), 0
        for i in np.random.default_rng(seed).permutation(len(names)):
            if count >= target_particles:
                break
            chosen.add(names[i])
            count += self.particle_count(names[i])
        return [name for name in self if name in chosen]

    def references(self, relion: bool) -> list[PreparedReference]:
        """Return the references ready for slicing; RELION's energy needs them to the Nyquist limit."""
        if relion not in self._references:
            start = perf_counter()
            self._references[relion] = prepare_references(self.data, relion, self.threads)
            self.seconds["preparing references"] = perf_counter() - start
        return self._references[relion]

    def extent_A(self, settings: Alignment) -> float:
        """Return the physical width of the boxes that particles are cut out in.

        Raises
        ------
        InputError
            A box size that is odd, or too small for the reference's mask.
        """
        references = self.references(settings.relion)
        if not settings.box_size:
            return max(r.extent_A for r in references)
        extent = settings.box_size * min(movie.pixel_size_A for movie in self.data.movies)
        needed = 2 * max(r.mask_radius_A for r in references)
        if settings.box_size % 2 or extent < needed:
            raise InputError(
                f"box_size {settings.box_size} is {extent:.4g} Å wide, the mask {needed:.4g} Å; give an even box size that "
                "holds the particle with a margin for its defocused signal, or 0 for the reference's extent"
            )
        return extent

    def micrograph(self, name: str, settings: Alignment) -> Micrograph:
        """Return a micrograph in memory, read now or kept from before.

        Raises
        ------
        InputError
            Its movie or gain cannot be used; that is remembered in ``failed``.
        """
        if name in self.failed:
            raise InputError(self.failed[name])
        key = (name, settings.energy, str(settings.recenter), str(settings.repair_hot_pixels), str(settings.box_size))
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        movie, particles = self.micrographs[name]
        references = self.references(settings.relion)
        extent_A = self.extent_A(settings)
        start = perf_counter()
        try:
            micrograph = load_micrograph(
                movie, particles, self.data.optics, references, extent_A=extent_A, relion=settings.relion,
                recenter=settings.recenter, repair=settings.repair_hot_pixels, threads=self.threads,
            )  # fmt: skip
        except InputError as error:
            self.failed[name] = str(error)
            raise
        self.seconds["reading movies"] = self.seconds.get("reading movies", 0.0) + perf_counter() - start
        self._keep(key, micrograph)
        return micrograph

    def walk(self, names: list[str], settings: Alignment) -> Iterator[tuple[str, Micrograph | None]]:
        """Yield micrographs by name while the next one is being read; None for one that cannot be used (see ``failed``).

        Raises
        ------
        InputError
            The references cannot be used.
        """

        def load(name: str) -> Micrograph | None:
            try:
                return self.micrograph(name, settings)
            except InputError:
                if name not in self.failed:
                    raise
                return None

        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(load, names[0]) if names else None
            for i, name in enumerate(names):
                micrograph = ahead.result() if ahead else None
                ahead = pool.submit(load, names[i + 1]) if i + 1 < len(names) else None
                yield name, micrograph

    def track(self, micrograph: Micrograph, settings: Alignment, prior: MotionPrior) -> Tracks:
        """Return the final trajectories of a micrograph, found now or before."""
        key = (micrograph.movie.micrograph, settings.track_key(prior))
        if key in self.tracks:
            return self.tracks[key]
        found = track(micrograph, settings, prior, self.threads)
        if len(self.tracks) * found.displacement_A.nbytes < TRACKS_SHARE * self.cache_bytes:
            self.tracks[key] = found
        return found

    def _keep(self, key: tuple[str, ...], micrograph: Micrograph) -> None:
        """Keep a micrograph if it fits; those kept first stay, since stages walk through micrographs in one order."""
        with self._lock:
            used = sum(_size(m) for m in self._kept.values())
            if used + _size(micrograph) <= self.cache_bytes:
                self._kept[key] = micrograph


def _size(m: Micrograph) -> int:
    return m.spectra.stored.nbytes + m.own.nbytes + m.opposite.nbytes + m.ctf.nbytes
