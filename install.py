"""Make a virtual environment and install this tree in it; `make` runs it. usage: install.py [VENV]

Needs only the standard library, and the syntax that every Python reads, so that even an old one can say what is wrong.
"""
from __future__ import print_function
import glob
import hashlib
import os
import re
import subprocess
import sys

root = os.path.dirname(os.path.abspath(__file__))
venv = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else os.path.join(root, ".venv"))
stamp = os.path.join(venv, "finetune_nb.installed")
log = os.path.join(root, "install.log")
needed_gb = 9  # the environment takes 6; pip unpacks beside it
imported = """if True: # what commands, lessons and tests import
    import ipykernel.kernelapp, matplotlib.pyplot, nbclient, onnxruntime, peft, sklearn.linear_model, starlette
    import finetune_nb
    from finetune_nb import text, vision
    for name in finetune_nb.__all__: getattr(finetune_nb, name)
    text.classifier("minilm", 2)
    vision.classifier("efficientnet-lite0", 2)"""
offline_signs = "|".join([
    "NewConnectionError", "NameResolutionError", "Temporary failure in name resolution",
    "Network is unreachable", "ConnectTimeout", "ProxyError"])


def stop(sentence): sys.exit("finetune_nb: " + sentence)


def read(name):
    with open(os.path.join(root, name)) as f: return f.read()


def check_python():
    least = re.search(r"^min_python *= *(\d+)\.(\d+)", read("settings.ini"), re.M).groups()
    if sys.version_info[:2] < tuple(map(int, least)):
        stop("Python %s or newer is needed and this is %d.%d: name another, as in `make PYTHON=python3.11 run`."
             % ((".".join(least),) + sys.version_info[:2]))


def free_gb(path):
    "Gigabytes free on the disk of `path`, which need not exist yet"
    import shutil
    while not os.path.exists(path): path = os.path.dirname(path)
    return shutil.disk_usage(path).free / 1e9


def check_disk():
    if glob.glob(os.path.join(venv, "[Ll]ib", "**", "site-packages", "torch"), recursive=True): return
    free = free_gb(venv)
    if free < needed_gb:
        stop("about %d GB of free disk are needed for PyTorch and its friends and %.1f are there: free some, or name "
             "a folder on another disk, as in `make VENV=/other/disk/venv run`." % (needed_gb, free))


def python_of(venv):
    return os.path.join(venv, "Scripts", "python.exe") if os.name == "nt" else os.path.join(venv, "bin", "python")


def works(*words):
    "Does the environment's Python run with these arguments?"
    python = python_of(venv)
    if not os.path.exists(python): return False
    return subprocess.call([python] + list(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def make_venv():
    "A virtual environment at `venv`; one that works is kept, and only a broken `.venv` of this tree is overwritten"
    ours = venv == os.path.join(root, ".venv")
    if works("-m", "pip", "--version"): return
    if works("-c", ""): # some tools make environments without pip
        if works("-m", "ensurepip"): return
        if not ours:
            stop("the environment %s has no pip: add it (`uv pip install pip` where uv made it) and type the same "
                 "again." % venv)
    elif not ours and os.path.isdir(venv) and os.listdir(venv):
        stop("%s is a folder with other things in it: name a virtual environment that works, or a folder to make "
             "one in." % venv)
    import venv as builder
    try: builder.create(venv, with_pip=True, clear=os.path.exists(venv))
    except OSError as e: stop("the environment %s cannot be made: %s." % (venv, e.strerror or e))
    except subprocess.CalledProcessError:
        if free_gb(venv) < .1:
            stop("the disk of %s is full: free about %d GB and type the same again." % (venv, needed_gb))
        stop("this Python cannot make a virtual environment with pip in it: install its venv package (on Debian and "
             "Ubuntu: `apt install python3-venv`) or name another, as in `make PYTHON=python3.11 run`.")


def pip_install():
    command = [python_of(venv), "-m", "pip", "install", "--progress-bar", "off", "--retries", "2",
               "--no-compile", "-e", ".[offline,dev]"] # what is imported is compiled below
    print("Installing into %s: 7 GB on Linux, a few minutes. All that pip says is in %s." % (venv, log), flush=True)
    with open(log, "w") as out:
        pip = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               universal_newlines=True)
        for line in pip.stdout:
            out.write(line)
            out.flush()
            if sys.stdout.isatty() and line.startswith(("Collecting", "Installing")):
                print("\r\033[K" + line.strip()[:79], end="", flush=True)
    if sys.stdout.isatty(): print("\r\033[K", end="", flush=True)
    if pip.wait() == 0: return
    said = open(log).read()
    if "No space left on device" in said:
        stop("the disk filled up: free about %d GB and type the same again (pip's log: %s)." % (needed_gb, log))
    if re.search(offline_signs, said):
        stop("the packages cannot be fetched, because the network cannot be reached: connect it and type the same "
             "again (pip's log: %s)." % log)
    stop("pip could not install the packages; the reason is in the last lines of %s." % log)


def compile_imported():
    "A few thousand files of 20,000; where PYTHONDONTWRITEBYTECODE is set, every command would compile them anew"
    writing = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.call([python_of(venv), "-c", imported], cwd=root, env=writing,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main():
    check_python()
    described = "".join(map(read, ("settings.ini", "setup.py", "pyproject.toml")))
    wanted = hashlib.sha256(described.encode() + root.encode()).hexdigest()
    if not os.path.exists(stamp) or open(stamp).read() != wanted:
        check_disk()
        make_venv()
        pip_install()
        compile_imported()
    with open(stamp, "w") as f: f.write(wanted)


if __name__ == "__main__":
    try: main()
    except KeyboardInterrupt: stop("interrupted; type the same again to go on.")
    except (IOError, OSError) as e: stop("%s." % e)
