from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from counterscan import __version__
from counterscan.cli import main as cli
from counterscan.errors import InputError


def test_help_is_fast_and_light() -> None:
    code = (
        "import sys; from counterscan.cli.main import main; code = main(['--help'])\n"
        "heavy = {'torch', 'pandas', 'numpy', 'pydicom', 'matplotlib', 'tyro', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy; sys.exit(code)"
    )
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr
    assert min(times) < 0.5
    for verb in cli.VERBS:
        assert f"  {verb}" in done.stdout
    assert "Not a medical device" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["-h"], ["help"]])
def test_help_without_asking_much(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    assert "usage: counterscan" in capsys.readouterr().out


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "counterscan", "--version"], capture_output=True, text=True, check=True
    )
    assert __version__ in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"counterscan {__version__}\n"


def test_an_unknown_verb_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dta"]) == 2
    assert capsys.readouterr().err == "counterscan: error: counterscan has no command 'dta'. Did you mean 'data'?\n"
    assert cli.main(["xyz"]) == 2
    assert "There are: data" in capsys.readouterr().err


@dataclass
class Greet:
    """Say hello."""

    name: str
    """Whom."""
    times: int = 1
    """How often."""

    def run(self) -> int | None:
        if self.name == "nobody":
            raise InputError("there is\nnobody", field="name", remedy="Give a name")
        if self.name == "stop":
            raise KeyboardInterrupt
        print(" ".join([self.name] * self.times))
        return 3 if self.times > 2 else None


@pytest.fixture
def greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {"greet": Greet, "group": cli.Lazy("Further commands.", lambda: {"greet": Greet})}
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: SimpleNamespace(COMMANDS=commands))
    monkeypatch.setattr(cli, "VERBS", {"hello": ("nowhere", "greets")})


@pytest.mark.usefixtures("greeting")
class TestRun:
    def test_commands_and_groups(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["hello", "greet", "--name", "you", "--times", "2"]) == 0
        assert cli.main(["hello", "group", "greet", "--name", "you", "--times", "3"]) == 3
        assert capsys.readouterr().out == "you you\nyou you you\n"

    def test_help_lists_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["hello"]) == 0
        out = capsys.readouterr().out
        assert "greet  Say hello." in out
        assert "group  Further commands." in out

    def test_a_command_explains_itself(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as left:
            cli.main(["hello", "greet", "--help"])
        assert left.value.code == 0
        assert "How often" in capsys.readouterr().out

    def test_wrong_options_exit_with_2(self) -> None:
        with pytest.raises(SystemExit) as left:
            cli.main(["hello", "greet", "--nam", "you"])
        assert left.value.code == 2

    def test_errors_are_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["hello", "greet", "--name", "nobody"]) == 2
        assert capsys.readouterr().err == "counterscan: error: name: there is nobody. Give a name\n"

    def test_interruption(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["hello", "greet", "--name", "stop"]) == 130
        assert capsys.readouterr().err == "counterscan: interrupted\n"
