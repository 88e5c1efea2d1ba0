"""Packaging: everything that varies is read from settings.ini."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
settings = config["DEFAULT"]
lines = lambda key: settings.get(key, "").split("\n")[1:]
extras = {name: lines(f"{name}_requirements") for name in ("offline", "datasets", "excel", "heic", "export",
                                                           "compression", "adapters", "serve", "dev")}

setup(
    name=settings["pip_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=settings["keywords"],
    author=settings["author"],
    url=settings["git_url"],
    license="Apache-2.0",
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=[settings["lib_path"], settings["lib_path"] + ".*"]),
    package_data={settings["lib_path"]: ["weights/*", "*.css", "*.js", "*.html"]},
    install_requires=lines("requirements"),
    extras_require=extras,
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": [f"{settings['lib_path']}={settings['lib_path']}._modidx:d"],  # lets documentation link to our names
    },
    zip_safe=False,
)
