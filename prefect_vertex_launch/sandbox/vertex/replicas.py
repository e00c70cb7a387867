"""A CustomJob's replicas as local processes: what a container gets to see, and how it is ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prefect_vertex_launch.sandbox.vertex.packages import find_packages, python_path

KILLED: Final = 128 + signal.SIGKILL

# Runs the container's program and leaves its exit code behind, also when nobody waits for it any more.
# A signal to the group ends the program but not this shell (a trap is not inherited, unlike `trap ''`).
# Only what is built into the shell is used, as PATH is the container's. In the end nothing of the group
# is left, as nothing is left of a container whose program has ended.
_WRAPPER: Final = (
    "trap : TERM INT; directory=$1; shift; "
    # The log is the program's: the shell's own "Terminated" does not belong there.
    'exec 3>&2 2>/dev/null; (exec "$@" 2>&3 3>&-); code=$?; '
    'echo "$code" > "$directory/exit_code"; kill -9 0'
)
_FROM_HOST: Final = (
    "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
_EXPANSION: Final = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", re.ASCII)
# What Linux lets a process have: so much in one text, and so much in all of its arguments. References to
# what has references in it would otherwise grow until the memory is full.
_LONGEST_WORD: Final = 128 * 1024
_LONGEST_PROGRAM: Final = 2 * 1024 * 1024
_FIRST_POLL_SECONDS: Final = 0.02
_LONGEST_POLL_SECONDS: Final = 0.2


# Google's own images for training, which run Python packages.
_PREBUILT: Final = re.compile(r"(us|europe|asia)-docker\.pkg\.dev/vertex-ai/training/.+")


class ImagePullError(Exception):
    """A pool whose container cannot be had."""


@dataclass(frozen=True, slots=True)
class ContainerHost:
    """What the machine that runs the containers has for them.

    Attributes:
        images: The entrypoint of each image, by its name with or without tag.
        buckets: The local directory that stands for a bucket, by the bucket's name.
        variables: What every container finds in its environment.
    """

    images: Mapping[str, Sequence[str]]
    buckets: Mapping[str, Path]
    variables: Mapping[str, str]


@dataclass(slots=True)
class Replica:
    """One process, with a directory that holds its scratch files, its `log` and in the end its exit code.

    `process` is None after a restart of the sandbox: then the process is known by `pid` only.
    """

    name: str
    directory: Path
    pid: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def poll(self) -> int | None:
        """Return the exit code, 128 + N for signal N as a shell has it; None while it runs."""
        if self._is_running():
            return None
        try:
            return int((self.directory / "exit_code").read_text())
        except (FileNotFoundError, ValueError):
            return KILLED

    def _is_running(self) -> bool:
        if self.process is not None:
            return self.process.poll() is None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return False  # the number belongs to someone else's process by now
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except FileNotFoundError:
            return not Path("/proc/self").exists()
        return os.fsencode(self.directory) in words

    def send(self, number: signal.Signals) -> None:
        """Signal the whole process group; nothing happens if it has ended."""
        if self._is_running():
            try:
                os.killpg(self.pid, number)
            except (ProcessLookupError, PermissionError):
                return

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` needs to find the process again."""
        return {"name": self.name, "directory": str(self.directory), "pid": self.pid}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Replica:
        """Return a replica that an earlier sandbox started."""
        return cls(record["name"], Path(record["directory"]), record["pid"])


async def start_replicas(job: Any, directory: Path, host: ContainerHost) -> list[Replica]:
    """Start one process per replica of every pool, workerpool0-0 first; all of them or none.

    Raises:
        ImagePullError: if `host` does not have a pool's image.
        PackageError: if it does not have one of a pool's Python packages.
    """
    specs: Sequence[Any] = job.job_spec.worker_pool_specs
    pools = list(enumerate(specs))
    programs = {index: _program(pool, host.images) for index, pool in pools if pool.WhichOneof("task")}
    packages = {
        index: find_packages(specs[index].python_package_spec.package_uris, host.buckets)
        for index in programs
    }
    cluster = {
        f"workerpool{index}": [
            f"127.0.0.1:{2222 + 100 * index + number}" for number in range(pool.replica_count)
        ]
        for index, pool in pools
        if index in programs
    }
    replicas: list[Replica] = []
    try:
        for index, pool in pools:
            for number in range(pool.replica_count if index in programs else 0):
                home = directory / f"workerpool{index}-{number}"
                environment = _environment(job, pool, home, cluster, (f"workerpool{index}", number), host)
                if packages[index]:
                    _add_packages(environment, packages[index], home)
                replicas.append(_start(home, _filled(programs[index], environment), environment))
                # A process takes milliseconds to start; others are answered in between.
                await asyncio.sleep(0)
    except BaseException:
        for replica in replicas:
            replica.send(signal.SIGKILL)
        raise
    return replicas


def _program(pool: Any, images: Mapping[str, Sequence[str]]) -> list[str]:
    if pool.WhichOneof("task") == "python_package_spec":
        package = pool.python_package_spec
        image = package.executor_image_uri
        interpreter = (sys.executable,) if _PREBUILT.fullmatch(image) else _entrypoint(image, images)
        if interpreter is None:
            raise ImagePullError(f"Failed to pull the container image {image}: manifest unknown.")
        return [*interpreter, "-m", package.python_module, *package.args]
    container = pool.container_spec
    entrypoint = _entrypoint(container.image_uri, images)
    if entrypoint is None:
        raise ImagePullError(f"Failed to pull the container image {container.image_uri}: manifest unknown.")
    return [*(container.command or entrypoint), *container.args]


def _entrypoint(image_uri: str, images: Mapping[str, Sequence[str]]) -> Sequence[str] | None:
    if image_uri in images:
        return images[image_uri]
    without_digest = image_uri.partition("@")[0]
    return images.get(re.sub(r":[^:/]*$", "", without_digest))


def _add_packages(environment: dict[str, str], packages: Sequence[Path], home: Path) -> None:
    """Put Python packages in front of what the job itself has on its path."""
    own = environment.get("PYTHONPATH")
    entries = [*python_path(packages, home / "packages"), *([own] if own else [])]
    environment["PYTHONPATH"] = os.pathsep.join(entries)


def _environment(
    job: Any,
    pool: Any,
    home: Path,
    cluster: Mapping[str, list[str]],
    task: tuple[str, int],
    host: ContainerHost,
) -> dict[str, str]:
    _, project, _, _, _, job_id = job.name.split("/")
    task_type, index = task
    cluster_spec = {
        "cluster": cluster,
        "environment": "cloud",
        "task": {"type": task_type, "index": index},
        "job": job_id,
    }
    environment = {name: os.environ[name] for name in _FROM_HOST if name in os.environ}
    # The sandbox's own interpreter is the `python` of its containers.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment |= {
        "HOME": str(home / "scratch"),
        "CLOUD_ML_PROJECT_ID": project,
        "CLOUD_ML_JOB_ID": job_id,
        "CLUSTER_SPEC": json.dumps(cluster_spec),
        **host.variables,
    }
    output: str = job.job_spec.base_output_directory.output_uri_prefix.rstrip("/")
    if output:
        environment |= {
            "AIP_MODEL_DIR": f"{output}/model/",
            "AIP_CHECKPOINT_DIR": f"{output}/checkpoints/",
            "AIP_TENSORBOARD_LOG_DIR": f"{output}/logs/",
        }
    if job.job_spec.tensorboard:
        environment["AIP_TENSORBOARD_RESOURCE_NAME"] = job.job_spec.tensorboard
    own = (*pool.container_spec.env, *pool.python_package_spec.env)  # a pool has one of the two
    for variable in own:  # each may refer to those before it
        environment[variable.name] = _expanded(variable.value, environment)
    return environment


def _filled(program: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Fill each word of a program, as long as all of them together could be given to a process."""
    words: list[str] = []
    left = _LONGEST_PROGRAM
    for word in program:
        words.append(_expanded(word, environment))
        left -= len(words[-1])
        if left < 0:
            raise _too_long()
    return words


def _expanded(word: str, environment: Mapping[str, str]) -> str:
    """Fill $(NAME) as Vertex AI does: an unknown name stays as it is, and $$ stands for one $."""
    left = _LONGEST_WORD

    def filled(match: re.Match[str]) -> str:
        nonlocal left
        text = "$" if match.group() == "$$" else environment.get(match.group(1), match.group())
        left -= len(text)
        if left < 0:
            raise _too_long()
        return text

    return _EXPANSION.sub(filled, word)


def _too_long() -> OSError:
    return OSError(errno.E2BIG, os.strerror(errno.E2BIG))


def _start(home: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> Replica:
    scratch = home / "scratch"
    scratch.mkdir(parents=True)
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  # running the job's program is the point
            ["/bin/sh", "-c", _WRAPPER, "sh", str(home), *arguments],
            cwd=scratch,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Replica(home.name, home, process.pid, process)


async def wait_for(replicas: Sequence[Replica], *, until: float | None = None) -> bool:
    """Return True once all replicas have ended, False if `until` (seconds since the epoch) comes first."""
    poll_seconds = _FIRST_POLL_SECONDS
    while any(replica.poll() is None for replica in replicas):
        if until is not None and time.time() >= until:
            return False
        left = poll_seconds if until is None else min(poll_seconds, max(0.0, until - time.time()))
        await asyncio.sleep(left)
        poll_seconds = min(2 * poll_seconds, _LONGEST_POLL_SECONDS)
    return True


async def end_replicas(replicas: Sequence[Replica], *, grace_seconds: float) -> None:
    """End processes as a container runtime does: SIGTERM, and SIGKILL for what is left after a while."""
    for replica in replicas:
        replica.send(signal.SIGTERM)
    if not await wait_for(replicas, until=time.time() + grace_seconds):
        for replica in replicas:
            replica.send(signal.SIGKILL)
        await wait_for(replicas)
    for replica in replicas:
        _end_escaped(replica.directory)


def _end_escaped(directory: Path) -> None:
    """Kill what a replica had started in a session of its own: nothing outlives its container.

    Such is wandb's service, which stays for ever if its parent is killed before it has connected.
    """
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(directory):
                os.kill(int(process.name), signal.SIGKILL)
