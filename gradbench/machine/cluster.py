"""Workers of Dask: a cluster that runs already, one on this machine, or jobs of Slurm. Needs the extra `cluster`."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import os
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from gradbench.errors import GradbenchError, GradbenchWarning, PlanError, RunError, nearest, one_line
from gradbench.machine.cache import use_cache
from gradbench.machine.devices import cores
from gradbench.machine.environment import difference
from gradbench.machine.workers import Workers, describe

LOG = logging.getLogger(__name__)
UNIT = "gradbench"  # the resource of Dask of which a worker has one, and a unit takes one
CORES = "GRADBENCH_CORES"  # the cores that a worker of ours may use
FORMS = "tcp://host:8786, tls://host:8786, local:4 or slurm:cluster.toml"
LOOPBACK = ("127.", "localhost", "[::1]")
RECONNECT_SECONDS = 60  # for a scheduler that is gone to be back
LOOK_SECONDS = 1.0  # between two questions to the scheduler


def connect(address: str, device: str | None = None) -> Cluster:
    """The workers at an address: a scheduler's, such as tcp://host:8786; local:N, N processes on this machine; or
    slurm:FILE, jobs as a TOML file says. `device` is the plan's, such as "cpu".

    Use it with `with`, which ends what it began. Raises PlanError for what is none of these, or is not there.
    """
    scheme, colon, rest = address.partition(":")
    if scheme == "local" and rest.isdigit() and int(rest) > 0:
        return Cluster(lambda: _local(int(rest), device))
    if scheme == "slurm" and rest:
        return Cluster(lambda: _slurm(Path(rest)))
    if not colon or not rest.startswith("//"):
        raise PlanError(f"--cluster: no {address!r}{nearest(scheme, ['local', 'slurm', 'tcp', 'tls'])} ({FORMS})")
    if scheme != "tls" and not rest[2:].startswith(LOOPBACK):
        warnings.warn(
            f"{address}: Dask's {scheme} is neither encrypted nor authenticated, so whoever reaches this port can run "
            "code on every machine of the cluster; use tls:// with certificates (docs/scale.md)",
            GradbenchWarning,
            stacklevel=2,
        )
    return Cluster(lambda: address)


def _own_cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return list(allowed)[: cores()]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PlanError(f"--cluster: {one_line(error)}; install gradbench with its extra cluster") from error


def _local(count: int, device: str | None) -> Any:
    """A cluster of `count` processes of one thread here, each with its share of the cores, and its GPU if there are."""
    distributed, gpus = _module("distributed"), [] if device == "cpu" else visible_gpus()
    if gpus and count > len(gpus):
        raise PlanError(f"--cluster: local:{count} is more than this machine's GPUs; local:{len(gpus)} has one each")
    workers = {}
    for number, share in enumerate(shares(_own_cores(), count)):
        own = {CORES: ",".join(map(str, share))} | ({"CUDA_VISIBLE_DEVICES": gpus[number]} if gpus else {})
        options = {"nthreads": 1, "env": own, "dashboard_address": None, "silence_logs": "ERROR"}
        workers[number] = {"cls": distributed.Nanny, "options": options}
    scheduler = {"protocol": "tcp://", "host": "127.0.0.1", "port": 0, "dashboard": False, "allowed_failures": 0}
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
        settings = tomllib.loads(file.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{file}: not TOML: {one_line(error)}") from error
    jobs = settings.pop("jobs", None)
    if type(jobs) is not int or jobs < 1:
        raise PlanError(f"{file}: jobs is {jobs!r}; give the number of Slurm jobs, each a worker, such as jobs = 8")
    own = {"processes": 1, "python": sys.executable, "scheduler_options": {"allowed_failures": 0, "dashboard": False}}
    try:
        return _module("dask_jobqueue").SLURMCluster(**own | settings), jobs
    except (TypeError, ValueError) as error:
        raise PlanError(f"{file}: {one_line(error)}") from error


class Cluster(Workers):
    """Workers of Dask. Those that may run units say so in their resources, after a look at their environment, when they
    join and whenever they were restarted."""

    def __init__(self, begin: Callable[[], Any]):
        self._begin, self._open = begin, ExitStack()
        self._plugin: Any = None
        self._shared: tuple[Any, Any] = (None, None)  # a value, and the future of Dask that stands for it
        self._workers: dict[str, Any] = {}
        self._looked = -LOOK_SECONDS

    def __enter__(self) -> Cluster:
        distributed = _module("distributed")
        with ExitStack() as opening:
            where = self._begin()
            if not isinstance(where, str):
                opening.enter_context(where)
            try:
                client = distributed.Client(where, timeout=RECONNECT_SECONDS, set_as_default=False)
            except (OSError, ValueError, TypeError) as error:
                raise PlanError(f"--cluster: no scheduler at {where}: {one_line(error)}") from error
            self.client = opening.enter_context(client)
            self._open = opening.pop_all()
        self.executor = self.client.get_executor(pure=False, resources={UNIT: 1})
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def describe(self, device: str | None, precision: str) -> dict[str, Any]:
        LOG.info("waiting for a worker")
        return self.client.submit(_describe, device, precision, pure=False).result()

    def admit(self, began: Mapping[str, Any], device: str | None, precision: str) -> None:
        """Raises RunError where there are workers and none fits; warns of those that do not."""
        self._platform, self._plugin = began["platform"], _admission(began, device, precision)
        self.client.register_plugin(self._plugin, name=UNIT)
        refused = {worker: why for worker, why in self.client.run(_refusal).items() if why}
        self._looked = -LOOK_SECONDS
        text = "; ".join(f"{worker}: the run {why}" for worker, why in refused.items())
        if refused and not self.count():
            raise RunError(f"no worker can run this: {text}")
        if refused:
            warnings.warn(f"workers that cannot run this are left out: {text}", GradbenchWarning, stacklevel=2)

    def count(self) -> int:
        return len(self._fit())

    def alone(self) -> bool:
        """On a CPU a machine's only worker is; an accelerator has one worker by rule."""
        fit = self._fit().values()
        return self._platform != "cpu" or len({worker["host"] for worker in fit}) == len(fit)

    def share(self, value: Any) -> Any:
        """It is sent to each worker once. As a call of its own, which the scheduler repeats where it is lost."""
        self._shared = value, self.client.submit(_same, value, pure=False, resources={UNIT: 1})
        return value

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        value, future = self._shared
        if future is not None and future.status == "cancelled":  # the scheduler was gone, and what it knew
            self._return()
            value, future = self._shared
        return self.executor.submit(function, *(future if a is value else a for a in arguments))

    def _return(self) -> None:
        """To a scheduler that is back."""
        until = time.monotonic() + RECONNECT_SECONDS
        while self.client.status != "running":
            if self.client.status == "closed" or time.monotonic() > until:
                raise RunError("the cluster's scheduler is gone")
            time.sleep(LOOK_SECONDS / 10)
        self.client.register_plugin(self._plugin, name=UNIT)
        self.share(self._shared[0])

    def _fit(self) -> dict[str, Any]:
        """The workers that may run units, by address, as the scheduler knows them."""
        if time.monotonic() - self._looked > LOOK_SECONDS and self.client.status == "running":
            self._looked = time.monotonic()
            known = self.client.scheduler_info(n_workers=-1)["workers"]
            self._workers = {address: worker for address, worker in known.items() if worker["resources"].get(UNIT)}
        return self._workers


def _same(value: Any) -> Any:
    return value


def _describe(device: str | None, precision: str) -> dict[str, Any]:
    _take_share()
    use_cache()
    return describe(device, precision)


def _admission(began: Mapping[str, Any], device: str | None, precision: str) -> Any:
    """A plugin of Dask's workers that lets those run units which fit."""

    class Admission(_module("distributed").WorkerPlugin):
        async def setup(self, worker: Any) -> None:
            worker.gradbench_refusal = why = await asyncio.to_thread(_misfit, began, device, precision)
            await worker.set_resources(**{UNIT: 0 if why else 1})

    return Admission()


def _misfit(began: Mapping[str, Any], device: str | None, precision: str) -> str | None:
    """Why this process may not go on with what `began`; None if it may."""
    try:
        here = _describe(device, precision)
    except GradbenchError as error:
        return one_line(error)
    return difference(began, {name: value for name, value in here.items() if name != "device_count"})


def _refusal(dask_worker: Any) -> str | None:
    return dask_worker.gradbench_refusal


def _take_share() -> None:
    """Keep this process, all its threads, to the cores that a worker of ours was given; before JAX starts."""
    given = os.environ.get(CORES)
    if given and hasattr(os, "sched_setaffinity"):
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError):  # it has ended
                os.sched_setaffinity(int(thread), map(int, given.split(",")))
