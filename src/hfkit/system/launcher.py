"""A command in several processes: `accelerate launch` as a child, signals passed on, one message, one exit code.

The parent prepares and waits, its child is `accelerate launch`, and the ranks are children of that child. Each process
ends with its parent, and none waits forever for one that has died.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from hfkit.errors import HfkitError, LostProcessError, StorageError, UsageError, format_problem
from hfkit.system import compat, processes
from hfkit.system.console import say
from hfkit.system.files import read_json, write_atomically
from hfkit.system.signals import NUMBERS, PR_SET_PDEATHSIG, handling, prctl

GRACE = 20  # seconds that ranks have to end after another rank has failed, or after their launcher

MEETING = 1800  # seconds that a machine waits for the others

PORT = 29500  # of the first machine, by default

PARALLEL = {
    "ddp": ["--multi_gpu"],
    "fsdp2": [
        "--use_fsdp",
        *("--fsdp_version", "2"),
        *("--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
        *("--fsdp_state_dict_type", "SHARDED_STATE_DICT"),
        *("--fsdp_cpu_ram_efficient_loading", "false"),  # each rank reads the model for itself
    ],
}

# Arguments of the launcher that decide how the work is divided, instead of --parallel.
KINDS = ("--config_file", "--use_deepspeed", "--use_fsdp", "--use_megatron_lm", "--multi_gpu", "--tpu")

# Exit codes of a process that ended because another one did, or because a person stopped it.
CONSEQUENCES = (LostProcessError.exit_code, -signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT)

_ERRORS = "TORCHELASTIC_ERROR_FILE"  # environment variable: where a rank leaves its error for the launcher

_LOOPBACK = "loopback"

_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h


@dataclass(frozen=True)
class Launch:
    """How to start a command in several processes; `arguments` is its whole command line."""

    arguments: Sequence[str]
    counts: Sequence[int]  # of processes on all machines; several only for --plan
    more: Sequence[str]  # arguments for the launcher
    num_machines: int = 1
    machine_rank: int = 0
    main_process_ip: str = "127.0.0.1"
    main_process_port: int | None = None
    parallel: str | None = None

    @property
    def num_processes(self) -> int:
        return self.counts[0]

    @property
    def local_processes(self) -> int:
        return self.num_processes // self.num_machines

    @property
    def port(self) -> int:
        return self.main_process_port or PORT


def launch_of(arguments: Sequence[str], given: Mapping[str, Any]) -> Launch | None:
    """What the options `given` ask for; None if this process does the work itself, alone or as a rank."""
    typed = {name: value for name, value in given.items() if value is not None}
    expected = os.environ.get(processes.EXPECTED)
    if expected is not None and "RANK" in os.environ:
        if int(expected) != processes.num_processes():
            problem = f"this machine expects {expected} processes, but {processes.num_processes()} take part"
            raise UsageError(problem, "the same --num-processes and --num-machines on every machine")
        return None
    more = shlex.split(typed.pop("launcher_arguments", ""))
    wanted = str(typed.pop("num_processes", 1))
    try:
        counts = [int(count) for count in wanted.split(",")]
    except ValueError:
        raise UsageError(f"--num-processes {wanted}: not a number", "--num-processes 2") from None
    if min(counts) < 1:
        raise UsageError(f"--num-processes {wanted}: must be at least 1", "--num-processes 2")
    alone = counts == [1]
    if "RANK" in os.environ and (typed or more or not alone):
        raise UsageError("a launcher started this process and decides how many there are", "leave it out here")
    if alone and (typed or more):
        flag = f"--{next(iter(typed)).replace('_', '-')}" if typed else f"-- {more[0]}"
        raise UsageError(f"{flag} has no effect in one process", "--num-processes N")
    if alone:
        return None
    launch = Launch(arguments, counts, more, **typed)
    _check(launch, typed)
    return launch


def _check(launch: Launch, typed: Mapping[str, Any]) -> None:
    """UsageError for options that contradict each other."""
    if launch.num_machines < 1 or launch.num_processes % launch.num_machines:
        fewer = max(launch.num_machines, 1) * max(launch.num_processes // max(launch.num_machines, 1), 1)
        problem = f"{launch.num_processes} processes can't be divided evenly among {launch.num_machines} machines"
        raise UsageError(problem, f"--num-processes {fewer}, which counts those of all machines")
    if not 0 <= launch.machine_rank < launch.num_machines:
        problem = f"--machine-rank {launch.machine_rank}: there are {launch.num_machines} machines"
        raise UsageError(problem, f"0 on the first machine, {launch.num_machines - 1} on the last")
    if launch.num_machines > 1 and not {"main_process_ip", "machine_rank"} <= typed.keys():
        problem = f"each of the {launch.num_machines} machines needs its rank and the address of the first one"
        raise UsageError(problem, "--machine-rank R --main-process-ip ADDRESS")
    if launch.num_machines == 1 and "main_process_ip" in typed:
        raise UsageError("--main-process-ip has no effect on one machine", "--num-machines M, or leave it out")
    if launch.parallel is not None and launch.parallel not in PARALLEL:
        raise UsageError(f"--parallel {launch.parallel}: unknown", " or ".join(PARALLEL))
    if launch.parallel is not None and (kind := _kind(launch)):
        raise UsageError(f"--parallel and {kind} both decide how the work is divided", "leave one of them out")


def _kind(launch: Launch) -> str | None:
    """The argument of the launcher that decides how the work is divided, if there is one."""
    return next((word for word in launch.more if "--" + word[2:].partition("=")[0].replace("-", "_") in KINDS), None)


def run(launch: Launch, prepare: Callable[[], Path] | None = None) -> int:
    """Runs the command in its processes and returns the exit code. `prepare` is called before they start; it returns
    the run directory of a training.

    The exit code is that of the rank that failed first, or what `status.json` of the run says if that knows better.
    """
    import psutil

    if len(launch.counts) > 1:
        raise UsageError("several numbers of processes are for --plan", f"--num-processes {launch.counts[0]}")
    environment = _environment(launch)
    _require_port(launch)
    directory = None if prepare is None else prepare()
    if launch.num_machines > 1:
        say(f"waiting for all {launch.num_machines} machines at {launch.main_process_ip}:{launch.port}")
    status = None if directory is None else directory / "status.json"
    before = read_json(status) if status else {}
    others = set(psutil.Process().children(recursive=True))
    prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans among its descendants become its children, so it can wait for them
    command = [sys.executable, "-m", "hfkit.system.launcher", str(os.getpid()), *_command(launch, directory)]
    # In a session of its own, so that Ctrl-C in a terminal reaches this process only, which passes it on to each rank.
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        with handling(lambda number, _: child.send_signal(number)):
            code = child.wait()
            _end_orphans(set(psutil.Process().children(recursive=True)) - others)
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)
    if code == -signal.SIGKILL:
        print("error: the launcher was ended by SIGKILL, and its processes with it", file=sys.stderr)
    after = read_json(status) if status else {}
    if status and after != before:
        if after.get("state") == "finished":
            return 0  # whatever happened to processes that had nothing left to do
        if after.get("state") == "stopped" and (code < 0 or code in CONSEQUENCES):
            return int(after["exit_code"])
        if after.get("state") == "stopped":
            _tell_failure(status, after, code)
    return code if code >= 0 else 128 - code


def _tell_failure(path: Path, status: Mapping[str, Any], code: int) -> None:
    """Writes what rank 0 could not know: it was stopped because another rank had failed with `code`."""
    kept = str(status.get("reason", "")).partition("; ")[2]
    failure = {
        "state": "failed",
        "exit_code": code,
        "reason": f"another process has failed with exit code {code}; {kept}",
    }
    with suppress(OSError):
        write_atomically(path, json.dumps({**status, **failure}, indent=1))


def _environment(launch: Launch) -> dict[str, str]:
    """The environment of the launcher and its ranks; UsageError if this machine can't run them."""
    import torch

    num_devices, local = torch.accelerator.device_count(), launch.local_processes
    if 0 < num_devices < local:
        raise UsageError(f"{local} processes on a machine with {num_devices} GPUs", f"--num-processes {num_devices}")
    if launch.parallel == "fsdp2" and num_devices == 0:
        raise UsageError("FSDP2 needs several GPUs: on CPU every process would hold all weights", "--parallel ddp")
    environment = os.environ | {
        processes.EXPECTED: str(launch.num_processes),
        "PET_SIGNALS_TO_HANDLE": "SIGQUIT",  # the other signals are passed on below, without torch's time limit
        "PYTHONSAFEPATH": "1",  # like the console script: files of the working directory are no modules
    }
    if num_devices == 0:
        environment["ACCELERATE_USE_CPU"] = "true"
    if launch.num_machines == 1:
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
        if loopback is not None:
            environment.setdefault("GLOO_SOCKET_IFNAME", loopback)
    return environment


def _command(launch: Launch, directory: Path | None) -> list[str]:
    """The arguments of `accelerate launch`, with the command line of the ranks as it was typed."""
    import torch

    threads = os.environ.get("OMP_NUM_THREADS") or max(1, torch.get_num_threads() // launch.local_processes)
    settings: dict[str, Any] = {
        "num_processes": launch.num_processes,
        "num_machines": launch.num_machines,
        "machine_rank": launch.machine_rank,
        "mixed_precision": "no",  # train.precision decides
        "dynamo_backend": "no",
        "num_cpu_threads_per_process": threads,
    }
    if launch.num_machines == 1:
        port = launch.main_process_port or 0  # 0: any free port
        settings |= {"main_process_port": 0, "rdzv_backend": _LOOPBACK, "rdzv_conf": f"port={port}"}
    else:
        settings |= {"main_process_ip": launch.main_process_ip, "main_process_port": launch.port}
        settings |= {"rdzv_backend": "static", "rdzv_conf": f"timeout={MEETING}"}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    kind = [] if _kind(launch) else PARALLEL[launch.parallel or "ddp"]
    typed = list(launch.arguments)
    typed = typed[: typed.index("--")] if "--" in typed else typed
    named = [] if directory is None else ["--output-dir", str(directory)]
    return [*kind, *options, "--same_network", *launch.more, "-m", "hfkit", *typed, *named]


def _require_port(launch: Launch) -> None:
    """UsageError if this machine has to listen at a port that another process uses."""
    if launch.machine_rank > 0 or (launch.num_machines == 1 and launch.main_process_port is None):
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1" if launch.num_machines == 1 else "", launch.port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            problem = f"port {launch.port} can't be used: {reason}"
            raise UsageError(problem, "another --main-process-port, the same on every machine") from None


def _end_orphans(left: set[Any]) -> None:
    """Waits GRACE seconds for ranks that outlive their launcher, which may still save a step; then kills them."""
    import psutil

    _, left = psutil.wait_procs(left, timeout=GRACE)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left)


def leave_word(error: HfkitError) -> bool:
    """Whether the launcher will print `error` instead of this rank: it knows the errors of all ranks."""
    path = os.environ.get(_ERRORS)
    if path is None or not processes.has_parent():
        return False
    said = "\n".join(format_problem(*problem) for problem in error.problems)
    word = {"message": said, "extraInfo": {"timestamp": str(int(time.time())), "problems": error.problems}}
    try:
        Path(path).write_text(json.dumps({"message": word}), encoding="utf-8")
    except OSError:
        return False
    return True


def main(parent: int, arguments: list[str]) -> int:
    """The child: runs `accelerate launch ARGUMENTS`, ends with `parent`, and returns the exit code."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 128 + signal.SIGTERM
    for number in NUMBERS:
        signal.signal(number, _pass_on)
    if "LOGLEVEL" not in os.environ:
        logging.disable()  # the error is printed below, in one line

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    rendezvous_handler_registry.register(_LOOPBACK, _loopback)
    compat.end_ranks_within(GRACE)
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except ChildFailedError as error:
        return _tell(error.failures)
    except (DistError, ConnectionError) as error:
        problem = f"the machines of this run did not find each other: {str(error).splitlines()[0]}"
        failed = LostProcessError(problem, "the same --main-process-ip and --main-process-port on every machine")
        print(f"error: {failed}", file=sys.stderr)
        return failed.exit_code
    return 0


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Sends a signal to each rank, or ends this process if there are none yet."""
    import psutil

    ranks = psutil.Process().children()
    if not ranks:
        raise SystemExit(128 + number)
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


def _loopback(parameters: Any) -> Any:
    """A rendezvous at 127.0.0.1 for the ranks of one machine; the store of torch would listen at every address."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    listener = socket.create_server(("127.0.0.1", int(parameters.config["port"])))  # 0: any free port
    port = listener.getsockname()[1]

    class Loopback(StaticTCPRendezvous):
        def get_backend(self) -> str:
            return _LOOPBACK

    handler = Loopback("127.0.0.1", port, 0, 1, parameters.run_id, timeout=60)
    store = TCPStore(
        "127.0.0.1", port, 1, True, timedelta(seconds=60), multi_tenant=True, master_listen_fd=listener.detach()
    )
    compat.set_store(handler, store)
    return handler


def _tell(failures: Mapping[int, Any]) -> int:
    """Prints the error of the rank that failed first and returns its exit code."""
    first = min(failure.timestamp for failure in failures.values())
    rank, failure = min(
        failures.items(),
        key=lambda one: (one[1].exitcode in CONSEQUENCES, one[1].timestamp > first + GRACE // 2, one[1].exitcode == 1),
    )
    message, code = failure.error_file_data["message"], int(failure.exitcode)
    if isinstance(message, dict) and "problems" in message["extraInfo"]:
        where = f"rank {rank}: " if code == StorageError.exit_code and rank else ""
        for problem in message["extraInfo"]["problems"]:
            print(f"error: {where}{format_problem(*problem)}", file=sys.stderr)
    elif code < 0:
        print(f"error: rank {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr)
    elif code == 1:
        print(f"error: rank {rank} has failed, its traceback is above", file=sys.stderr)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
