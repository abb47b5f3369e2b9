"""The stack machine of a pickle, made harmless: it neither imports nor calls anything that the file names.

Each opcode creates at most one object of a fixed size or moves existing ones, and looks at nothing else, so memory
and time are linear in the number of opcodes. Beside the machine are the limits of what an untrusted pickle may
cost, what stands in for the globals that it names, and the names that are refused outright.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pointdistill.errors import DataError

_SHOWN_CHARACTERS = 80
_HIGHEST_PROTOCOL = 5

# What may be a key as it is; see `_key`.
_LARGEST_KEY_NUMBER, _LONGEST_KEY = 1 << 16, 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class PickleLimits:
    """What reading a pickle may cost: under 150 MiB and a few seconds at these defaults."""

    pickle_bytes: int = 8 << 20
    """Size of the pickle."""

    operations: int = 500_000
    """Opcodes of the pickle; each creates at most one object of a fixed size besides its own bytes."""

    open_marks: int = 200
    """Nesting of lists, tuples and dictionaries that are begun and not ended."""

    integer_bits: int = 256
    """Bits of one integer. Random states have up to 128; arithmetic on longer ones is slow."""

    name_length: int = 256
    """Characters in the name of a global. Names can be recalled often, so long ones would add up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Purpose:
    """What a kind of pickle is for, worded for error messages."""

    contents: str
    """What it should hold, in the plural: ``weights``."""

    writer: str
    """Who writes such files: ``torch.save``."""

    advice: str
    """What to do with a file that names something such files do not need."""


def shown(text: object) -> str:
    """Text from a file, made fit for a message: quoted, shortened, and without control characters."""
    plain = text if isinstance(text, str) else type(text).__name__
    return ascii(plain if len(plain) <= _SHOWN_CHARACTERS else plain[:_SHOWN_CHARACTERS] + "...")


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


class Machine:
    """The stack, its marks, and the memo."""

    def __init__(
        self,
        known: Globals,
        persistent: Callable[[object], object],
        limits: PickleLimits,
        purpose: Purpose,
    ) -> None:
        self.known = known
        self.persistent = persistent
        self.limits = limits
        self.purpose = purpose
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def take(self, step: str, argument: object) -> None:
        """Execute one opcode, given by its name in ``pickletools``."""
        if step in _PUSH:
            self.push(argument)
        elif step in _CONSTANTS:
            self.stack.append(_CONSTANTS[step])
        elif step in _STEPS:
            _STEPS[step](self)
        elif step in _STEPS_WITH_ARGUMENT:
            _STEPS_WITH_ARGUMENT[step](self, argument)

    def result(self) -> object:
        """The one value left at the end."""
        if len(self.stack) != 1 or self.marks:
            msg = f"its pickle leaves {len(self.stack)} values and {len(self.marks)} marks, not one value"
            raise DataError(msg)
        return self.stack[0]

    def push(self, value: object) -> None:
        """Push a plain value."""
        if isinstance(value, int) and value.bit_length() > self.limits.integer_bits:
            msg = (
                f"its pickle has an integer of {value.bit_length()} bits; "
                f"accepted are {self.limits.integer_bits}"
            )
            raise DataError(msg)
        self.stack.append(value)

    def pop(self, count: int = 1) -> list[object]:
        """Remove the last values and return them, oldest first; those below the last mark are out of reach."""
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            msg = "its pickle takes values that are not there; copy the file again"
            raise DataError(msg)
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def pop_to_mark(self) -> list[object]:
        """Remove the last mark and the values above it, and return the values."""
        if not self.marks:
            msg = "its pickle ends a list that it did not begin; copy the file again"
            raise DataError(msg)
        taken = self.pop(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return taken

    def top(self) -> object:
        """The last value, which stays on the stack."""
        (value,) = self.pop()
        self.stack.append(value)
        return value

    def mark(self) -> None:
        """Set a mark."""
        if len(self.marks) == self.limits.open_marks:
            msg = f"its pickle nests deeper than {self.limits.open_marks}"
            raise DataError(msg)
        self.marks.append(len(self.stack))

    def discard(self) -> None:
        """Drop the last value, or the last mark if there is no value above it."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def discard_to_mark(self) -> None:
        """Drop the last mark and everything above it."""
        self.pop_to_mark()

    def remember(self, index: object) -> None:
        """Store the last value in the memo, which is a dict, so a huge index costs no more than a small one."""
        assert isinstance(index, int)
        self.memo[index] = self.top()

    def recall(self, index: object) -> None:
        """Push a stored value."""
        if index not in self.memo:
            msg = f"its pickle recalls value {index}, which it did not store; copy the file again"
            raise DataError(msg)
        assert isinstance(index, int)
        self.stack.append(self.memo[index])

    def protocol(self, version: object) -> None:
        """Refuse an unknown protocol."""
        if not isinstance(version, int) or version > _HIGHEST_PROTOCOL:
            msg = f"its pickle has protocol {version}; accepted are up to {_HIGHEST_PROTOCOL}"
            raise DataError(msg)

    def name_global(self, argument: object) -> None:
        """GLOBAL: module and name come with the opcode."""
        module, _, name = str(argument).partition(" ")
        self.find(module, name)

    def name_global_from_stack(self) -> None:
        """STACK_GLOBAL: module and name come from the stack."""
        module, name = self.pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            msg = f"its pickle names a global by {shown(module)} and {shown(name)}, not by text"
            raise DataError(msg)
        self.find(module, name)

    def find(self, module: str, name: str) -> None:
        """Push what stands for a global. A lookup in a table; nothing is imported."""
        if len(module) + len(name) > self.limits.name_length:
            msg = f"its pickle names a global of {len(module) + len(name)} characters"
            raise DataError(msg)
        if is_refused(module, name):
            msg = (
                f"its pickle names {shown(f'{module}.{name}')}, which {self.purpose.contents} do not "
                f"need and attacks use; {self.purpose.advice}"
            )
            raise DataError(msg)
        value = self.known.get((module, name))
        self.stack.append(Placeholder(f"{module}.{name}") if value is None else value)

    def call(self) -> None:
        """REDUCE and NEWOBJ: one of our own builders is called, a placeholder only records the arguments."""
        callee, arguments = self.pop(2)
        if not isinstance(arguments, tuple):
            msg = f"its pickle calls something with {shown(arguments)} for arguments"
            raise DataError(msg)
        if isinstance(callee, Builder):
            self.stack.append(callee.build(arguments))
        elif isinstance(callee, Placeholder):
            self.stack.append(Placeholder(callee.name, [arguments]))
        else:
            msg = f"its pickle calls a value ({shown(callee)})"
            raise DataError(msg)

    def call_with_names(self) -> None:
        """NEWOBJ_EX."""
        callee, arguments, names = self.pop(3)
        if not isinstance(callee, Placeholder):
            msg = f"its pickle calls a value ({shown(callee)}) with named arguments"
            raise DataError(msg)
        self.stack.append(Placeholder(callee.name, [arguments, names]))

    def set_state(self) -> None:
        """BUILD. Attributes of an ordered dictionary, where PyTorch keeps versions, are dropped."""
        target, state = self.pop(2)
        if isinstance(target, Placeholder):
            target.received.append(state)
        elif isinstance(target, Stateful):
            target.set_state(state)
        elif not isinstance(target, OrderedDict):
            msg = f"its pickle gives attributes to a value ({shown(target)})"
            raise DataError(msg)
        self.stack.append(target)

    def replace_persistent(self) -> None:
        """BINPERSID: the caller's replacement for a persistent id."""
        (identity,) = self.pop()
        self.stack.append(self.persistent(identity))

    def make_tuple(self, count: int) -> None:
        """Replace the last values by a tuple of them."""
        self.stack.append(tuple(self.pop(count)))

    def extend(self, items: list[object]) -> None:
        """APPEND and APPENDS."""
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Placeholder):
            target.received.extend(items)
        else:
            msg = f"its pickle appends to a value ({shown(target)})"
            raise DataError(msg)

    def set_items(self, items: list[object]) -> None:
        """SETITEM and SETITEMS: keys and values alternate."""
        target = self.top()
        if isinstance(target, Placeholder):
            target.received.extend(items)
        elif isinstance(target, dict) and len(items) % 2 == 0:
            target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
        else:
            msg = f"its pickle sets items of a value ({shown(target)})"
            raise DataError(msg)

    def add_items(self, items: list[object]) -> None:
        """ADDITEMS: members of a set."""
        target = self.top()
        if not isinstance(target, set):
            msg = f"its pickle adds members to a value ({shown(target)})"
            raise DataError(msg)
        target.update(map(_key, items))


def _key(value: object) -> object:
    """``value`` if comparing it is cheap, otherwise a placeholder around it, which is compared by identity.

    Hashing nested tuples that share parts takes exponential time; equal long strings are compared to their end
    each time; and integers, whose hashes are known, can be chosen so that each collides with all others in the
    table: 175,000 of them, of 61 bits each, took 34 s. Small integers are too few for that.
    """
    if value is None or (isinstance(value, str | bytes) and len(value) <= _LONGEST_KEY):
        return value
    if isinstance(value, int) and 0 <= value < _LARGEST_KEY_NUMBER:
        return value
    return value if isinstance(value, Placeholder) else Placeholder("key", [value])


_PUSH = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_CONSTANTS: Mapping[str, object] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}
_STEPS_WITH_ARGUMENT: Mapping[str, Callable[[Machine, object], None]] = {
    "PROTO": Machine.protocol,
    "GLOBAL": Machine.name_global,
    "BINPUT": Machine.remember,
    "LONG_BINPUT": Machine.remember,
    "BINGET": Machine.recall,
    "LONG_BINGET": Machine.recall,
}
_STEPS: Mapping[str, Callable[[Machine], None]] = {
    "MARK": Machine.mark,
    "POP": Machine.discard,
    "POP_MARK": Machine.discard_to_mark,
    "DUP": lambda m: m.stack.append(m.top()),
    "MEMOIZE": lambda m: m.remember(len(m.memo)),
    "EMPTY_LIST": lambda m: m.stack.append([]),
    "EMPTY_DICT": lambda m: m.stack.append({}),
    "EMPTY_SET": lambda m: m.stack.append(set()),
    "TUPLE": lambda m: m.stack.append(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m: m.make_tuple(1),
    "TUPLE2": lambda m: m.make_tuple(2),
    "TUPLE3": lambda m: m.make_tuple(3),
    "FROZENSET": lambda m: m.stack.append(frozenset(map(_key, m.pop_to_mark()))),
    "APPEND": lambda m: m.extend(m.pop()),
    "APPENDS": lambda m: m.extend(m.pop_to_mark()),
    "SETITEM": lambda m: m.set_items(m.pop(2)),
    "SETITEMS": lambda m: m.set_items(m.pop_to_mark()),
    "ADDITEMS": lambda m: m.add_items(m.pop_to_mark()),
    "STACK_GLOBAL": Machine.name_global_from_stack,
    "REDUCE": Machine.call,
    "NEWOBJ": Machine.call,
    "NEWOBJ_EX": Machine.call_with_names,
    "BUILD": Machine.set_state,
    "BINPERSID": Machine.replace_persistent,
}
ACCEPTED = frozenset({"FRAME", "STOP", *_PUSH, *_CONSTANTS, *_STEPS, *_STEPS_WITH_ARGUMENT})
"""Opcodes that protocols 2 to 5 emit for plain data; FRAME and STOP do not touch the stack."""
