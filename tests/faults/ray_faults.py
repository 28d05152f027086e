"""Program: extracts on Ray clusters of this machine that lose workers, nodes, the driver or the head.

    python -m tests.faults.ray_faults FOLDER workers|nodes|partition|driver|zombie|head|refused|tokens|all [--rounds N]

Every round of `workers` kills a worker at each of 20 parts, at a point drawn at random, and then gives every part out
twice; a round of the others is one fault. Prints one JSON object: what was met, and every way in which a cache differed
from the one that the serial executor makes.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from cache_schema.errors import MismatchError
from pipeline.executors.config import ExecutorConfig, WorkerRange
from pipeline.executors.ray_cluster import connected
from pipeline.executors.ray_executor import RayExecutor
from pipeline.executors.serial import SerialExecutor
from stages.extract.job import ExtractJob
from tests.corpora import processes
from tests.corpora.extracts import digests_of
from tests.corpora.folders import states_of
from tests.corpora.processes import records_of
from tests.corpora.stub_teacher import STUB, stub
from tests.faults.faulty_worker import RefusingWorker
from tests.faults.ray_trials import Corpus, Figures, deliver_twice, extracting, strike_workers, write_corpus

SLOW = stub(seconds_per_batch=0.3)
# So slow that the run is not over when the loss of its head is noticed.
SLOWER = stub(seconds_per_batch=4)
# Until a node, driver or head that is gone is noticed by all who must notice it.
SECONDS_TO_NOTICE = 90.0
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "error",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


@contextlib.contextmanager
def small_cluster(num_nodes: int) -> Iterator[Any]:
    """Yields a cluster of a head without CPUs and `num_nodes` with one each, which asks for a token."""
    os.environ.update(SETTINGS)
    # Ray reads it once per process.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node_arguments()})
    try:
        for _ in range(num_nodes):
            add_node(cluster)
        yield cluster
    finally:
        with contextlib.suppress(Exception):
            cluster.shutdown()


def node_arguments() -> dict[str, Any]:
    return {"object_store_memory": 80 * 2**20, "include_dashboard": False}


def add_node(cluster: Any) -> Any:
    arguments = node_arguments()
    arguments.pop("include_dashboard")
    return cluster.add_node(num_cpus=1, **arguments)


def raylet_of(node: Any) -> int:
    (raylet,) = node.all_processes["raylet"]
    pid: int = raylet.process.pid
    return pid


def workers_of(nodes: list[Any]) -> list[int]:
    """Returns the processes of actors that compute on `nodes`."""
    raylets = {raylet_of(node) for node in nodes}
    found = []
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            is_host = (folder / "cmdline").read_bytes().startswith(b"ray::Host")
        except (OSError, ValueError, IndexError):
            continue
        if parent in raylets and is_host:
            found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], Any], what: str, figures: Figures, seconds: float = SECONDS_TO_NOTICE) -> None:
    """Waits until `condition` holds; counts a hang when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            figures.hangs += 1
            figures.wrong.append(f"{what}: not within {seconds:g} s")
            return
        time.sleep(0.1)


def lose_workers(corpus: Corpus, figures: Figures, round_number: int) -> None:
    executor = RayExecutor(ExecutorConfig(name="ray", workers=WorkerRange(2, 2)))
    with connected(None, num_cpus=2):
        strike_workers(corpus, executor, figures, f"struck-{round_number}", seed=round_number)
        deliver_twice(corpus, executor, figures, f"twice-{round_number}")


def lose_nodes(corpus: Corpus, figures: Figures, round_number: int) -> None:
    """A node joins, the first one is killed, another joins: the run goes on with what there is."""
    _on_changing_cluster(corpus, figures, f"nodes-{round_number}", lambda raylet: os.kill(raylet, signal.SIGKILL))


def part_nodes(corpus: Corpus, figures: Figures, round_number: int) -> None:
    """A node falls silent, is given up, and its worker, which knows nothing of that, goes on."""
    stopped: list[int] = []

    def stop(raylet: int) -> None:
        os.kill(raylet, signal.SIGSTOP)
        stopped.append(raylet)

    _on_changing_cluster(corpus, figures, f"partition-{round_number}", stop)
    for raylet in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(raylet, signal.SIGCONT)


def _on_changing_cluster(corpus: Corpus, figures: Figures, name: str, lose: Callable[[int], None]) -> None:
    with small_cluster(1) as cluster:
        (first,) = cluster.worker_nodes
        config = ExecutorConfig(
            name="ray", ray_address=cluster.address, workers=WorkerRange(1, 3), join_seconds=SECONDS_TO_NOTICE
        )
        failed = []
        for number, outcome in enumerate(extracting(corpus.config(name, SLOW), RayExecutor(config))):
            failed += [str(outcome.error)] if outcome.error else []
            if number == 2:
                add_node(cluster)
            elif number == 7:
                lose(raylet_of(first))
                figures.faults += 1
            elif number == 10:
                add_node(cluster)
        figures.failed_parts += len(failed)
        figures.wrong += [f"{name}: {error}" for error in failed]
        figures.judge(corpus.folder / name, corpus.expected, name)


def arguments_of(corpus: Corpus, name: str, *more: str, teacher: str = SLOW) -> list[str]:
    config = corpus.config(name, teacher)
    return [
        *("extract", "--images", str(corpus.pictures), "--texts", str(corpus.sentences), "--teacher", teacher),
        *("--cache", str(config.cache), "--part-rows", "8", "--batch-size", "4", "--decode-workers", "0"),
        *("--no-index", "--quiet", *more),
    ]


def start_driver(corpus: Corpus, name: str, cluster: Any, teacher: str = SLOW) -> "subprocess.Popen[str]":
    on_ray = ("--executor", "ray", "--ray-address", cluster.address, "--workers", "2")
    secret = {name: os.environ[name] for name in (*SETTINGS, "RAY_AUTH_TOKEN")}
    return processes.start(*arguments_of(corpus, name, *on_ray, teacher=teacher), **secret)


def refuse_node(corpus: Corpus, figures: Figures, round_number: int) -> None:
    """One of two nodes cannot make its worker: it is left out where that is allowed, and named where it is not."""
    name = f"refused-{round_number}"
    with small_cluster(2) as cluster:
        bad = raylet_of(next(iter(cluster.worker_nodes)))

        def make(job: ExtractJob) -> Callable[[], Any]:
            return partial(RefusingWorker, job.make_worker, bad)

        said: list[str] = []
        elastic = ExecutorConfig(name="ray", ray_address=cluster.address, workers=WorkerRange(1, 2))
        executor = RayExecutor(elastic, notice=said.append)
        failed = [outcome.error for outcome in extracting(corpus.config(name), executor, make=make) if outcome.error]
        figures.faults += 1
        figures.failed_parts += len(failed)
        figures.judge(corpus.folder / name, corpus.expected, name)
        if not any("is left out" in line and RefusingWorker.WHY in line for line in said):
            figures.wrong.append(f"{name}: nobody said that the node is left out: {said}")
        fixed = replace(elastic, workers=WorkerRange(2, 2))
        try:
            list(extracting(corpus.config(f"{name}-fixed"), RayExecutor(fixed, notice=said.append), make=make))
            figures.wrong.append(f"{name}: a node that was refused did not stop the run")
        except MismatchError as refusal:
            figures.faults += 1
            if "on node " not in str(refusal) or RefusingWorker.WHY not in str(refusal):
                figures.wrong.append(f"{name}: {refusal}")


def refuse_tokens(corpus: Corpus, figures: Figures, round_number: int) -> None:
    """A driver with another token is told so; and a cluster that asks for none is not used."""
    name = f"tokens-{round_number}"
    with small_cluster(1) as cluster:
        on_ray = ("--executor", "ray", "--ray-address", cluster.address)
        for token, words in ((secrets.token_hex(32), "does not let this process in"), ("", "RAY_AUTH_TOKEN")):
            refused = processes.run(*arguments_of(corpus, name, *on_ray), RAY_AUTH_TOKEN=token, HOME=str(corpus.folder))
            figures.faults += 1
            if refused.returncode != 1 or words not in refused.stderr:
                figures.wrong.append(f"{name}: exit code {refused.returncode}: {refused.stderr[-300:]}")
    with open_head() as address:
        token = secrets.token_hex(32)
        on_ray = ("--executor", "ray", "--ray-address", address)
        refused = processes.run(*arguments_of(corpus, name, *on_ray), RAY_AUTH_TOKEN=token)
        figures.faults += 1
        if refused.returncode != 1 or "lets anybody in" not in refused.stderr:
            figures.wrong.append(f"{name}: exit code {refused.returncode}: {refused.stderr[-300:]}")


@contextlib.contextmanager
def open_head() -> Iterator[str]:
    """Yields the address of a cluster that asks for no token, on the loopback alone and for a moment."""
    script = (
        "import sys, ray\n"
        "ray.init(include_dashboard=False, num_cpus=1, object_store_memory=80 * 2**20, _node_ip_address='127.0.0.1')\n"
        "print(ray.get_runtime_context().gcs_address, flush=True)\n"
        "sys.stdin.read()\n"
    )
    environment = processes.environment(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    head = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert head.stdin is not None and head.stdout is not None
    try:
        yield head.stdout.readline().strip()
    finally:
        head.stdin.close()
        head.wait(timeout=60)


def lose_driver(corpus: Corpus, figures: Figures, round_number: int) -> None:
    """The driver is killed: its workers end, and a rerun goes on where it stopped."""
    name = f"driver-{round_number}"
    with small_cluster(2) as cluster:
        driver = start_driver(corpus, name, cluster)
        wait_for(lambda: len(records_of(corpus.folder / name)) >= 3, f"{name}: first parts", figures)
        assert len(workers_of(cluster.worker_nodes)) == 2
        processes.kill_group(driver)
        figures.faults += 1
        wait_for(lambda: not workers_of(cluster.worker_nodes), f"{name}: end of the workers", figures)
    finish(corpus, figures, name)


def lose_driver_of_zombie(corpus: Corpus, figures: Figures, round_number: int) -> None:
    """The driver is killed while a node of its is silent; the node's worker awakes after another run is done."""
    name = f"zombie-{round_number}"
    with small_cluster(2) as cluster:
        driver = start_driver(corpus, name, cluster)
        wait_for(lambda: len(records_of(corpus.folder / name)) >= 3, f"{name}: first parts", figures)
        silent = cluster.worker_nodes[0] if isinstance(cluster.worker_nodes, list) else next(iter(cluster.worker_nodes))
        zombies = [*workers_of([silent]), raylet_of(silent)]
        for pid in reversed(zombies):
            os.kill(pid, signal.SIGSTOP)
        processes.kill_group(driver)
        figures.faults += 1
        finish(corpus, figures, name)
        before = _files_of(corpus.folder / name)
        for pid in zombies:
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: not workers_of([silent]), f"{name}: end of the zombie", figures)
        if _files_of(corpus.folder / name) != before:
            figures.double_commits += 1
            figures.wrong.append(f"{name}: the zombie wrote")


def _files_of(cache: Path) -> dict[Path, tuple[int, int]]:
    found = states_of(cache)
    return {path: state for path, state in found.items() if path.is_file() and not path.name.startswith(".")}


def lose_head(corpus: Corpus, figures: Figures, round_number: int) -> None:
    """The head is killed: the run ends with exit code 1 and one line, and can be resumed."""
    name = f"head-{round_number}"
    with small_cluster(2) as cluster:
        driver = start_driver(corpus, name, cluster, SLOWER)
        wait_for(lambda: len(records_of(corpus.folder / name)) >= 1, f"{name}: first part", figures)
        (gcs,) = cluster.head_node.all_processes["gcs_server"]
        os.kill(gcs.process.pid, signal.SIGKILL)
        figures.faults += 1
        try:
            _, said = driver.communicate(timeout=SECONDS_TO_NOTICE)
            if driver.returncode != 1 or "no longer answers" not in said:
                figures.wrong.append(f"{name}: exit code {driver.returncode}: {said[-300:]}")
        except subprocess.TimeoutExpired:
            figures.hangs += 1
            figures.wrong.append(f"{name}: the driver hangs")
            processes.kill_group(driver)
    finish(corpus, figures, name)


def finish(corpus: Corpus, figures: Figures, name: str) -> None:
    """Runs the extract to its end without Ray, and judges the cache."""
    config = corpus.kept_config(name, STUB)
    for outcome in extracting(config, SerialExecutor()):
        figures.failed_parts += outcome.error is not None
    figures.judge(config.cache, corpus.expected, name)


TRIALS = {
    "workers": lose_workers,
    "nodes": lose_nodes,
    "partition": part_nodes,
    "driver": lose_driver,
    "zombie": lose_driver_of_zombie,
    "head": lose_head,
    "refused": refuse_node,
    "tokens": refuse_tokens,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("trial", choices=[*TRIALS, "all"])
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    corpus = write_corpus(asked.folder)
    figures = Figures()
    for name, trial in TRIALS.items():
        if asked.trial in (name, "all"):
            for round_number in range(asked.rounds):
                trial(corpus, figures, round_number)
    assert digests_of(asked.folder / "serial") == corpus.expected
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
