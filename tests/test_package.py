"""What a reader installs: small to import, lazy, and with nothing of nbdev's."""
import ast
import hashlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path
import pytest
import finetune_nb
from conftest import copy_tree, root

tools = {
    "nbdev", "execnb", "fastcore", "ghapi", "fastgit", "jupyterlab", "nbclient", "nbconvert", "nbformat", "pytest",
    "ipykernel"}


def seconds(code, env):
    "The least time of five new interpreters that run `code`: what else keeps the machine busy only adds to it"
    def once():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=root, env=env, check=True)
        return time.perf_counter() - start
    return min(once() for _ in range(5))


def test_import_is_fast(quiet):
    import_seconds = seconds("import finetune_nb", quiet) - seconds("pass", quiet)
    assert import_seconds < 0.3, f"import finetune_nb takes {import_seconds:.2f} s"


def test_import_loads_no_torch(quiet):
    heavy = {"torch", "transformers", "pandas", "sklearn", "matplotlib"}
    code = f"import sys, finetune_nb; dir(finetune_nb); sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, env=quiet, capture_output=True, text=True)
    assert ran.returncode == 0, f"import finetune_nb loads {ran.stderr}"


@pytest.mark.parametrize("name", finetune_nb.__all__)
def test_every_name_is_there(name):
    assert name in dir(finetune_nb)
    assert getattr(finetune_nb, name) is not None


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match="no attribute 'thaw'; it has: .*unfreeze"): finetune_nb.thaw


def test_version_is_the_one_in_settings():
    settings = ConfigParser(delimiters=["="])
    settings.read(root/"settings.ini", encoding="utf-8")
    assert finetune_nb.__version__ == settings["DEFAULT"]["version"]


def imported(node):
    "The modules that a line of code imports"
    if isinstance(node, ast.Import): return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_modules_import_no_tool():
    for path in (root/"finetune_nb").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = {name.split(".")[0] for name in imported(node)} & tools
            assert not found, f"{path.name}, line {node.lineno}, imports {found}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel that this tree builds, without the network"
    source, built = copy_tree(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel")
    room = source/"finetune_nb"/"engine" # where a package of its own must be found
    assert (room/"__init__.py").exists()
    (room/"trial.py").write_text('"""A room that only this wheel has."""')
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", str(built)]
    ran = subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)],
                         capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return zipfile.ZipFile(next(built.glob("*.whl")))


def read(wheel, ending): return wheel.read(next(name for name in wheel.namelist() if name.endswith(ending))).decode()


def test_wheel_requires_nothing_of_nbdev(wheel):
    about = Parser().parsestr(read(wheel, "METADATA"))
    lines = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    required = {re.match(r"[\w.-]+", line)[0].lower() for line in lines}
    assert about["Name"] == "finetune-nb" and about["Requires-Python"] == ">=3.10"
    assert {"torch", "torchvision", "transformers", "typer"} <= required
    assert not required & tools
    extras = {"offline", "datasets", "excel", "heic", "export", "compression", "adapters", "serve", "dev"}
    assert set(about.get_all("Provides-Extra")) == extras


def test_wheel_holds_the_module_and_the_command(wheel):
    in_wheel = {name for name in wheel.namelist() if name.startswith("finetune_nb/")}
    on_disk = [path for path in (root/"finetune_nb").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert in_wheel == {path.relative_to(root).as_posix() for path in on_disk} | {"finetune_nb/engine/trial.py"}
    assert not [name for name in wheel.namelist() if name.startswith(("tests/", "nbs/"))]
    assert "finetune-nb = finetune_nb.cli:main" in read(wheel, "entry_points.txt")
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_wheel_holds_what_the_explorer_draws_with(wheel):
    assert {"finetune_nb/explorer.css", "finetune_nb/twin.js", "finetune_nb/try_it.html"} <= set(wheel.namelist())


def test_wheel_holds_the_weights(wheel):
    weights = {name.rsplit("/", 1)[1] for name in wheel.namelist() if name.startswith("finetune_nb/weights/")}
    assert {"resnet18-fractal.json", "resnet18-fractal.safetensors"} <= weights
    about = json.loads(read(wheel, "weights/resnet18-fractal.json"))
    assert hashlib.sha256(wheel.read("finetune_nb/weights/resnet18-fractal.safetensors")).hexdigest() == about["sha256"]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "A fresh environment with the wheel, which sees this one's libraries, but not this tree nor its editable install"
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    bin = folder/("Scripts" if sys.platform == "win32" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(bin/"python")]
    ran = subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel.filename],
                         capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (site,) = (path.parent for path in folder.rglob("finetune_nb/") if path.parent.name == "site-packages")
    # Its own .pth files are not read, so an editable install is out of sight.
    (site/"libraries.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    yield bin
    shutil.rmtree(folder, ignore_errors=True)


def test_the_installed_wheel_fine_tunes_without_network(installed, quiet, tmp_path):
    env = {name: value for name, value in quiet.items() if name != "PYTHONPATH"}
    code = "import finetune_nb; print(finetune_nb.__file__)"
    where = subprocess.run([installed/"python", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert where.stdout.startswith(str(installed.parent)), where.stdout + where.stderr
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("this system cannot take the network away from a process (unshare -rn)")
    command = [installed/"finetune-nb", "image", "--labels-per-class", "5", "--freeze-depth", "4",
               "--image-size", "32", "--epochs", "2", "--json"]
    ran = subprocess.run(["unshare", "-rn", *command], cwd=tmp_path, env=env,
                         capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert (result["task"], result["backbone"]) == ("digits", "resnet18-fractal")
    assert result["train_loss"][1] < result["train_loss"][0]


def test_the_wheel_without_its_extra_says_what_to_install(installed, quiet, tmp_path):
    "The same libraries, but for the one that brings the photographs' backbone"
    listed, some = next(installed.parent.rglob("libraries.pth")), tmp_path/"some"
    whole = listed.read_text()
    for number, folder in enumerate(whole.splitlines()):
        (some/str(number)).mkdir(parents=True)
        for path in Path(folder).iterdir():
            if not path.name.startswith("efficientnet_lite0"): (some/str(number)/path.name).symlink_to(path)
    env = {name: value for name, value in quiet.items() if name != "PYTHONPATH"}
    command = [installed/"finetune-nb", "image", "--backbone", "efficientnet-lite0", "--labels-per-class", "5"]
    listed.write_text("\n".join(map(str, some.iterdir())))
    try: ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    finally: listed.write_text(whole)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert ran.stderr.splitlines()[-1].endswith("is not installed: pip install 'finetune-nb[offline]'."), ran.stderr
