"""One attack on one command: a forked child with limits, and a verdict on how it ended.

The parent has imported everything that commands need, so a child starts at once. A child may write into its own folder
alone (Landlock, where the kernel has it), open no connection, and use so much time, memory and disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

GOOD = ("refused", "unchanged", "accepted", "at work")
"""One line and exit code 1 or 2; the answer of the intact files; success where that is right; real work that began."""
BAD = ("unclear", "believed", "silent", "unseen", "traceback", "hang", "crash", "memory")
"""A refusal that is not one line or names nothing; success where a refusal is right; another answer without a word;
damage that `validate` does not see; and what the names say."""

ADDRESS_SPACE = 8 << 30
FILE_SIZE = 1 << 30

Prepare = Callable[[Path, np.random.Generator], str]
"""Makes the files of a case in a new folder, and says in a few words what was done to them."""


@dataclass(frozen=True)
class Case:
    """One attack.

    name: "group/.../000", unique; with the seed it fixes everything random.
    command: the words after `wamkit`; a first word "@name" is an entry of `use.ENTRIES`, with its arguments.
    prepare: makes the files that the command reads.
    names: a refusal names one of these.
    expect: "refused" where acceptance is wrong, "same" where success must print what `answer` says.
    answer: what the intact files give.
    work: real work may begin; it is ended after `seconds`.
    seconds: CPU seconds, and seconds of waiting, until the case counts as hanging.
    gigabytes: resident memory above which it counts as unbounded.
    """

    name: str
    command: tuple[str, ...]
    prepare: Prepare
    names: tuple[str, ...] = ()
    expect: Literal["any", "refused", "same"] = "any"
    answer: str = ""
    work: bool = False
    seconds: float = 5.0
    gigabytes: float = 2.0


@dataclass(frozen=True)
class Ended:
    """An ended child. code: exit code, or minus the signal. cpu, wall: seconds. peak: gigabytes resident."""

    code: int
    stopped: bool
    out: str
    err: str
    cpu: float
    wall: float
    peak: float


def run(case: Case, folder: Path, patience: float = 1.0) -> Ended:
    """Runs the command of `case` in `folder`, in a child of its own.

    patience: wall seconds allowed for each second of CPU time; more than 1 on a machine with other work.
    """
    began = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become(case, folder)
    stopped = False
    while True:
        pid, status, used = os.wait4(child, os.WNOHANG)
        if pid:
            break
        wall = time.monotonic() - began
        at_work = case.work and wall > case.seconds and BEGAN.search(_text(folder / ".err") + _text(folder / ".out"))
        if (wall > case.seconds * patience or at_work) and not stopped:
            stopped = True
            _kill(child)
        time.sleep(0.005)
    _kill(child)  # what it left running
    code = os.waitstatus_to_exitcode(status)
    return Ended(
        code,
        stopped or code == -signal.SIGXCPU,
        _text(folder / ".out"),
        _text(folder / ".err"),
        used.ru_utime + used.ru_stime,
        time.monotonic() - began,
        used.ru_maxrss / 1e6,
    )


def judge(case: Case, ended: Ended) -> tuple[str, str]:
    """The verdict, one of `GOOD` or `BAD`, and the line that shows why."""
    lines = [x.strip() for x in re.split(r"[\r\n]", ended.err) if x.strip() and not PROGRESS.search(x)]
    last = lines[-1] if lines else ""
    failed = "Traceback (most recent call last)" in ended.err
    if ended.stopped:
        began = case.work and BEGAN.search(ended.err + ended.out)
        return ("at work", "") if began and ended.peak < case.gigabytes else ("hang", last)
    if ended.code < 0:
        return "crash", f"{signal.Signals(-ended.code).name}; {last}"
    if ended.peak > case.gigabytes:
        return "memory", f"{ended.peak:.1f} GB; {last}"
    if failed:
        return ("memory" if re.search(r"MemoryError|bad_alloc|can't allocate", ended.err) else "traceback"), last
    if ended.code == 0 and case.expect == "refused":
        return "believed", ended.out.strip()[-200:]
    if ended.code == 0 and case.expect == "same":
        return _same(case, ended.out)
    if ended.code == 0:
        return "accepted", ""
    return _refusal(case, ended.code, lines)


PROGRESS = re.compile(r"\d+%\||\?(it|step|frame|episode|job|batch|clip)/s|Warning:|^\s+warnings\.warn")
"""Lines of stderr that are no answer."""
BEGAN = re.compile(
    r"(train|collect|importing|evaluate|imagine|clips|decoding|play|vary|precompute)[^\n\r]*?\b[1-9]\d*/|http://"
)
"""Signs that a command is at its work."""


def _same(case: Case, out: str) -> tuple[str, str]:
    """The verdict on an answer that should be `case.answer`. Its lines are `use: ...`, and perhaps `validate: ...`."""
    found, wanted = (dict(x.split(": ", 1) for x in text.splitlines() if ": " in x) for text in (out, case.answer))
    if found.get("use") != wanted.get("use") or found.get("time") not in (wanted.get("time"), "measured again"):
        return "silent", "another answer, without a word"
    if found.get("validate", wanted.get("validate")) == wanted.get("validate") and "validate" in wanted:
        return "unseen", "the same is learned, and validate says nothing"
    return "unchanged", ""


def _refusal(case: Case, code: int, lines: list[str]) -> tuple[str, str]:
    """The verdict on a command that failed: one line, which names a file or an option, and code 1 or 2."""
    last = lines[-1] if lines else ""
    wrong = ""
    if code not in (1, 2):
        wrong = f"exit code {code}"
    elif len(lines) != 1 or not last.startswith("wamkit"):
        wrong = f"{len(lines)} lines"
    elif len(last) > 1000:
        wrong = f"{len(last)} characters"
    elif case.names and not any(n.lower() in last.lower() for n in case.names):
        wrong = f"names none of {', '.join(case.names[:4])}"
    return ("unclear", f"{wrong}: {last}") if wrong else ("refused", last)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _text(path: Path) -> str:
    """The end of a captured stream."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 200_000))
        return file.read().decode(errors="replace")


def _become(case: Case, folder: Path) -> None:
    """The child: takes the limits, runs the command, and ends the process."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for stream, name in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.mkdir(".tmp")
        os.environ |= {k: str(folder / ".tmp") for k in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
        os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        os.environ["PATH"] = "/nonexistent"  # no git: results of a checkout with uncommitted changes are not read
        sys.modules["__main__"] = types.ModuleType("__main__")  # worker processes must not run this program
        _limit(case)
        confine(folder)
        code = _call(case.command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 255)


def _call(command: tuple[str, ...]) -> int:
    from benchmarks.attack.use import ENTRIES  # here, since it imports wamkit

    if command[0].startswith("@"):
        return ENTRIES[command[0][1:]](*command[1:])
    from wamkit.cli.main import entry

    sys.argv = ["wamkit", *command]
    entry()
    return 0


def _limit(case: Case) -> None:
    cpu = int(case.seconds) + 1
    for kind, most in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, ADDRESS_SPACE),
        (resource.RLIMIT_FSIZE, FILE_SIZE),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most + 5 * (kind == resource.RLIMIT_CPU)))


WRITES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))
"""Landlock's rights to write, make, remove, rename and cut files."""


def confine(folder: Path) -> bool:
    """Lets this process and its children write into `folder` alone, and connect to nothing. False without Landlock."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(444, None, 0, 1) < 4:
        return False

    class Handled(ctypes.Structure):
        _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64)]

    class Beneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]

    handled = Handled(WRITES, 2)
    rules = libc.syscall(444, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    for path, rights in ((folder, WRITES), (Path("/dev/shm"), WRITES), (Path("/dev/null"), 1 << 1)):
        parent = os.open(path, os.O_PATH)
        beneath = Beneath(rights, parent)
        if libc.syscall(445, rules, 1, ctypes.byref(beneath), 0):
            raise OSError(ctypes.get_errno(), f"Landlock refuses {path}")
        os.close(parent)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if libc.syscall(446, rules, 0):
        raise OSError(ctypes.get_errno(), "Landlock is refused")
    os.close(rules)
    return True


def clear(folder: Path) -> None:
    """Removes a case's folder, whatever a case made of it."""
    shutil.rmtree(folder, ignore_errors=True)
