"""What a run has written: a list of it, and the files to download where the app is served."""

from __future__ import annotations

import os
from contextlib import suppress
from html import escape
from pathlib import Path
from urllib.parse import quote

import xarray as xr
from bokeh.server.views.auth_request_handler import AuthRequestHandler
from tornado.ioloop import IOLoop
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, authenticated

from refmotion_nb.data.reasons import alike
from refmotion_nb.data.schema import InputError
from refmotion_nb.stages.validation import COMBINATIONS
from refmotion_nb.views.app.engine import Engine
from refmotion_nb.views.app.roots import Roots

FILES = {
    "report.html": "report", "particles.star": "particles for RELION", "particles_*.star": "particles for RELION",
    "particles.cs": "particles for CryoSPARC", "particles.csg": "their group, to import in CryoSPARC",
    "particles_*.cs": "particles for CryoSPARC", "particles_*.csg": "their group, to import in CryoSPARC",
    "dose_weights.nc": "dose weights, to edit or reuse",
    "hyperparameters.json": "hyperparameters, to reuse", "bfactors*.star": "B-factors as RELION writes them",
    "hyperparams.csg": "hyperparameters and dose weights, to import in CryoSPARC",
}  # fmt: skip
FOLDERS = {
    "Particles": "stacks of particles, one for each micrograph", "Tracks": "trajectories, in RELION's form",
    "Maps": "half maps and maps of the validation", "results.zarr": "all results as tables, for Python",
}  # fmt: skip
ADDRESS = "files/"  # of the files, from that of the page
PIECE = 1 << 20  # bytes read at a time


def files_in(out: Path, roots: Roots) -> dict[str, str]:
    """Return the files to download by name, each with what it is; links that lead outside ``roots`` left out."""
    return {
        path.name: about
        for pattern, about in FILES.items()
        for path in sorted(out.glob(pattern))
        if path.is_file() and roots.holds(path)
    }


def maps_in(out: Path, roots: Roots) -> list[Path]:
    """Return the maps of the validation, by reference, each from before to after; half maps and links outside left out."""
    found = [path for path in (out / "Maps").glob("*.mrc") if "_half" not in path.name and roots.holds(path)]
    order = [combination.file_name for combination in COMBINATIONS]

    def place(path: Path) -> tuple[int, int, str]:
        name, _, number = path.stem.rpartition("_") if path.stem[-1:].isdigit() else (path.stem, "", "0")
        return int(number), order.index(name) if name in order else len(order), path.stem

    return sorted(found, key=place)


def listing(out: Path, roots: Roots, served: bool) -> str:
    """Return the HTML of what lies in the output folder, with links where the app is ``served``."""
    rows = [(name, about, served) for name, about in files_in(out, roots).items()]
    rows += [(name, about, False) for name, about in FOLDERS.items() if (out / name).is_dir()]
    return f'<table class="rm-table">{"".join(_row(out / name, about, link) for name, about, link in rows)}</table>'


def _row(path: Path, about: str, link: bool) -> str:
    name = escape(path.name)
    shown = f'<a href="{ADDRESS}{quote(path.name)}" download="{name}">{name}</a>' if link else name
    return f"<tr><th>{shown}</th><td>{escape(about)}</td><td><code>{escape(str(path))}</code></td></tr>"


def in_words(particles: xr.Dataset, out: Path, warnings: list[str]) -> str:
    """Return how many particles were written, why others were not, and what the run warned of, as HTML."""
    written = particles["written"].values
    columns = (particles[name].values[~written].astype(str).tolist() for name in ("micrograph", "reason"))
    reasons = alike(zip(*columns))
    lost = "".join(f"<li>{len(names)} not written: {escape(reason)}</li>" for reason, names in reasons.items())
    told = "".join(f"<li>{escape(line)}</li>" for line in dict.fromkeys(warnings))
    return (
        f"<p><b>{int(written.sum())} of {len(written)} particles written</b> to {escape(str(out))}</p>"
        f"{f'<ul>{lost}</ul>' if lost else ''}{f'<p>Warnings:</p><ul>{told}</ul>' if told else ''}"
    )


def find(engine: Engine, name: str) -> Path:
    """Return the path of one of ``files_in`` the output folder.

    Raises
    ------
    InputError
        There is no such file.
    """
    assert engine.out is not None
    if name not in files_in(engine.out, engine.roots):
        raise InputError(f"there is no {name} in {engine.out} to download")
    return engine.roots.resolve(engine.out / name)


class Download(AuthRequestHandler):
    """Sends a file of the output folder piece by piece to whoever may see the pages."""

    def initialize(self, engine: Engine) -> None:
        """Take the engine whose output folder it is."""
        self.engine = engine

    @authenticated
    async def get(self, name: str) -> None:
        """Answer."""
        try:
            file = find(self.engine, name).open("rb")
        except (InputError, OSError) as error:
            raise HTTPError(404, "%s", error) from None
        with file, suppress(StreamClosedError):  # the browser is gone
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote(name)}")
            self.set_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.set_header("X-Content-Type-Options", "nosniff")
            self.set_header("Cache-Control", "no-store")
            while piece := await IOLoop.current().run_in_executor(None, file.read, PIECE):
                self.write(piece)
                await self.flush()
