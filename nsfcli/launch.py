"""One command in several processes: what `distributed.launch` of params.yaml starts, and how each of them behaves.

The processes are ordinary calls of nsf with the same arguments; stages/distributed.py is how they work together.
"""

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from nsfcli.console import Console
from nsfcli.params import STANDARD_PATH
from stages import distributed
from stages.errors import BadParameter

# The commands that know how to work in several processes.
STAGES = ("extract", "identify", "neutralize", "eliminate", "update", "evaluate")

# Set for the processes of a launcher, so that none of them starts it once more.
LAUNCHED = "NSF_LAUNCHED"

# How long an error of another process than the first waits to be shown. Mostly the first has met the same one, and
# torchrun ends all others as soon as one has failed.
PATIENCE_SECONDS = 2.0


def work(app: Callable[[], None]) -> NoReturn:
    """Run the app as one of several processes, and end."""
    _hush()
    try:
        with one_voice():
            app()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: taken down with Python, the connections to processes that have gone before may abort this one.
    os._exit(code)


@contextmanager
def one_voice() -> Iterator[None]:
    """Of several processes the first alone is heard; what the others write to stderr is shown where they fail, later."""
    if distributed.rank() == 0:
        yield
        return
    stdout, stderr = sys.stdout, sys.stderr
    held = io.StringIO()
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout, sys.stderr = nowhere, held
        try:
            yield
        except SystemExit as end:
            if end.code not in (None, 0, 128 + signal.SIGINT, 128 + signal.SIGTERM):
                time.sleep(PATIENCE_SECONDS)
                stderr.write(held.getvalue())
            raise
        finally:
            sys.stdout, sys.stderr = stdout, stderr


def _hush() -> None:
    """No stack of C++ calls from PyTorch where another process is gone; it reads this once, when it is imported."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def launched(launch: str, arguments: Sequence[str], params: Path | None, *, debug: bool) -> int:
    """Run `launch -m nsfcli arguments` and return its exit code; the output is that of the processes.

    Args:
        launch: a command line; `torchrun` is that of this interpreter, whatever PATH says.
        arguments: those of nsf.
        params: the file that `launch` stands in.
        debug: show what torchrun says of a failed process.

    Raises:
        BadParameter: there is no such program, it does not understand its options, or it has started this process
            without saying which of how many it is.
    """
    where = params or STANDARD_PATH
    if LAUNCHED in os.environ:
        raise BadParameter(
            f"distributed.launch is {launch!r}, which sets no RANK and WORLD_SIZE for the processes that it starts",
            where=where,
            do="use torchrun, or have the launcher set them",
        )
    try:
        words = shlex.split(launch)
    except ValueError as error:
        raise BadParameter(f"distributed.launch is {launch!r} ({error})", where=where) from error
    if not words:
        raise BadParameter("distributed.launch is empty", where=where, do="set it to null for one process")
    program = ["-m", "nsfcli", *arguments]
    if words[0] == "torchrun":
        return _torchrun([*words[1:], *program], where, debug=debug)
    return _run([*words, *program], where)


def _torchrun(arguments: list[str], where: Path, *, debug: bool) -> int:
    """torchrun in this process, without the report and the traceback it ends with when a process fails."""
    import logging

    _hush()
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    # What torchrun sets, with a warning; `runtime.thread_count` reads it as torchrun's.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            options = run.parse_args(arguments)  # type: ignore[no-untyped-call]
    except SystemExit as end:
        if not end.code:
            return 0
        text = (said.getvalue().strip().splitlines() or [""])[-1].rpartition("error: ")[2]
        raise BadParameter(f"distributed.launch: torchrun says: {text}", where=where) from end
    if not debug:
        logging.disable(logging.CRITICAL)
    try:
        with TemporaryDirectory() as logs:
            # It makes a folder for logs even where it writes none, and leaves it.
            options.log_dir = options.log_dir or logs
            run.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        # The first process says what happens to others; nobody else says what happened to it.
        if rank == 0:
            Console().error(f"process 0 of this run was ended ({failure.signal_name()}); run the same command again.")
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    except (RendezvousError, ValueError, OSError) as error:
        raise BadParameter(f"distributed.launch: torchrun says: {error}", where=where) from error
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _run(command: list[str], where: Path) -> int:
    """Another launcher, which is told to stop when this process is."""
    try:
        # Of its own session, for an interruption from the terminal reaches it once: through this process.
        environment = {**os.environ, LAUNCHED: "1"}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment)
    except OSError as error:
        text = f"distributed.launch names '{command[0]}', which cannot be run ({error.strerror})"
        raise BadParameter(text, where=where) from error

    def forward(number: int, frame: Any) -> None:
        process.send_signal(number)

    with distributed.signals(forward):
        code = process.wait()
    return code if code >= 0 else 128 - code
