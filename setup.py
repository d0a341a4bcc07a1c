"""Where the packages lie: mount/ and tools/ are installed below ckptfs."""

from setuptools import find_packages, setup

FOLDERS = {"ckptfs": "ckptfs", "ckptfs.mount": "mount", "ckptfs.tools": "tools"}

setup(
    package_dir=FOLDERS,
    packages=[
        name
        for top, folder in FOLDERS.items()
        for name in (top, *(f"{top}.{below}" for below in find_packages(folder)))
    ],
)
