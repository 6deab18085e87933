"""The command as a user meets it: real runs, exit codes, what is said and where."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.cli._verbs import FOLDER, VERBS, load, present

ROOT = Path(__file__).parents[2]

VERBS_FOR_TESTS = """
import sys, time
import typer
from infra.cli import app, main
from streams.errors import BrokerError, CheckpointFailed

@app.command()
def broker():
    raise BrokerError("no broker at host:1", remedy="start one")

@app.command()
def checkpoint():
    raise CheckpointFailed("the commit timed out")

@app.command()
def bug():
    raise KeyError("lost")

@app.command()
def package():
    import a_package_that_nobody_has

@app.command()
def settings(ctx: typer.Context):
    typer.echo(f"{ctx.obj.settings.home} {ctx.obj.settings.log_level} {ctx.obj.settings.dataset}")
    from streams.log import get_logger
    get_logger("here").warning("to be seen")

@app.command()
def wait():
    print("waiting", flush=True)
    try:
        time.sleep(600)
    finally:
        print("cleaned up", flush=True)

@app.command()
def lines():
    for n in range(100_000):
        print("line", n)

@app.command()
def socket():
    raise BrokenPipeError(32, "a socket's other end is gone")

main()
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1", "TMPDIR": str(tmp_path)}


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "driftline_for_tests.py"
    path.write_text(VERBS_FOR_TESTS)
    return str(path)


@pytest.fixture
def driftline(tmp_path: Path, environ: dict[str, str]):
    def run(*arguments: str, script: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *((script,) if script else ("-m", "infra")), *arguments]
        return subprocess.run(
            command, env={**environ, **variables}, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_verb_with_a_line(driftline, flag: str) -> None:
    done = driftline(flag)
    assert done.returncode == 0
    words = " ".join(done.stdout.split())  # a long line of help is wrapped
    for verb in present():
        assert f"{verb} {VERBS[verb]}" in words
    assert done.stderr == ""


def test_help_waits_for_no_heavy_package(tmp_path: Path, environ: dict[str, str]) -> None:
    look = (
        "import sys\nfrom infra.cli import main\nsys.argv = ['driftline', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'faust', 'kafka', 'polars', 'pydantic', 'sentence_transformers', 'httpx', 'numpy'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", look], env=environ, capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout


@pytest.mark.parametrize("verb", present())
def test_every_verb_explains_itself(driftline, verb: str) -> None:
    done = driftline(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"driftline {verb}" in done.stdout


def test_every_verb_file_is_in_the_list_of_verbs() -> None:
    files = {file.stem for file in FOLDER.glob("*.py") if not file.stem.startswith("_")}
    assert files <= set(VERBS)
    for verb in present():
        assert load(verb).name == verb


def test_version(driftline) -> None:
    done = driftline("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"driftline \d+\.\d+\.\d+\S*\n", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--no-such-flag",), "--no-such-flag"),
        (("frobnicate",), "frobnicate"),
        (("doctro",), "Did you mean 'doctor'"),
        (("--log-level", "loud", "doctor"), "loud"),
        (("doctor", "--no-such-flag"), "--no-such-flag"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what(driftline, arguments, said: str) -> None:
    done = driftline(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_no_arguments_show_the_help(driftline) -> None:
    done = driftline()
    assert "doctor" in done.stdout + done.stderr
    assert done.returncode == 2


def test_bad_settings_end_with_2(driftline, script: str, tmp_path: Path) -> None:
    misspelt = driftline("settings", script=script, DRIFTLINE_HOEM="x")
    assert misspelt.returncode == 2
    assert misspelt.stderr.startswith("error: environment variable DRIFTLINE_HOEM is no setting\nremedy: ")
    missing = driftline("--config", "gone.toml", "settings", script=script)
    assert missing.returncode == 2
    assert "gone.toml does not exist" in missing.stderr
    (tmp_path / "driftline.toml").write_text("[kafka]\npartitions = 0\n")
    wrong = driftline("settings", script=script)
    assert wrong.returncode == 2
    assert "kafka.partitions" in wrong.stderr
    assert "Traceback" not in wrong.stderr + missing.stderr + misspelt.stderr


def test_global_options_win_over_environment_and_file(driftline, script: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('home = "of-file"\ndataset = "of-file"\nlog_level = "error"\n')
    given = ("--config", "mine.toml", "--home", "of-flag", "--log-level", "debug")
    done = driftline(*given, "settings", script=script, DRIFTLINE_HOME="of-environment")
    assert done.stdout == "of-flag debug of-file\n", done.stderr
    done = driftline("--config", "mine.toml", "settings", script=script, DRIFTLINE_HOME="of-environment")
    assert done.stdout == "of-environment error of-file\n", done.stderr


def test_logs_never_mix_with_what_is_printed(driftline, script: str) -> None:
    done = driftline("settings", script=script)
    assert "to be seen" in done.stderr
    assert "to be seen" not in done.stdout


def test_an_error_ends_with_1_its_message_and_its_remedy(driftline, script: str) -> None:
    done = driftline("broker", script=script)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no broker at host:1\nremedy: start one\n"


def test_an_unknown_checkpoint_ends_with_the_code_that_its_supervisor_knows(driftline, script: str) -> None:
    done = driftline("checkpoint", script=script)
    assert (done.returncode, done.stderr) == (70, "error: the commit timed out\n")


def test_an_unexpected_error_is_one_line_and_a_file_with_the_rest(driftline, script: str) -> None:
    done = driftline("bug", script=script)
    assert done.returncode == 1
    assert done.stderr.startswith("error: unexpected KeyError: 'lost'\nremedy: ")
    assert "Traceback" not in done.stderr
    trace = re.search(r"is in (\S+\.trace);", done.stderr)
    assert trace
    assert 'KeyError("lost")' in Path(trace[1]).read_text()
    loud = driftline("--log-level", "debug", "bug", script=script)
    assert loud.returncode == 1
    assert "Traceback" in loud.stderr
    assert 'KeyError("lost")' in loud.stderr


@pytest.mark.parametrize("verb", [["data", "prepare", "ml-100k"], ["demo"], ["train"]])
def test_a_folder_that_cannot_be_written_is_named_with_a_remedy(driftline, tmp_path: Path, verb: list[str]) -> None:
    (tmp_path / "file").touch()
    done = driftline("--home", str(tmp_path / "file"), *verb)
    assert done.returncode == 1
    assert f"{tmp_path}/file" in done.stderr
    assert "Not a directory" in done.stderr
    assert "--home" in done.stderr
    assert "unexpected" not in done.stderr


def test_a_missing_extra_is_named(driftline, script: str) -> None:
    done = driftline("package", script=script)
    assert done.returncode == 1
    assert "needs the Python package a_package_that_nobody_has" in done.stderr
    assert "extras" in done.stderr


def test_ctrl_c_is_silent_after_the_clean_up(script: str, environ: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, script, "wait"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "cleaned up\n", "")


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_a_reader_who_has_enough_is_no_error(script: str, environ: dict[str, str], unbuffered: str) -> None:
    environ["PYTHONUNBUFFERED"] = unbuffered
    process = subprocess.Popen(
        [sys.executable, script, "lines"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(30) == 0


def test_another_broken_pipe_is_an_error(driftline, script: str) -> None:
    done = driftline("socket", script=script)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr
