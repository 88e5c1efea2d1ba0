"""Each way in which an installation can go wrong ends with one sentence that says what to do."""
import shutil
import subprocess
import sys
import venv
import pytest
from conftest import load, root


@pytest.fixture
def install(tmp_path, monkeypatch):
    "install.py, for an environment that is not there yet"
    monkeypatch.setattr(sys, "argv", ["install.py", str(tmp_path/"venv")])
    module = load(root/"install.py")
    monkeypatch.setattr(module, "log", str(tmp_path/"install.log"))
    return module


def said(function):
    with pytest.raises(SystemExit) as stopped: function()
    assert "\n" not in stopped.value.code
    return stopped.value.code


def test_old_python(install, monkeypatch):
    monkeypatch.setattr(install.sys, "version_info", (3, 8, 18))
    assert "3.10 or newer is needed and this is 3.8" in said(install.main)


def test_too_little_disk(install, monkeypatch):
    monkeypatch.setattr(install, "free_gb", lambda path: 3.14)
    assert "9 GB of free disk are needed" in said(install.main)


@pytest.mark.parametrize("message, sentence", [
    ("connection broken by 'NewConnectionError(...)': /simple/torch/", "the network cannot be reached"),
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk filled up"),
    ("ERROR: metadata-generation-failed", "the reason is in the last lines of"),
], ids=["no network", "the disk fills", "anything else"])
@pytest.mark.skipif(sys.platform == "win32", reason="stands in for pip with a shell script")
def test_pip_fails(install, tmp_path, message, sentence):
    python = tmp_path/"venv"/"bin"/"python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "{message}"; exit 1\n')
    python.chmod(0o755)
    assert sentence in (ending := said(install.pip_install)) and install.log in ending
    assert message in (tmp_path/"install.log").read_text()


def test_another_folder_is_left_alone(install, tmp_path):
    (tmp_path/"venv").mkdir()
    (tmp_path/"venv"/"letters.txt").write_text("Dear")
    assert "other things in it" in said(install.make_venv)
    assert (tmp_path/"venv"/"letters.txt").read_text() == "Dear"


def test_an_environment_without_pip_keeps_what_it_holds(install, tmp_path):
    venv.create(tmp_path/"venv", with_pip=False)
    (tmp_path/"venv"/"letters.txt").write_text("Dear")
    install.make_venv()
    pip = [install.python_of(str(tmp_path/"venv")), "-m", "pip", "--version"]
    assert subprocess.run(pip, capture_output=True).returncode == 0
    assert (tmp_path/"venv"/"letters.txt").read_text() == "Dear"


def test_only_a_change_installs_again(install, tmp_path, monkeypatch):
    installed = []
    (tmp_path/"venv").mkdir()
    for step in ("check_disk", "make_venv", "compile_imported"): monkeypatch.setattr(install, step, lambda: None)
    monkeypatch.setattr(install, "pip_install", lambda: installed.append(1))
    install.main(); install.main()
    assert len(installed) == 1
    monkeypatch.setattr(install, "read", lambda name, read=install.read: read(name) + "\n# changed")
    install.main()
    assert len(installed) == 2


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_help_lists_every_target():
    made = subprocess.run(["make", "--no-print-directory"], cwd=root, capture_output=True, text=True, check=True)
    phony = next(line for line in (root/"Makefile").read_text().splitlines() if line.startswith(".PHONY:")).split()[2:]
    for target in phony: assert f"make {target} " in made.stdout


def test_what_is_imported_is_compiled_whatever_is_set(install, tmp_path, monkeypatch):
    (tmp_path/"letters.py").write_text("dear = 1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(install, "python_of", lambda venv: sys.executable)
    monkeypatch.setattr(install, "imported", "import letters")
    install.compile_imported()
    assert list((tmp_path/"__pycache__").glob("letters.*.pyc"))
