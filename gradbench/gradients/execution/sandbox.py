"""Compiles a program in a child process before this one does.

A compiler that fails a check of its own ends its process: no exception reaches Python, and a user's test run ends
without a word about which program did it. The child is started once per process, ends with it, and compiles one program
after another; one that dies is replaced. Programs reach it through jax.export.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.export

# Run as a file, not as a module: it needs nothing of gradbench, and starts faster.
COMMAND = [sys.executable, "-P", __file__]


class CompilerDied(Exception):
    """The compiler ended its process on a program."""


class Child:
    """A process that compiles the programs it is sent, for the CPU."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  it is open as long as the child runs
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )

    def compile(self, program: bytes, options: dict[str, Any]) -> None:
        """Raises CompilerDied with the signal and the last line that the compiler left."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([len(program), options]).encode() + b"\n" + program)
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            raise CompilerDied(self._last_words())

    def _last_words(self) -> str:
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        fatal = [line for line in lines if line.startswith("F")] or lines[-1:]
        return f"{how}: {' '.join(fatal[0].split())[:200]}" if fatal else how

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


@functools.cache
def child() -> Child | None:
    """The process's child, started at the first call; None where there can be none."""
    try:
        import flatbuffers  # noqa: F401  jax.export writes programs with it

        started = Child()
    except (ImportError, OSError):
        return None
    atexit.register(started.close)
    return started


def survive(function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Callable[[], None] | None:
    """Traces the jitted `function` of arrays or shapes; what it returns has the child compile it for the CPU.

    That raises CompilerDied where it ended the child. What the child cannot take, and what raises there, is left to the
    caller, who will get the same error.
    """
    compiler = child()
    if compiler is None:
        return None
    try:
        exported = jax.export.export(function)(*arguments)
        leaves, results = len(exported.in_avals), len(exported.out_avals)
        # Leaves alone: the child does not know the classes of a state.
        flat = dataclasses.replace(
            exported,
            in_tree=jax.tree.structure((tuple(range(leaves)), {})),
            out_tree=jax.tree.structure(tuple(range(results))),
        )
        program = bytes(flat.serialize())
    except Exception:
        return None

    def compile_in_child() -> None:
        try:
            compiler.compile(program, options)
        except CompilerDied:
            child.cache_clear()
            raise

    return compile_in_child


def _serve() -> None:
    """The child's loop: reads one line of JSON (bytes, compiler options) and a program, writes one line back."""
    jax.config.update("jax_enable_x64", True)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # where a compiler prints
    while head := sys.stdin.buffer.readline():
        size, options = json.loads(head)
        try:
            exported = jax.export.deserialize(bytearray(sys.stdin.buffer.read(size)))
            shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in exported.in_avals]
            jax.jit(exported.call, compiler_options=options).lower(*shapes).compile()
            answers.write("compiled\n")
        except Exception as error:
            answers.write(f"{type(error).__name__}\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
