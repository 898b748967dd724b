"""The zoo of right losses through the check and the engine: false alarms, inconclusive ones, crashes, deviations.

    python tests/run_zoo.py [lasso recurrent ...] [--dtype float32] [--part check] [--fast] [--limit 120] [--out FILE]

check   the verdict of gradbench.check_gradient: a FAIL is a false alarm, since every gradient of the zoo is right
engine  gradbench.sweep against a plain Optax loop and a float64 one, in units of what rounding allows (zoo/training.py)

Losses run one after another in a child process with a time limit, so that a compiler that aborts or hangs is found and
named. What FILE holds already is not run again. Seconds are of the clock; cpu_seconds, of all threads of the child,
say more on a machine that does other things too. Exits 1 on a FAIL, a crash, a timeout or a deviation above 1.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

PARTS = ("check", "engine")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the gradbench beside this file, whatever is installed


def main() -> int:
    from zoo import ZOO
    from zoo.entries import ALL

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="LOSS", help="or a group: " + ", ".join(groups(ZOO)))
    parser.add_argument("--dtype", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--fast", action="store_true", help="the check's fast mode")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one loss, dtype and part")
    parser.add_argument("--out", type=Path, help="JSON to add to; what it holds is not run again")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    choice = parser.parse_args()
    if choice.worker:
        return work()
    unknown = set(choice.names) - set(ZOO) - set(groups(ZOO))
    if unknown:
        parser.error(f"no loss or group {', '.join(sorted(unknown))}")
    chosen = [e for e in ZOO.values() if not choice.names or {e.name, e.group} & set(choice.names)]
    record = json.loads(choice.out.read_text()) if choice.out and choice.out.exists() else {"losses": {}}
    child = Child(choice.limit)
    for entry in chosen:
        lines = record["losses"].setdefault(entry.name, {"group": entry.group, "description": entry.description})
        for dtype in (d for d in choice.dtype if d in entry.dtypes):
            for part in (p for p in choice.part if p not in lines.setdefault(dtype, {})):
                job = {"name": entry.name, "dtype": dtype, "part": part, "fast": choice.fast}
                lines[dtype][part] = child.do(job)
                print(told(entry.name, dtype, part, lines[dtype][part]), flush=True)
        record |= child.environment
        record["summary"] = {dtype: summary(record["losses"], dtype) for dtype in ALL}
        if choice.out:
            choice.out.parent.mkdir(parents=True, exist_ok=True)
            choice.out.write_text(json.dumps(record, indent=1) + "\n")
    child.stop()
    for dtype in choice.dtype:
        print(f"\n{dtype}\n" + "\n".join(f"  {key}: {value}" for key, value in record["summary"][dtype].items()))
    return int(any(line["bad"] for line in record["summary"].values()))


def groups(zoo: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(entry.group for entry in zoo.values()))


def told(name: str, dtype: str, part: str, result: dict[str, Any]) -> str:
    text = f"{name:34} {dtype:8} {part:6} {result['verdict']:12} {result['seconds']:5.1f} s"
    if "engine" in result:
        text += f"  engine {result['engine']:.3g}, plain {result['plain']:.3g} of the bound"
    return "\n      ".join([text, *result["reasons"]])


def summary(losses: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The figures of one dtype; `bad` counts what makes the exit 1."""
    lines: dict[str, Any] = {}
    bad = 0
    for part in PARTS:
        results = {n: loss[dtype][part] for n, loss in losses.items() if part in loss.get(dtype, {})}
        counts = collections.Counter(result["verdict"] for result in results.values())
        bad += sum(count for verdict, count in counts.items() if verdict not in ("PASS", "INCONCLUSIVE"))
        seconds = [result["seconds"] for result in results.values()]
        lines[part] = dict(counts)
        lines[f"{part}, seconds"] = spread(seconds)
        lines[f"{part}, cpu seconds"] = spread([r["cpu_seconds"] for r in results.values() if "cpu_seconds" in r])
        lines[f"{part}, not PASS or INCONCLUSIVE"] = [
            f"{n}: {r['verdict']}" for n, r in results.items() if r["verdict"] not in ("PASS", "INCONCLUSIVE")
        ]
        reasons = [like(reason) for r in results.values() if r["verdict"] == "INCONCLUSIVE" for reason in r["reasons"]]
        lines[f"{part}, inconclusive because"] = dict(collections.Counter(reasons).most_common())
        for road in ("engine", "plain"):
            known = {n: r[road] for n, r in results.items() if r["verdict"] == "PASS" and road in r}
            worst = max(known, key=lambda n: known[n], default=None)
            if worst:
                lines[f"largest deviation where conclusive, {road}"] = f"{known[worst]:.3g} ({worst})"
    lines["bad"] = bad
    return lines


def spread(seconds: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds or [0.0]), 1), "max": round(max(seconds, default=0.0), 1)}


def like(reason: str) -> str:
    """A reason without its numbers and what follows them, so that the same ones are counted together."""
    return re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", re.split(r"[;\[]", reason)[0]).strip()[:140]


class Child:
    """A process that does one job after another; a new one after a crash or a timeout."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.environment: dict[str, Any] = {}
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as the child)
        command = [sys.executable, __file__, "--worker"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, text=True, **pipes)
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self.listen, args=(self.process, self.answers), daemon=True).start()
        self.environment = self.answer()

    @staticmethod
    def listen(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
        for line in process.stdout or ():
            answers.put(line)
        answers.put("")  # it has ended

    def answer(self) -> dict[str, Any]:
        """What the child says next, or how it ended."""
        assert self.process is not None
        try:
            line = self.answers.get(timeout=self.limit)
        except queue.Empty:
            self.process.kill()
            self.process.wait()
            self.process = None
            return {"verdict": "TIMEOUT", "reasons": [f"not done in {self.limit:.0f} s"]}
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        last = [text for text in self.errors.read().splitlines() if text.strip()][-400:]
        told = [text for text in last if "Check failed" in text or "Error" in text] or last
        self.process = None
        return {"verdict": "CRASH", "reasons": [f"the process ended with {code}", *told[-3:]]}

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        if self.process is None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        started = time.perf_counter()
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return {"seconds": 0.0} | self.answer() | {"seconds": time.perf_counter() - started}

    def stop(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()


def work() -> int:
    """The child: jobs from stdin, one answer per line to stdout; whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import warnings

    import pytest
    from conftest import time_little

    warnings.simplefilter("ignore")
    time_little(pytest.MonkeyPatch())
    import jax
    from zoo import ZOO

    from gradbench.machine.environment import environment

    answers.write(json.dumps(environment(jax.devices(), "highest")) + "\n")
    for line in sys.stdin:
        job, started = json.loads(line), time.process_time()
        try:
            do = {"check": check, "engine": engine}[job["part"]]
            result = do(ZOO[job["name"]].problem(), job["dtype"], job["fast"])
        except Exception as error:
            where = traceback.format_exc().splitlines()[-6:]
            result = {"verdict": "EXCEPTION", "reasons": [f"{type(error).__name__}: {error}"[:400], *where]}
        result["cpu_seconds"] = time.process_time() - started
        answers.write(json.dumps(result) + "\n")
        jax.clear_caches()
        gc.collect()
    return 0


def check(problem: Any, dtype: str, fast: bool) -> dict[str, Any]:
    import gradbench

    report = gradbench.check_gradient(problem, dtype=dtype, fast=fast)
    found = [(t.name, t.verdict, t.finding) for t in report.formula if t.name != "suspects"]
    found += [(r.program, r.verdict, r.reason) for r in report.rows]
    by_reason: dict[str, list[str]] = {}  # several programs often say the same
    for name, verdict, reason in found:
        if verdict == report.verdict != "PASS":
            by_reason.setdefault(reason, []).append(name)
    return {
        "verdict": report.verdict,
        "reasons": [f"{reason} [{', '.join(names)}]" for reason, names in by_reason.items()],
        "off": max((row.off for row in report.rows), default=0.0),
        "resolves": max((row.resolves for row in report.rows), default=0.0),
        "parameters": report.parameters,
    }


def engine(problem: Any, dtype: str, fast: bool) -> dict[str, Any]:
    from zoo.training import OPTIMIZERS, Comparison

    comparison = Comparison(problem, dtype)
    found = {optimizer: comparison.judge(optimizer) for optimizer in OPTIMIZERS}
    order = ("PASS", "INCONCLUSIVE", "FAIL")
    return {
        "verdict": max((f["verdict"] for f in found.values()), key=order.index),
        "reasons": [f"{name} {f['verdict']}: {f['reason']}" for name, f in found.items() if f["reason"]],
        "engine": max(f["engine"] for f in found.values()),
        "plain": max(f["plain"] for f in found.values()),
        "optimizers": found,
    }


if __name__ == "__main__":
    raise SystemExit(main())
