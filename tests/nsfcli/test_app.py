"""The command line as a whole: help, global options, streams, exit codes, interruption."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nsfcli import __version__
from nsfcli.app import COMMANDS, hoist
from nsfcli.console import Console
from tests.conftest import Done, assert_one_sentence, planted, run_process

STAGES = ("identify", "neutralize", "eliminate", "update", "evaluate")


@pytest.fixture
def features(own_features: Callable[..., Path], tmp_path: Path) -> None:
    """Another program's val and test features on the standard paths, where every command finds its input by itself."""
    (tmp_path / "artifacts/features").mkdir(parents=True)
    for seed, split in enumerate(("val", "test")):
        own_features(f"artifacts/features/{split}", **planted(seed=seed))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, temporary ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plain(text: str) -> str:
    """What a terminal shows, without its control sequences."""
    return re.sub(r"\x1b\[[\d;?]*\w", "", text)


# ----------------------------------------------------------------------------------------------------- help and import


def test_help_lists_the_stages_in_pipeline_order(nsf: Callable[..., Done]) -> None:
    page = nsf("--help")
    listed = re.findall(r"^│ ([a-z]+) ", page.stdout, flags=re.MULTILINE)
    assert page.code == 0 and listed == list(COMMANDS)
    assert [name for name in listed if name in ("train", "extract", *STAGES)] == ["train", "extract", *STAGES]


@pytest.mark.parametrize("command", STAGES)
def test_a_command_s_help_names_what_it_reads_and_writes(command: str, nsf: Callable[..., Done]) -> None:
    page = " ".join(nsf(command, "--help").stdout.split())
    assert "Reads artifacts/features/" in page and "--features FILE" in page and "--out FILE" in page
    assert f"[default: artifacts/{command}.safetensors]" in page


def test_nothing_heavy_is_imported_before_there_is_work(tmp_path: Path) -> None:
    """Neither for help, nor for the table of metrics, nor to refuse an option."""
    (tmp_path / "metrics").mkdir()
    report = {"worst_group_accuracy": 1.0, "mean_accuracy": 1.0, "classes": {"0": 1.0}, "groups": {"0/0": 1.0}}
    (tmp_path / "metrics/evaluate.json").write_text(json.dumps({"base": None, "nsf": report, "samples": {"0/0": 3}}))
    code = """
import sys, nsfcli.app
heavy = {"torch", "torchvision", "transformers", "pandas", "numpy", "safetensors", "dvc"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
helps = [["--help"], *([name, "--help"] for name in nsfcli.app.COMMANDS)]
for arguments, code in (*((page, 0) for page in helps), (["metrics"], 0), (["eliminate", "--steps", "abc"], 1)):
    try:
        nsfcli.app.app(arguments)
    except SystemExit as end:
        assert end.code == code, (arguments, end.code)
    assert not heavy & set(sys.modules), (arguments, heavy & set(sys.modules))
"""
    run_process("python", "-c", code, cwd=tmp_path, check=True)


def test_version(tmp_path: Path) -> None:
    for program in (["nsf"], ["python", "-m", "nsfcli"]):
        done = run_process(*program, "--version", cwd=tmp_path)
        assert (done.code, done.stdout, done.stderr) == (0, f"nsf {__version__}\n", "")


def test_shell_completion(nsf: Callable[..., Done], tmp_path: Path) -> None:
    assert "--show-completion" in nsf("--help").stdout

    def complete(words: str) -> list[str]:
        typed = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return run_process("nsf", cwd=tmp_path, check=True, _NSF_COMPLETE="complete_bash", **typed).stdout.split()

    assert complete("nsf e") == ["extract", "eliminate", "evaluate", "export"]
    assert complete("nsf eliminate --st") == ["--steps"]
    script = run_process("nsf", cwd=tmp_path, check=True, _NSF_COMPLETE="source_bash").stdout
    assert "_NSF_COMPLETE=complete_bash" in script


# ------------------------------------------------------------------------------------------------------ global options


@pytest.mark.parametrize(
    ("given", "hoisted"),
    [
        ("identify --json", "--json identify"),
        ("identify --out a --device cpu --quiet", "--device cpu --quiet identify --out a"),
        ("identify --params=p.yaml --head h", "--params=p.yaml identify --head h"),
        ("--debug identify --json", "--debug --json identify"),
        ("identify -- --json", "identify -- --json"),
        ("identify --json --params", "--json --params"),
        ("", ""),
    ],
)
def test_hoist(given: str, hoisted: str) -> None:
    assert hoist(given.split()) == hoisted.split()


@pytest.mark.usefixtures("features")
@pytest.mark.parametrize(
    "options",
    [["--params", "p.yaml", "--json"], ["--json", "--params=p.yaml", "--device=cpu"], ["--debug", "--params=p.yaml"]],
)
def test_global_options_before_and_after_the_command(options: list[str], nsf: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("eliminate: {steps: 3}\n")
    for command in (["identify"], ["neutralize"]):
        assert nsf(*command).code == 0
    before, after = nsf(*options, "eliminate"), nsf("eliminate", *options)
    assert before.code == 0 and before == after
    assert before.json["steps"] == 3 if "--json" in options else before.stdout.startswith("3 steps, loss ")


@pytest.mark.usefixtures("features")
def test_json_is_one_object_on_stdout(nsf: Callable[..., Done]) -> None:
    for command in (*STAGES, "metrics"):
        done = nsf(command, "--json")
        assert done.code == 0, done.stderr
        assert done.stdout.count("\n") == 1 and done.stdout.endswith("\n")
        assert isinstance(done.json, dict) and done.json
        if command in STAGES[:-1]:
            assert done.json["out"] == f"artifacts/{command}.safetensors"
    assert done.json["nsf"]["groups"].keys() == {"0/0", "0/1", "1/0", "1/1"}


@pytest.mark.usefixtures("features")
def test_quiet_prints_nothing(nsf: Callable[..., Done]) -> None:
    for command in (*STAGES, "metrics"):
        done = nsf(command, "--quiet")
        assert (done.code, done.stdout, done.stderr) == (0, "", "")
    assert nsf("--quiet", "--json", "metrics").json["samples"]
    assert_one_sentence(nsf("--quiet", "metrics", "--metrics", "nowhere"), "nowhere")


@pytest.mark.usefixtures("features")
def test_people_get_results_on_stdout(nsf: Callable[..., Done]) -> None:
    """A line or a table of each command, and nothing on stderr."""
    for command in (*STAGES, "metrics"):
        done = nsf(command)
        assert done.code == 0 and done.stderr == ""
        assert (f"-> artifacts/{command}.safetensors" if command in STAGES[:-1] else "worst group") in done.stdout


# ---------------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    "arguments",
    [[], ["nope"], ["identify", "--nope"], ["identify", "--out"], ["identify", "extra"], ["identify", "--", "--json"]],
)
def test_usage_errors_exit_with_2(arguments: list[str], nsf: Callable[..., Done]) -> None:
    done = nsf(*arguments)
    assert done.code == 2 and ("Usage: nsf" in done.stdout + done.stderr or "─ Error ─" in done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("features")
def test_an_unexpected_failure_is_one_line(nsf: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("stages.identify.run", fail)
    assert_one_sentence(nsf("identify"), "unexpected failure", "RuntimeError: out of memory", "--debug")


@pytest.mark.usefixtures("features")
def test_a_name_that_is_no_utf8_is_named(nsf: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        "images/caf\udce9.png".encode()

    monkeypatch.setattr("stages.identify.run", fail)
    assert_one_sentence(nsf("identify"), r"'images/caf\udce9.png' is no text in UTF-8; rename the file, or mend the text.")


def test_nothing_is_told_of_what_a_termination_tears_down(tmp_path: Path) -> None:
    """PyTorch's loader raises when it is deleted after its processes."""
    script = (
        "from nsfcli.app import _terminated\n"
        "class Loader:\n    def __del__(self): raise RuntimeError('worker is killed')\n"
        "loader = Loader()\n_terminated(15, None)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")


@pytest.mark.usefixtures("features")
def test_an_interruption_is_no_failure(nsf: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stages.identify.run", interrupt)
    done = nsf("identify")
    assert (done.code, done.stdout) == (130, "") and done.stderr.startswith("nsf: interrupted")


@pytest.mark.usefixtures("features")
@pytest.mark.parametrize(("late", "words"), [(False, "no artifact was written"), (True, "all outputs were written")])
def test_an_interruption_says_what_has_become_of_the_outputs(
    late: bool, words: str, nsf: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that comes while they are put in their places waits until all are there."""
    replace = Path.replace

    def interrupt(path: Path, target: Path) -> Path:
        signal.raise_signal(signal.SIGINT)
        return replace(path, target)

    monkeypatch.setattr(
        *(Path, "replace", interrupt) if late else ("os.fsync", lambda _: signal.raise_signal(signal.SIGINT))
    )
    # Where the tests themselves run in a shell's background, an interruption is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    done = nsf("identify")
    signal.signal(signal.SIGINT, before)
    assert (done.code, done.stderr) == (130, f"nsf: interrupted; {words}.\n")
    assert (tmp_path / "artifacts/identify.safetensors").exists() == late


def test_debug_shows_a_traceback(tmp_path: Path) -> None:
    wrong = ("nsf", "eliminate", "--steps", "abc")
    assert_one_sentence(run_process(*wrong, cwd=tmp_path), "option --steps")
    done = run_process(*wrong, "--debug", cwd=tmp_path)
    assert done.code == 1 and done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith("stages.errors.BadParameter: option --steps")


def test_a_narrow_window_cuts_no_number(
    nsf: Callable[..., Done], own_features: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    done = nsf("identify", "--features", own_features(), "--out", "identify.safetensors")
    headings, _, *rows = [line for line in done.stdout.splitlines() if line.strip()][1:]
    assert done.code == 0 and "…" not in done.stdout and len(rows) == 2 and len(headings) > 60


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_closed_pipe_is_no_failure(options: list[str], tmp_path: Path) -> None:
    """`nsf metrics | true`: whoever reads may stop reading."""
    report = {"worst_group_accuracy": None, "mean_accuracy": 1.0, "classes": {"0": 1.0}, "groups": {}}
    (tmp_path / "m.json").write_text(json.dumps({"base": None, "nsf": report, "samples": {"0": 3}}))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "nsfcli", *options, "metrics", "--metrics", "m.json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writer)
    # As a command that the closed pipe has killed.
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("arguments", ["--help", "identify --help", "--version"])
def test_a_closed_pipe_is_no_failure_of_a_page(arguments: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "nsfcli", *arguments.split()]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("options", ["", "--json"])
@pytest.mark.usefixtures("features")
def test_a_full_stdout_is_told_and_loses_nothing(options: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nsfcli", *options.split(), "identify"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
        pages = [
            subprocess.run(
                [sys.executable, "-m", "nsfcli", *words, "--help"], stdout=full, stderr=subprocess.PIPE, text=True
            )
            for words in ((), ("identify",))
        ]
    why = "No space left on device"
    told = f"nsf: stdout: the result cannot be shown ({why}), and the command itself is done.\n"
    assert (done.returncode, done.stderr) == (1, told) and (tmp_path / "artifacts/identify.safetensors").exists()
    for page in pages:
        assert (page.returncode, page.stderr) == (1, f"nsf: stdout: cannot be written ({why}).\n")


def test_debug_shows_where_a_system_s_error_came_from(tmp_path: Path) -> None:
    """It is no error of stdout."""
    code = """
import os, nsfcli.app, nsfcli.params
nsfcli.params.launch = lambda *given: os.stat("nowhere")
nsfcli.app.main()
"""
    command = [sys.executable, "-c", code, "--debug", "identify"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr and "FileNotFoundError" in done.stderr
    assert "stdout" not in done.stderr.splitlines()[-1]


@pytest.mark.usefixtures("features")
def test_a_closed_stdout_is_no_failure(tmp_path: Path) -> None:
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m nsfcli identify 1>&- 2>&-"], cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "artifacts/identify.safetensors").exists()
    assert subprocess.run(["sh", "-c", f"{sys.executable} -m nsfcli neutralize 2>&-"], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("arguments", ["eliminate --device", "metrics --params", "--json identify --params"])
def test_a_global_option_without_its_value(arguments: str, nsf: Callable[..., Done]) -> None:
    done = nsf(*arguments.split())
    assert done.code == 2 and f"Option '{arguments.split()[-1]}' requires an argument" in done.stderr


def test_the_version_as_json(nsf: Callable[..., Done]) -> None:
    assert nsf("--version", "--json").json == nsf("--json", "--version").json == {"version": __version__}


# ------------------------------------------------------------------------------------------- progress and interruption


class Terminal(io.StringIO):
    """What stderr is when a person sits before it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress_bars_only_on_a_terminal(stream: type, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsfcli.console.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", stream())
    with Console(quiet=quiet).progress() as progress:
        progress("eliminate", 1, 4)
        progress("eliminate", 4, 4)
    shown = sys.stderr.getvalue()
    assert ("4/4" in shown) == (stream is Terminal and not quiet)
    assert bool(shown) == (stream is Terminal and not quiet)


@pytest.mark.usefixtures("features")
def test_names_that_a_terminal_cannot_show(tmp_path: Path) -> None:
    path = tmp_path / "artifacts/features/val.safetensors"
    save_file(load_file(path), path, metadata={"schema_version": "1", "class_names": '["für", "zäh"]'})
    save_file({"weight": torch.eye(2, 8), "bias": torch.zeros(2)}, tmp_path / "artifacts/head.safetensors")
    done = run_process("nsf", "identify", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.code == 0 and "f\\xfcr" in done.stdout and "Traceback" not in done.stderr, done.stderr


@pytest.mark.usefixtures("features")
def test_no_control_characters_on_a_pipe(nsf: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsfcli.console.PATIENCE_SECONDS", 0.0)
    for command in STAGES:
        done = nsf(command)
        assert (done.code, done.stderr) == (0, "")
        assert not set("\x1b\r\b") & set(done.stdout)


@pytest.mark.usefixtures("features")
@pytest.mark.parametrize(
    ("sent", "code", "words", "existing"),
    [(signal.SIGINT, 130, "nsf: interrupted; no artifact was written.", None), (signal.SIGTERM, 143, "", b"yesterday's")],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_long_run_shows_its_progress_and_leaves_nothing_when_stopped(
    sent: signal.Signals, code: int, words: str, existing: bytes | None, nsf: Callable[..., Done], tmp_path: Path
) -> None:
    assert nsf("identify").code == nsf("neutralize").code == 0
    if existing is not None:
        (tmp_path / "artifacts/eliminate.safetensors").write_bytes(existing)
    before = contents(tmp_path)
    terminal, stderr = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "nsfcli", "eliminate", "--steps", "1000000"],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=stderr,
        # Where the tests themselves run in a shell's background, an interruption is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(stderr)
    shown, stopped, deadline = "", False, time.monotonic() + 180
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    shown += os.read(terminal, 4096).decode(errors="replace")
                except OSError:  # how Linux tells that the process has closed its end
                    break
            # Steps done, rate, remaining time.
            if not stopped and re.search(r"eliminate .*\d/1000000 .*\d\.\d/s .*\d:\d\d:\d\d", plain(shown)):
                process.send_signal(sent)
                stopped = True
        assert stopped, shown
        stdout, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        os.close(terminal)
    assert (process.returncode, stdout) == (code, b"")
    assert words in shown and "Traceback" not in shown
    assert "\x1b[?25h" in shown, "the cursor is visible again"
    assert contents(tmp_path) == before
