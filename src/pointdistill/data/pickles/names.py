"""What stands in for the globals that a pickle names, and which names are refused outright."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

NEVER_NAMED = frozenset(
    {
        "__builtin__",
        "__builtins__",
        "builtins",
        "importlib",
        "nt",
        "os",
        "posix",
        "subprocess",
        "sys",
    }
)
"""Refused as any part of a global's name: these run commands or find other modules."""

NEVER_A_PACKAGE = NEVER_NAMED | {
    *("_frozen_importlib", "_frozen_importlib_external", "_imp", "imp", "runpy", "zipimport"),
    *("_pickle", "cPickle", "copy_reg", "copyreg", "marshal", "pickle"),
    *("_io", "codecs", "io", "ntpath", "posixpath", "shutil", "tempfile"),
    *("_posixsubprocess", "_winapi", "commands", "multiprocessing", "popen2", "pty", "signal"),
    *("_ctypes", "bdb", "code", "codeop", "ctypes", "pdb"),
    *("_socket", "asyncio", "socket", "webbrowser"),
    *(
        "cProfile",
        "doctest",
        "linecache",
        "operator",
        "pkgutil",
        "profile",
        "pydoc",
        "timeit",
        "trace",
    ),
    *("bz2", "fileinput", "gzip", "lzma", "mmap", "sqlite3", "tarfile", "zipfile"),
    *("ftplib", "http", "smtplib", "ssl", "urllib", "xmlrpc"),
}
"""Refused as the package of a global: these load code, open files or reach the network."""


@dataclass(eq=False, slots=True)
class Placeholder:
    """Stands for a global that is not on the allow-list, or for an object made by one."""

    name: str
    """Module and name, as the file has them."""

    received: list[object] = field(default_factory=list, repr=False)
    """What the file would have called it with or put into it; recorded, never used."""


@dataclass(frozen=True, eq=False, slots=True)
class Builder:
    """A function of ours that stands for a global on the allow-list."""

    build: Callable[[tuple[object, ...]], object]
    """Called with the unchecked arguments from the file; raises one of our errors if they do not fit."""


class Stateful(ABC):
    """What a builder returns for an object whose state the pickle sets afterwards."""

    @abstractmethod
    def set_state(self, state: object) -> None:
        """Set the unchecked state from the file; raises DataError if it does not fit."""


Globals = Mapping[tuple[str, str], object]
"""Maps (module, name) to what stands for it: a ``Builder``, or a value that is never called."""


def is_refused(module: str, name: str) -> bool:
    """Whether a global is refused outright.

    A dotted name reaches through the attributes of something that would be accepted by itself; no writer of plain
    data needs one.
    """
    modules = [part.strip() for part in module.split(".")]
    parts = {*modules, *(part.strip() for part in name.split("."))}
    return modules[0] in NEVER_A_PACKAGE or "." in name or not NEVER_NAMED.isdisjoint(parts)
