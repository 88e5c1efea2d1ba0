"""What a reader installs: small to import, lazy, and with nothing of nbdev's."""
import ast, re, statistics, subprocess, sys, time, zipfile
from configparser import ConfigParser
from email.parser import Parser
import pytest
import finetune_nb
from conftest import root

tools = {"nbdev", "execnb", "fastcore", "ghapi", "fastgit", "jupyterlab", "nbclient", "nbconvert", "nbformat", "pytest", "ipykernel"}


def seconds(code, env):
    "The median time of five new interpreters that run `code`"
    def once():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=root, env=env, check=True)
        return time.perf_counter() - start
    return statistics.median(once() for _ in range(5))


def test_import_is_fast(quiet):
    import_seconds = seconds("import finetune_nb", quiet) - seconds("pass", quiet)
    assert import_seconds < 0.3, f"import finetune_nb takes {import_seconds:.2f} s"


def test_import_loads_no_torch(quiet):
    code = "import sys, finetune_nb; dir(finetune_nb); sys.exit(' '.join({'torch', 'transformers', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)) or 0)"
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


def test_modules_import_no_tool():
    for path in (root/"finetune_nb").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = {name.split(".")[0] for name in names} & tools
            assert not found, f"{path.name}, line {node.lineno}, imports {found}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel that this tree builds, without the network"
    from conftest import tree_files
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tree_files():
        (source/path).parent.mkdir(parents=True, exist_ok=True)
        (source/path).write_bytes((root/path).read_bytes())
    ran = subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(built), str(source)],
                         capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return zipfile.ZipFile(next(built.glob("*.whl")))


def read(wheel, ending): return wheel.read(next(name for name in wheel.namelist() if name.endswith(ending))).decode()


def test_wheel_requires_nothing_of_nbdev(wheel):
    about = Parser().parsestr(read(wheel, "METADATA"))
    required = {re.match(r"[\w.-]+", line)[0].lower() for line in about.get_all("Requires-Dist") if "extra ==" not in line}
    assert about["Name"] == "finetune-nb" and about["Requires-Python"] == ">=3.10"
    assert {"torch", "torchvision", "transformers", "typer"} <= required
    assert not required & tools
    assert set(about.get_all("Provides-Extra")) == {"offline", "dev"}


def test_wheel_holds_the_module_and_the_command(wheel):
    in_wheel = {name for name in wheel.namelist() if name.startswith("finetune_nb/")}
    on_disk = {p.relative_to(root).as_posix() for p in (root/"finetune_nb").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert in_wheel == on_disk
    assert not [name for name in wheel.namelist() if name.startswith(("tests/", "nbs/"))]
    assert "finetune-nb = finetune_nb.cli:main" in read(wheel, "entry_points.txt")
    assert any(name.endswith("LICENSE") for name in wheel.namelist())
