"""Starts a private Ray cluster on this machine, or connects to a named one; both only with a token, both shut again."""

import functools
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from cache_schema.errors import EnvironmentProblem
from pipeline import signals

# The least that Ray accepts is 75 MiB; nothing but small reports goes through the object store.
OBJECT_STORE_BYTES = 80 * 1024 * 1024
# A Unix socket's path has at most 107 bytes, and Ray puts about 65 behind its folder.
MAX_TEMP_PATH_CHARS = 32
CONNECT_SECONDS = 10
# Of a process that does nothing but ask the head for the cluster's name; much of it is the import of Ray.
ASK_SECONDS = 60
# Ray itself ends the process, without a word, when the head was silent for 60 s.
SECONDS_BETWEEN_HEAD_CHECKS = 5.0
MAX_SILENT_CHECKS = 6


@contextmanager
def connected(address: str | None, *, num_cpus: int, threads_per_worker: int = 1) -> Iterator[ModuleType]:
    """Yields the `ray` module, connected; where this process is connected already, that connection is used and left.

    Args:
        address: of a running cluster, whose token Ray finds in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray; None
            starts a cluster that lives as long as the context, with a random token that is written nowhere.
        num_cpus: slots of the private cluster.
        threads_per_worker: the threads of the numeric libraries in each worker.

    Raises:
        EnvironmentProblem: the cluster cannot be reached or started.
    """
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Warnings of the C++ side, one a second; what matters comes as an exception.
        "RAY_BACKEND_LOG_LEVEL": "error",
    }
    if address is None:
        settings |= {"RAY_AUTH_TOKEN": _own_token(), "RAY_ADDRESS": ""}
    # Ray reads some of these when it is imported.
    with _environment(settings):
        import ray

        if ray.is_initialized():
            yield ray
            return
        with _temporary_folder() as folder:
            if address is not None:
                _require_answer(address)
                _require_token(address)
            try:
                # Ray puts its own handler of SIGTERM in place of ours.
                with signals.kept():
                    _init(ray, address, folder, num_cpus, threads_per_worker)
                yield ray
            finally:
                with signals.kept():
                    ray.shutdown()


@functools.cache
def _own_token() -> str:
    """Returns the token of our own clusters. Ray reads it once per process, so a second cluster has the same."""
    return secrets.token_hex(32)


def _init(ray: ModuleType, address: str | None, folder: Path, num_cpus: int, threads_per_worker: int) -> None:
    own = {
        "address": "local",
        "num_cpus": num_cpus,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": str(folder),
    }
    variables = {
        "PYTHONPATH": os.pathsep.join(import_folders()),
        "OMP_NUM_THREADS": str(threads_per_worker),
        # Its worker processes are none of the user's business.
        "PYTHONWARNINGS": "ignore",
    }
    try:
        ray.init(
            **(own if address is None else {"address": address}),
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": variables},
        )
    except Exception as error:
        # Ray 2.60 raises a bare `Exception` when its processes do not start in time, as on a busy machine.
        first_line = str(error).strip().partition("\n")[0][:300]
        where = "a private Ray cluster cannot be started" if address is None else f"Ray cluster {address} is not usable"
        remedy = "use --executor serial" if address is None else "check address, token and that both run the same Ray"
        raise EnvironmentProblem(f"{where} ({first_line}): {remedy}") from error


def _require_answer(address: str) -> None:
    """Raises `EnvironmentProblem` when nobody answers at `address`; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EnvironmentProblem(
            f"no Ray cluster answers at {address} within {CONNECT_SECONDS} s ({error}): check the address and that the "
            "cluster is up"
        ) from error


_ASK = "import sys, ray; ray._raylet.GcsClient(address=sys.argv[1])"


def _require_token(address: str) -> None:
    """Raises `EnvironmentProblem` unless the head at `address` lets in whoever has our token, and nobody else.

    Two processes ask it, one without a token and one with ours: a process decides once whether it uses tokens.
    """
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    asked = {
        variables["RAY_AUTH_MODE"]: subprocess.Popen(
            [sys.executable, "-c", _ASK, address],
            env={**variables, "RAY_ADDRESS": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for variables in ({**without, "RAY_AUTH_MODE": "disabled"}, dict(os.environ))
    }
    answers = {}
    try:
        for mode, process in asked.items():
            answers[mode] = process.communicate(timeout=ASK_SECONDS)[1]
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(
            f"the head at {address} accepts connections but does not answer within {ASK_SECONDS} s: see that it is a "
            "Ray head, of the same Ray release, and not overloaded"
        ) from None
    finally:
        for process in asked.values():
            process.kill()
            process.wait()
    if asked["disabled"].returncode == 0:
        raise EnvironmentProblem(
            f"the Ray cluster at {address} lets anybody in who reaches it: start all its nodes with "
            "RAY_AUTH_MODE=token and one token (docs/cluster.md)"
        )
    if asked["token"].returncode != 0:
        last_line = (answers["token"].strip().splitlines() or ["no answer"])[-1][:300]
        raise EnvironmentProblem(
            f"the Ray cluster at {address} does not let this process in ({last_line}): put the cluster's token into "
            "RAY_AUTH_TOKEN, or its file into RAY_AUTH_TOKEN_PATH"
        )


class HeadWatch:
    """Notices that the head of the cluster is gone, before Ray ends this process for it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._checked_at = 0.0
        self._num_silent = 0
        self.is_lost = False

    def check(self, now: float) -> None:
        """Tries to reach the head now and then; `now` are seconds on any clock.

        Raises:
            EnvironmentProblem: it did not answer for about half a minute.
        """
        if now - self._checked_at < SECONDS_BETWEEN_HEAD_CHECKS:
            return
        self._checked_at = now
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            self._num_silent = 0
        except OSError as error:
            self._num_silent += 1
            if self._num_silent >= MAX_SILENT_CHECKS:
                self.is_lost = True
                raise EnvironmentProblem(
                    f"the head of the Ray cluster, {self._address}, no longer answers ({error}): start it again and "
                    "run again to resume"
                ) from error


def num_gpus_of(ray: ModuleType) -> int:
    """Returns how many GPUs the cluster has now."""
    return int(ray.cluster_resources().get("GPU", 0))


def resources(ray: ModuleType) -> str:
    """Returns what the cluster has now, for messages: `2 GPUs and 16 CPUs on 2 nodes`."""
    there = ray.cluster_resources()
    num_nodes = sum(1 for node in ray.nodes() if node["Alive"])
    nodes = "1 node" if num_nodes == 1 else f"{num_nodes} nodes"
    return f"{int(there.get('GPU', 0))} GPUs and {int(there.get('CPU', 0))} CPUs on {nodes}"


def import_folders() -> list[str]:
    """Returns the folders that a worker must be able to import from as we do: the current one, then what is ours alone.

    The folders of the Python installation are left out; a worker has its own.
    """
    installed = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    folders = [os.getcwd()]
    for entry in filter(None, sys.path):
        path = Path(entry).resolve()
        if path.is_dir() and not installed & {path, *path.parents}:
            folders.append(str(path))
    return list(dict.fromkeys(folders))


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update({name: value for name, value in settings.items() if value})
    for name in (name for name, value in settings.items() if not value):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    parent = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="ray-", dir=parent if len(parent) <= MAX_TEMP_PATH_CHARS else "/tmp")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
