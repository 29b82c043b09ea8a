"""What is installed is what is in the repository: wheel, source distribution, metadata and extras."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PARTS = ("llmrec_plugin", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


@pytest.fixture(scope="module")
def tracked():
    """The files of the repository that are in the package, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PARTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git repository")
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def sources(tracked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def build(kind, sources, target):
    """A distribution built by setuptools as it is installed here, without downloading a build environment."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 reads licence expressions")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(target)], cwd=sources, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Deprecat" not in done.stderr, done.stderr
    return target / done.stdout.splitlines()[-1]


def contents(wheel):
    """Name -> checksum of each file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {item.filename: item.CRC for item in archive.infolist() if not item.is_dir()}


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    return build("build_wheel", sources, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_has_every_file_of_the_package(wheel, tracked):
    packed = {name for name in contents(wheel) if ".dist-info/" not in name}
    expected = {name for name in tracked if name.startswith("llmrec_plugin/")}
    assert expected - packed == set(), "add them to [tool.setuptools.package-data] in pyproject.toml"
    assert packed - expected == set()
    assert "llmrec_plugin/py.typed" in packed


def test_the_wheel_names_its_licence_and_entry_points(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = next(name for name in archive.namelist() if name.endswith("METADATA")).removesuffix("METADATA")
        metadata = archive.read(f"{folder}METADATA").decode()
        entry_points = archive.read(f"{folder}entry_points.txt").decode()
        assert {f"{folder}licenses/LICENSE", f"{folder}licenses/NOTICE"} <= set(archive.namelist())
    assert "License-Expression: Apache-2.0" in metadata
    assert "[llmrec_plugin]" in entry_points
    assert "llmrec = llmrec_plugin.cli:main" in entry_points


def test_the_source_distribution_builds_the_same_wheel(sources, wheel, tmp_path):
    archive = build("build_sdist", sources, tmp_path)
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # since 3.11.4
    again = build("build_wheel", tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path)
    records = {name for name in contents(wheel) if name.endswith("/RECORD")}
    assert {name: crc for name, crc in contents(again).items() if name not in records} == {
        name: crc for name, crc in contents(wheel).items() if name not in records
    }


def test_the_version_is_the_same_everywhere():
    import llmrec_plugin

    assert llmrec_plugin.__version__ == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_requirement_has_a_least_version():
    extras = PROJECT["optional-dependencies"]
    lines = [line for lines in [PROJECT["dependencies"], *extras.values()] for line in lines]
    assert [line for line in lines if ">=" not in line and not line.startswith("llmrec-plugin[")] == []


def test_every_library_that_is_missing_is_reported_with_an_extra_that_has_it():
    """Every `MissingExtraError` of the sources names an extra of pyproject.toml, and the extra requires the package."""
    extras = PROJECT["optional-dependencies"]
    named = []
    for path in (ROOT / "llmrec_plugin").rglob("*.py"):
        named += re.findall(r'(?:MissingExtraError|need)\(\s*"([\w.-]+)", "(\w+)"', path.read_text(encoding="utf-8"))
    assert len(named) > 5
    modules = importlib.metadata.packages_distributions()
    for module, extra in named:
        top = module.partition(".")[0]
        packages = {name.lower() for name in modules.get(top, [top])} | {top}
        required = {re.match(r"[\w-]+", line)[0] for line in extras[extra]}
        assert packages & required, f"extra {extra!r} does not require {module!r}"


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed():
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"]]
    least = {match[1].lower(): match[2] for match in re.finditer(r"([\w-]+)>=([\d.]+)", " ".join(lines))}
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-min.txt").read_text().lower(), re.MULTILINE))
    assert {name for name in least if not f"{pinned.get(name)}.0.0".startswith(f"{least[name]}.")} == set()


def test_the_pinned_versions_install_on_the_first_python_that_is_promised():
    """Some projects drop releases such as Debian's 3.11.2, and pip then finds nothing that fits the pins."""
    specifiers = pytest.importorskip("packaging.specifiers", reason="packaging is not installed")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    wanted = {}
    for name in pins:
        try:
            wanted[name] = importlib.metadata.metadata(name).get("Requires-Python")
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed
    assert len(wanted) > 50
    assert {
        name: pythons for name, pythons in wanted.items() if "3.11.2" not in specifiers.SpecifierSet(pythons or "")
    } == {}
