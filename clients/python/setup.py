"""Generates the stubs of proto/t6/v1 into the wheel, and puts proto/ into the source distribution."""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).resolve().parent
# A source distribution carries proto/; the repository has it at its root.
PROTO = next(folder for folder in (HERE / "proto", HERE.parents[1] / "proto") if folder.is_dir())


class BuildWithStubs(build_py):
    def run(self):
        super().run()
        from grpc_tools import protoc  # only here: metadata is asked for without it

        out = pathlib.Path(self.build_lib)
        names = sorted(path.relative_to(PROTO).as_posix() for path in (PROTO / "t6/v1").glob("*.proto"))
        arguments = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"-I{PROTO}", *arguments, *names]) != 0:
            raise SystemExit("protoc failed")
        for marker in ("t6/__init__.py", "t6/v1/__init__.py", "t6/py.typed"):
            (out / marker).touch()
        shutil.copy(PROTO / "t6/v1/service_config.json", out / "t6client")


class SdistWithProto(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        shutil.copytree(PROTO / "t6", pathlib.Path(base_dir) / "proto/t6", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithStubs, "sdist": SdistWithProto})
