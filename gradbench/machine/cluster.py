"""Workers of Dask: a cluster that runs already, one on this machine, or jobs of Slurm. Needs the extra `cluster`."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import os
import secrets
import time
import tomllib
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Future
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from gradbench.errors import GradbenchWarning, PlanError, RunError, nearest, one_line
from gradbench.machine.cache import use_cache
from gradbench.machine.devices import cores, memory
from gradbench.machine.workers import Workers, describe, misfit
from gradbench.paths import user_path

LOG = logging.getLogger(__name__)
CORES = "GRADBENCH_CORES"  # the cores that a worker of ours may use
FORMS = "tcp://host:8786, tls://host:8786, local:4 or slurm:cluster.toml"
# Of a scheduler of ours: the driver counts a unit's failures itself, a worker's death too.
SCHEDULER = {"allowed_failures": 0, "dashboard": False, "dashboard_address": ":0"}
PROTOCOLS = ("tcp", "tls", "ws", "wss", "ucx")  # of distributed
LOOPBACK = ("localhost", "[::1]")
RECONNECT_SECONDS = 60  # for a scheduler that is gone to be back
LOOK_SECONDS = 1.0  # between two requests to the scheduler
WORKER_BYTES = 2**27  # of memory: what a process takes at the least that has imported JAX and Dask (175 MiB measured)


def connect(address: str, device: str | None = None) -> Cluster:
    """The workers at an address: a scheduler's, such as tcp://host:8786; local:N, N processes on this machine; or
    slurm:FILE, jobs as a TOML file says. `device` is the plan's, such as "cpu".

    Use it with `with`, which ends what it began. Raises PlanError for what is none of these, or is not there.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "local" and rest.isdigit() and int(rest) > 0:
        return Cluster(lambda: _local(int(rest), device))
    if scheme == "slurm" and rest:
        return Cluster(lambda: _slurm(Path(rest)))
    if not rest.startswith("//") or scheme not in PROTOCOLS:
        raise PlanError(f"cluster: no {address!r}{nearest(scheme, ['local', 'slurm', *PROTOCOLS])} ({FORMS})")
    host = rest[2:].rpartition(":")[0]
    if scheme not in ("tls", "wss") and not host.startswith("127.") and host not in LOOPBACK:
        _warn_of_plain(address, "use tls:// with certificates")
    return Cluster(lambda: address)


def _warn_of_plain(what: str, instead: str) -> None:
    text = "neither encrypted nor authenticated, so whoever reaches its ports can run code on every machine"
    warnings.warn(f"{what}: {text} of the cluster; {instead} (docs/scale.md)", GradbenchWarning, stacklevel=3)


def _own_cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return list(allowed)[: cores()]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PlanError(f"cluster: {one_line(error)}; install gradbench with its extra cluster") from error


def _local(count: int, device: str | None) -> Any:
    """A cluster of `count` processes of one thread here, each with its share of the cores, and its GPU if there are."""
    distributed, gpus = _module("distributed"), [] if device == "cpu" else visible_gpus()
    if gpus and count > len(gpus):
        raise PlanError(f"cluster: local:{count} is more than this machine's GPUs; local:{len(gpus)} has one each")
    if count * WORKER_BYTES > memory():  # to begin them all would bring the machine down
        few = f"local:{cores()} has a process per core"
        raise PlanError(f"cluster: local:{count} is more processes than this machine's memory holds; {few}")
    workers = {}
    for number, share in enumerate(shares(_own_cores(), count)):
        own = {CORES: ",".join(map(str, share))} | ({"CUDA_VISIBLE_DEVICES": gpus[number]} if gpus else {})
        options = {"nthreads": 1, "env": own, "dashboard_address": None, "silence_logs": "ERROR"}
        workers[number] = {"cls": distributed.Nanny, "options": options}
    scheduler = SCHEDULER | {"protocol": "tcp://", "host": "127.0.0.1", "port": 0}
    return distributed.SpecCluster(
        workers=workers,
        scheduler={"cls": distributed.Scheduler, "options": scheduler},
        silence_logs="CRITICAL",
    )


def shares(numbers: list[int], count: int) -> list[list[int]]:
    """The cores of `count` workers: apart where there are enough, one each where there are not."""
    if count > len(numbers):
        return [[numbers[worker % len(numbers)]] for worker in range(count)]
    bounds = [worker * len(numbers) // count for worker in range(count + 1)]
    return [numbers[low:high] for low, high in itertools.pairwise(bounds)]


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs of this machine as CUDA_VISIBLE_DEVICES names them; JAX is not started."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in chosen.split(",") if name not in ("", "-1")]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def _slurm(file: Path) -> Any:
    """Jobs of one worker each."""
    cluster, jobs = slurm_cluster(file)
    cluster.scale(jobs=jobs)
    return cluster


def slurm_cluster(file: Path) -> tuple[Any, int]:
    """The cluster that a TOML file describes, before any job is submitted, and how many jobs there should be: the
    file's `jobs`; everything else in it are settings of dask_jobqueue.SLURMCluster."""
    try:
        settings = tomllib.loads(user_path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{file}: not TOML: {one_line(error)}") from error
    jobs = settings.pop("jobs", None)
    if type(jobs) is not int or jobs < 1:
        raise PlanError(f"{file}: jobs is {jobs!r}; give the number of Slurm jobs, each a worker, such as jobs = 8")
    if not settings.get("security") and not str(settings.get("protocol")).startswith("tls"):
        _warn_of_plain(str(file), "set security = true")
    own = {"processes": 1, "scheduler_options": dict(SCHEDULER)}
    try:
        return _module("dask_jobqueue").SLURMCluster(**own | settings), jobs
    except (TypeError, ValueError) as error:
        raise PlanError(f"{file}: {one_line(error)}") from error


class Cluster(Workers):
    """Workers of Dask. Those that may run units say so in their resources, after a look at their environment, when they
    join and whenever they were restarted."""

    def __init__(self, begin: Callable[[], Any]):
        self._begin, self._open = begin, ExitStack()
        # Of Dask's resources the one that a unit takes, and of which a worker that fits has one; this driver's own.
        self.unit = f"gradbench-{secrets.token_hex(4)}"
        self._terms: tuple[Any, ...] = ()  # which workers fit: `admit`
        self._shared: Any = None
        self._workers: dict[str, Any] = {}
        self._scheduler: str | None = None
        self._calls: set[Future[Any]] = set()  # under way
        self._looked, self._seen, self._lost = -LOOK_SECONDS, time.monotonic(), False

    def __enter__(self) -> Cluster:
        distributed = _module("distributed")
        with ExitStack() as opening:
            where = self._begin()
            if not isinstance(where, str):
                opening.enter_context(where)
            try:
                client = distributed.Client(where, timeout=RECONNECT_SECONDS, set_as_default=False)
            except (OSError, ValueError, TypeError) as error:
                raise PlanError(f"cluster: no scheduler at {where}: {one_line(error)}") from error
            self.client = opening.enter_context(client)
            self._open = opening.pop_all()
        self.executor = self.client.get_executor(pure=False, resources={self.unit: 1})
        return self

    def __exit__(self, *_: object) -> None:
        if self._terms and self.client.status == "running":
            with suppress(OSError):
                self.client.unregister_worker_plugin(self.unit)
                self.client.run(_forget, self.unit, wait=False)
        self._open.close()

    def _check_entered(self) -> None:
        if not hasattr(self, "client"):
            raise PlanError("executor: not begun yet; write: with gradbench.connect(...) as workers")

    def describe(self, device: str | None, precision: str) -> dict[str, Any]:
        """Of the workers that are there, what most are: the others will be refused."""
        self._check_entered()
        LOG.info("waiting for workers")
        self.client.wait_for_workers(1)
        answers = list(self.client.run(_describe, device, precision, on_error="return").values())
        found = [answer for answer in answers if isinstance(answer, dict)]
        if not found:
            raise answers[0]
        return max(found, key=found.count)

    def admit(self, began: Mapping[str, Any], device: str | None, precision: str) -> None:
        """Raises RunError where there are workers and none fits; warns of those that do not."""
        self._check_entered()
        self._terms = began, device, precision
        self._register()
        refused = {worker: why for worker, why in self.client.run(_refusal, self.unit).items() if why}
        self._looked, self._seen = -LOOK_SECONDS, time.monotonic()
        text = "; ".join(f"{worker}: the run {why}" for worker, why in refused.items())
        if refused and not self.count():
            raise RunError(f"no worker can run this: {text}")
        if refused:
            warnings.warn(f"workers that cannot run this are left out: {text}", GradbenchWarning, stacklevel=2)

    def count(self) -> int:
        """Raises BrokenExecutor where the scheduler has been gone for RECONNECT_SECONDS."""
        now = time.monotonic()
        if self.client.status == "running":
            self._seen = now
        elif self.client.status == "closed" or now - self._seen > RECONNECT_SECONDS:
            raise BrokenExecutor("the cluster has no scheduler")
        return len(self._fit())

    def alone(self) -> bool:
        """On a CPU where there is one worker per machine; always on an accelerator, where that is the rule."""
        fit = self._fit().values()
        return self._terms[0]["platform"] != "cpu" or len({worker["host"] for worker in fit}) == len(fit)

    def share(self, value: Any) -> Any:
        """It is sent to each worker once, also to those that come later."""
        self._shared = value
        self._register()
        return value

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        shared = [argument is self._shared for argument in arguments]
        sent = [None if is_shared else argument for is_shared, argument in zip(shared, arguments)]
        if self._lost or self.client.status != "running":
            self._return()
        future = self.executor.submit(_call, self.unit, function, sent, shared)
        self._calls.add(future)
        future.add_done_callback(self._look)
        return future

    def _look(self, future: Future[Any]) -> None:
        """A call that nobody cancelled here was lost with the scheduler, and so was what that knew of this driver."""
        self._calls.discard(future)
        self._lost = self._lost or future.cancelled()

    def _register(self) -> None:
        self.client.register_plugin(_admission(self.unit, *self._terms, self._shared), name=self.unit)

    def _forgotten(self) -> None:
        """A scheduler that was started anew knows nothing of this driver, and never answers what the old one was asked:
        Dask's client gives that up when it loses the connection, but not what was sent while it did not know."""
        self._register()
        for future in list(self._calls):
            future.cancel()

    def _return(self) -> None:
        """To a scheduler that is back."""
        until = time.monotonic() + RECONNECT_SECONDS
        while self.client.status != "running":
            if self.client.status == "closed" or time.monotonic() > until:
                raise BrokenExecutor("the cluster has no scheduler")
            time.sleep(LOOK_SECONDS / 10)
        self._lost = False
        self._register()

    def _fit(self) -> dict[str, Any]:
        """The workers that may run units, by address, as the scheduler knows them."""
        if time.monotonic() - self._looked > LOOK_SECONDS and self.client.status == "running":
            self._looked = time.monotonic()
            with suppress(OSError):  # the scheduler is gone, perhaps to be back
                found = self.client.scheduler_info(n_workers=-1)
                if self._scheduler not in (None, found["id"]):
                    self._forgotten()
                self._scheduler, known = found["id"], found["workers"].items()
                self._workers = {address: worker for address, worker in known if worker["resources"].get(self.unit)}
        return self._workers


_held: dict[str, Any] = {}  # in a worker: what drivers share with it


def _call(unit: str, function: Callable[..., Any], sent: list[Any], shared: list[bool]) -> Any:
    """The function, of what was sent, and of what the driver shares where that is asked for."""
    return function(*(_held[unit] if is_shared else argument for is_shared, argument in zip(shared, sent)))


def _describe(device: str | None, precision: str) -> dict[str, Any]:
    _take_share()
    use_cache()
    return describe(device, precision)


def _admission(*terms: Any) -> Any:
    """A plugin of Dask's workers that lets those run units which fit. It is sent as it stands here, with what it calls
    by name."""

    class Admission(_module("distributed").WorkerPlugin):
        async def setup(self, worker: Any) -> None:
            await _join(worker, *terms)

    return Admission()


async def _join(
    worker: Any, unit: str, began: Mapping[str, Any], device: str | None, precision: str, shared: Any
) -> None:
    _held[unit] = shared
    _refusals[unit] = why = await asyncio.to_thread(_misfit, began, device, precision)
    await worker.set_resources(**{unit: 0 if why else 1})
    status = _module("distributed").Status
    if worker.status == status.running:
        # For what came while no worker fitted, Dask's scheduler looks for one only when a worker is there anew: it does
        # not when resources change, and a unit would wait for ever.
        worker.status = status.paused
        worker.status = status.running


def _misfit(began: Mapping[str, Any], device: str | None, precision: str) -> str | None:
    _take_share()
    use_cache()
    return misfit(began, device, precision)


_refusals: dict[str, str | None] = {}  # in a worker: why it may not run a driver's units, if it may not


def _refusal(unit: str) -> str | None:
    return _refusals[unit]


async def _forget(unit: str) -> None:
    _held.pop(unit, None)
    _refusals.pop(unit, None)


def _take_share() -> None:
    """Keep this process, all its threads, to the cores that a worker of ours was given; before JAX starts."""
    given = os.environ.get(CORES)
    if given and hasattr(os, "sched_setaffinity"):
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError):  # it has ended
                os.sched_setaffinity(int(thread), map(int, given.split(",")))
