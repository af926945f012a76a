"""Which folders the app may read and write: paths are looked up here before anything touches them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from refmotion_nb.data.schema import InputError


class Roots:
    """Folders given when the app was started; nothing outside them is read or written through it."""

    def __init__(self, folders: Iterable[str | Path]):
        """Take the folders; links in them are followed once, here.

        Raises
        ------
        InputError
            One is no folder, or there is none.
        """
        self.folders = tuple(dict.fromkeys(Path(folder).resolve() for folder in folders))
        for folder in self.folders:
            if not folder.is_dir():
                raise InputError(f"{folder} is no folder; give folders that exist to browse")
        if not self.folders:
            raise InputError("no folder to browse is given; give at least one")

    def resolve(self, path: str | Path) -> Path:
        """Return the real path of ``path`` (relative ones are of the first folder), links followed.

        Raises
        ------
        InputError
            It lies outside the folders.
        """
        real = (self.folders[0] / Path(path).expanduser()).resolve()
        if not any(real.is_relative_to(folder) for folder in self.folders):
            raise InputError(f"{path} is outside the folders that this app may use; start it with --browse for others")
        return real

    def holds(self, path: str | Path) -> bool:
        """Tell whether a path lies in the folders."""
        try:
            self.resolve(path)
        except InputError:
            return False
        return True
