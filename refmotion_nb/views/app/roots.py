"""Which folders the app may read and write: paths are looked up here before anything touches them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from refmotion_nb.data.files import only_within, outside
from refmotion_nb.data.schema import InputError

MOST = 3000  # entries of a folder that are listed


@dataclass(frozen=True)
class Listing:
    """What a folder holds, as far as it may be seen."""

    folder: Path
    folders: tuple[str, ...]
    files: tuple[str, ...]
    cut: bool  # there is more than is listed


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

    def place(self, path: str | Path) -> Path:
        """Return ``path`` as an absolute one (relative ones are of the first folder), links in it left alone.

        Raises
        ------
        InputError
            It leads outside the folders, be it by a link.
        """
        try:
            placed = self.folders[0] / Path(path).expanduser()
            real = placed.resolve()
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                placed.stat()  # since Python 3.13 only this fails where links go in a circle
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, no such user, a NUL in the name
            raise InputError(f"{path!s} is no path ({error}); check it") from None
        if not any(real.is_relative_to(folder) for folder in self.folders):
            raise InputError(f"{outside(placed)} the folders that this app may use; start it with --browse for others")
        return placed

    def resolve(self, path: str | Path) -> Path:
        """Return the real path of ``path`` (relative ones are of the first folder), links followed.

        Raises
        ------
        InputError
            It lies outside the folders.
        """
        return self.place(path).resolve()

    def holds(self, path: str | Path) -> bool:
        """Tell whether a path lies in the folders."""
        try:
            self.place(path)
        except InputError:
            return False
        return True

    def reading(self) -> AbstractContextManager[None]:
        """Return a block in which readers refuse files outside the folders, whatever names them."""
        return only_within(self.folders)

    def list(self, folder: str | Path, suffixes: Iterable[str] = ()) -> Listing:
        """Return the folders, and the files that end in one of ``suffixes`` (all without), sorted.

        Hidden ones are left out, and links that lead outside.

        Raises
        ------
        InputError
            The folder lies outside, or cannot be listed.
        """
        real, wanted = self.resolve(folder), tuple(suffixes)
        folders, files = [], []
        try:
            with os.scandir(real) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or (entry.is_symlink() and not self.holds(entry.path)):
                        continue
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif not wanted or entry.name.lower().endswith(wanted):
                        files.append(entry.name)
        except OSError as error:
            raise InputError(f"{folder} cannot be listed ({error.strerror}); check the path") from None
        cut = len(folders) + len(files) > MOST
        return Listing(real, tuple(sorted(folders)[:MOST]), tuple(sorted(files)[:MOST]), cut)
