"""Several processes: what distributed.launch starts, under torchrun who speaks, and how a run of several ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nsfcli.app import COMMANDS
from nsfcli.launch import PATIENCE_SECONDS, STAGES, launched, one_voice
from nsfcli.params import launch
from stages import distributed
from stages.errors import BadParameter
from tests.conftest import REPOSITORY, Done, assert_one_sentence, leftovers, planted, run_process

TORCHRUN = "distributed: {launch: torchrun --nproc-per-node 2}\n"

# Stands for a launcher: writes what it is given and waits for what ends it, or ends with the code it is told.
LAUNCHER = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: sys.exit(100 + number))
print(*sys.argv[1:], flush=True)
if sys.argv[1] != "wait":
    sys.exit(int(sys.argv[1]))
time.sleep(60)
"""


@pytest.fixture
def features(own_features: Callable[..., Path], tmp_path: Path) -> None:
    """Another program's val and test features on the standard paths."""
    (tmp_path / "artifacts/features").mkdir(parents=True)
    for seed, split in enumerate(("val", "test")):
        own_features(f"artifacts/features/{split}", **planted(seed=seed))


@pytest.fixture
def launcher(tmp_path: Path) -> Callable[[str], None]:
    """Have params.yaml launch by LAUNCHER, told what to do."""

    def write(told: str) -> None:
        (tmp_path / "launcher.py").write_text(LAUNCHER)
        (tmp_path / "params.yaml").write_text(f"distributed: {{launch: '{sys.executable} launcher.py {told}'}}\n")

    return write


# ------------------------------------------------------------------------------------------------- distributed.launch


def test_without_a_word_there_is_one_process(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for text in ("", "distributed:\n", "distributed: {}\n", "distributed: {launch: null}\n"):
        path.write_text(text)
        assert launch(path) is None
    path.write_text(TORCHRUN)
    assert launch(path) == "torchrun --nproc-per-node 2"
    assert launch(REPOSITORY / "params.yaml") is None


@pytest.mark.parametrize("path", ["dvc.yaml", "nsfcli/templates/dvc.yaml.j2"])
def test_no_stage_of_dvc_depends_on_it(path: str) -> None:
    """Changing it re-runs nothing."""
    lists = re.findall(r"params: \[(.*)\]", (REPOSITORY / path).read_text())
    assert len(lists) >= 3 and not any("distributed" in names for names in lists)


def test_a_launcher_gets_the_same_command(launcher: Callable[[str], None], tmp_path: Path) -> None:
    launcher("0")
    done = run_process("nsf", "identify", "--json", "--out", "a b", "--device=cpu", cwd=tmp_path)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == "0 -m nsfcli identify --json --out a b --device=cpu\n"


@pytest.mark.parametrize("code", [1, 2, 130])
def test_its_exit_code_is_ours(code: int, launcher: Callable[[str], None], tmp_path: Path) -> None:
    launcher(str(code))
    done = run_process("nsf", "eliminate", cwd=tmp_path)
    assert (done.code, done.stderr) == (code, "")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_is_told_to_stop(sent: signal.Signals, launcher: Callable[[str], None], tmp_path: Path) -> None:
    launcher("wait")
    command = [sys.executable, "-m", "nsfcli", "update"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "wait -m nsfcli update\n"
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (100 + sent, "")


@pytest.mark.parametrize("arguments", [["--help"], ["identify", "--help"], ["metrics", "--help"]])
def test_help_starts_nothing(
    arguments: list[str], launcher: Callable[[str], None], tmp_path: Path, nsf: Callable[..., Done]
) -> None:
    launcher("1")
    assert nsf(*arguments).code == 0


def test_usage_is_checked_before(launcher: Callable[[str], None], tmp_path: Path, nsf: Callable[..., Done]) -> None:
    launcher("1")
    done = nsf("identify", "--nope")
    assert done.code == 2 and "No such option: --nope" in done.stderr


@pytest.mark.usefixtures("features")
def test_a_process_that_was_launched_launches_no_other(
    launcher: Callable[[str], None], nsf: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher("1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert nsf("identify", "--json").json["samples"] == 200


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "abc"}, ["WORLD_SIZE: 'abc' is no whole number", "unset it"]),
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE: is 2", "RANK is not set", "torchrun"]),
        ({"WORLD_SIZE": "2", "RANK": "1"}, ["WORLD_SIZE: is 2", "MASTER_ADDR is not set"]),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}, ["RANK is 2"]),
        ({"LOCAL_WORLD_SIZE": "x"}, ["LOCAL_WORLD_SIZE: 'x' is no whole number"]),
    ],
)
@pytest.mark.usefixtures("features")
def test_an_environment_as_if_there_were_several(variables: dict[str, str], words: list[str], tmp_path: Path) -> None:
    """As left behind by a job script, or set by a scheduler for other programs."""
    done = run_process("nsf", "identify", cwd=tmp_path, **{"NSF_THREADS": "", **variables})
    assert_one_sentence(done, *words)


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert (distributed.size(), distributed.rank(), distributed.local_size()) == (1, 0, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3", ["distributed.launch is 3", "non-empty text or null"]),
        ("''", ["distributed.launch is ''"]),
        ("' '", ["distributed.launch is empty", "null"]),
        ('"a \'b"', ["distributed.launch", "No closing quotation"]),
        ("no-such-program --n 2", ["'no-such-program'", "cannot be run"]),
        ("torchrun --no-such-option", ["torchrun says", "--no-such-option"]),
        ("torchrun --nproc-per-node many", ["torchrun says", "many"]),
    ],
)
def test_a_launch_that_cannot_be(text: str, words: list[str], tmp_path: Path, nsf: Callable[..., Done]) -> None:
    (tmp_path / "params.yaml").write_text(f"distributed: {{launch: {text}}}\n")
    assert_one_sentence(nsf("identify"), "params.yaml", *words)


def test_a_launcher_that_does_not_number_its_processes(tmp_path: Path) -> None:
    """Each process would start it once more, without end."""
    (tmp_path / "params.yaml").write_text(f"distributed: {{launch: {sys.executable}}}\n")
    done = run_process("python", "-m", "nsfcli", "identify", cwd=tmp_path)
    assert done.code == 1
    assert re.fullmatch(r"nsf: params\.yaml: .* sets no RANK and WORLD_SIZE .*; use torchrun, or .*\n", done.stderr)


# --------------------------------------------------------------------------------------------------------- one voice


def test_stages_are_commands() -> None:
    assert set(STAGES) < set(COMMANDS)


@pytest.mark.parametrize("command", [["metrics"], ["compare"], ["init"], ["train", "--data-format", "dominoes"]])
def test_other_commands_run_in_one_process(
    command: list[str], nsf: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_one_sentence(nsf(*command), f"`nsf {command[0]}` runs in one process")


@pytest.mark.parametrize(("code", "waits"), [(0, False), (1, True), (2, True), (130, False), (143, False)])
def test_the_second_process_speaks_late_and_only_of_failure(
    code: int, waits: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(SystemExit), one_voice():
        print("result")  # noqa: T201
        print("why", file=sys.stderr)  # noqa: T201
        sys.exit(code)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "why\n" if waits else "")
    assert waited == ([PATIENCE_SECONDS] if waits else [])


def test_the_first_process_speaks_as_it_goes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with one_voice():
        print("result")  # noqa: T201
        assert capsys.readouterr().out == "result\n"


def test_a_launch_in_python(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match=r"^params\.yaml: distributed\.launch names 'nowhere'"):
        launched("nowhere", ["identify"], None, debug=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("features")
def test_a_process_that_waits_for_others_can_be_stopped(number: int, tmp_path: Path) -> None:
    """Variables of another run, say: the others never come."""
    others = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    process = subprocess.Popen(
        [sys.executable, "-m", "nsfcli", "identify"], cwd=tmp_path, env={**os.environ, **others}, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not listens(int(others["MASTER_PORT"])):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(timeout=20) == -number
    assert process.communicate()[1] == b"" and leftovers(tmp_path) == []


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return int(server.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) == 0


# ---------------------------------------------------------------------------------------------------- with torchrun


@pytest.mark.slow
@pytest.mark.usefixtures("features")
def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    """By params.yaml, and by torchrun itself: one JSON object, and the same artifact."""
    one = run_process("nsf", "identify", "--json", cwd=tmp_path, check=True)
    artifact = tmp_path / "artifacts/identify.safetensors"
    expected = load_file(artifact)
    (tmp_path / "params.yaml").write_text(TORCHRUN)
    for command in (["nsf"], ["torchrun", "--nproc-per-node", "2", "-m", "nsfcli"]):
        artifact.unlink()
        done = run_process(*command, "identify", "--json", cwd=tmp_path, check=True)
        assert done.json == one.json
        assert done.stderr == "" or command[0] == "torchrun"
        found = load_file(artifact)
        assert found["minority"].equal(expected["minority"])
        assert found["centroids"].allclose(expected["centroids"], rtol=1e-6)


@pytest.mark.slow
def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(TORCHRUN)
    assert_one_sentence(run_process("nsf", "identify", "--features", "nowhere", cwd=tmp_path), "nowhere")
    done = run_process("torchrun", "--nproc-per-node", "2", "-m", "nsfcli", "identify", "--features", "x", cwd=tmp_path)
    assert done.code == 1 and done.stderr.count("nsf: x: there is no such file") == 1


def workers(parent: int) -> dict[int, int]:
    """The processes that torchrun has started: rank -> process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status, environment = (entry / "status").read_text(), (entry / "environ").read_bytes()
            except OSError:
                continue
            values = dict(pair.split(b"=", 1) for pair in environment.split(b"\0") if b"=" in pair)
            if f"PPid:\t{parent}\n" in status and b"RANK" in values:
                found[int(values[b"RANK"])] = int(entry.name)
    return found


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.usefixtures("features")
@pytest.mark.parametrize(
    ("ended", "sent", "code", "words"),
    [
        (1, signal.SIGKILL, 1, "another"),
        (0, signal.SIGKILL, 1, "process 0 of this run was ended (SIGKILL)"),
        (None, signal.SIGTERM, 143, "told to stop"),
        (None, signal.SIGINT, 130, "interrupted; no artifact was written"),
    ],
)
def test_what_ends_one_ends_all(
    ended: int | None, sent: signal.Signals, code: int, words: str, nsf: Callable[..., Done], tmp_path: Path
) -> None:
    """Long before a timeout, in one sentence, and nothing is left: no half artifact, no process."""
    assert nsf("identify").code == nsf("neutralize").code == 0
    (tmp_path / "params.yaml").write_text(TORCHRUN)
    process = subprocess.Popen(
        [sys.executable, "-m", "nsfcli", "eliminate", "--steps", "10000000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 180
    started: dict[int, int] = {}
    # Importing PyTorch takes less: both are in the middle of the steps.
    while len(started) < 2 or min(map(cpu_seconds, started.values())) < 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
        started = workers(process.pid)
    os.kill(process.pid if ended is None else started[ended], sent)
    stdout, stderr = process.communicate(timeout=40)
    assert (process.returncode, stdout) == (code, ""), stderr
    assert stderr.startswith("nsf: ") and stderr.count("\n") == 1 and words in stderr, stderr
    assert not (tmp_path / "artifacts/eliminate.safetensors").exists() and leftovers(tmp_path) == []
    assert not any(Path(f"/proc/{worker}").exists() for worker in started.values())
