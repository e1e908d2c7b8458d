"""Which of pyproject.toml's dependencies this release of Debian has, and what is taken where it has none.

``look`` asks apt and writes ``debian/dependencies.json``; of what is missing or too old, the wheel that
``requirements/study.txt`` locks is put into ``debian/wheels``, its hash checked, and so on for what that wheel needs.
``unpack DIRECTORY`` and ``substvars`` belong to the build, which needs neither apt nor a network for them.
"""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "debian/wheels"
FOUND = ROOT / "debian/dependencies.json"
LOCK = ROOT / "requirements/study.txt"


def look() -> None:
    """Write down what chainlift, its studies and what is bundled depend on."""
    # Of the machine that makes the source package, not of the one that builds it.
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    WHEELS.mkdir(exist_ok=True)
    python = [f"python3 (>= {project['requires-python'].removeprefix('>=')})"]
    depends: dict[str, list[str]] = {"chainlift": python, "chainlift-study": programs(), "chainlift-bundled": []}
    bundled: dict[str, str] = {}
    is_public = True
    todo = [("chainlift", Requirement(text)) for text in project["dependencies"]]
    todo += [("chainlift-study", Requirement(text)) for text in project["optional-dependencies"]["report"]]
    while todo:
        whose, requirement = todo.pop(0)
        name = normalised(requirement.name)
        if name in bundled or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        package = f"python3-{name}"
        epoch, version = candidate(package)
        if version and requirement.specifier.contains(version):
            bound = next((one.version for one in requirement.specifier if one.operator == ">="), None)
            depends[whose].append(f"{package} (>= {epoch}{bound})" if bound else package)
            continue
        is_public &= version is None
        wheel = fetch(name)
        bundled[name] = wheel.name
        # PEP 425: "cp311-cp311" works with that Python alone.
        if only := re.search(r"-cp3(\d+)-cp3\1-", wheel.name):
            depends["chainlift-bundled"] += [f"python3 (>= 3.{only[1]})", f"python3 (<< 3.{int(only[1]) + 1})"]
        print(f"{package}: {version or 'not there'}, {requirement} is wanted: {wheel.name}")
        metadata = next(file for file in zipfile.Path(wheel).iterdir() if file.name.endswith(".dist-info")) / "METADATA"
        for text in HeaderParser().parsestr(metadata.read_text(encoding="utf-8")).get_all("Requires-Dist", []):
            todo.append(("chainlift-bundled", Requirement(text)))
    if bundled:
        depends["chainlift"].append("chainlift-bundled (>= ${source:Version})")
    found = {"depends": depends, "bundled": sorted(bundled.values()), "is_public": is_public}
    FOUND.write_text(json.dumps(found, indent=1) + "\n")


def normalised(name: str) -> str:
    """Return a project's name as PEP 503 has it: Debian's names are these, too, for all that is wanted here."""
    return re.sub(r"[-_.]+", "-", name).lower()


def candidate(package: str) -> tuple[str, str | None]:
    """Return the epoch (``1:``) and the version, its authors', that apt would install; None if there is none."""
    return upstream(subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True, check=True).stdout)


def upstream(policy: str) -> tuple[str, str | None]:
    """Return what ``apt-cache policy`` says: ``8.2.0+0.really.8.1.8-1`` is 8.1.8."""
    match = re.search(r"Candidate: (\d+:)?(\S*really\.?)?([\d.]+)", policy)
    return (match[1] or "", match[3].rstrip(".")) if match else ("", None)


def programs() -> list[str]:
    """Return the packages that a study needs beside Python's."""
    command = '. script/common; printf "%s\\n" "${study_packages[@]}"'
    names = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [name for name in names if not name.startswith("python3")]


def locked(lock: str, name: str) -> list[str]:
    """Return what a lock says of a project: its version, for which Python, the hashes of its files."""
    blocks = re.findall(r"^\S.*(?:\n .*)*", lock, re.MULTILINE)
    return [block for block in blocks if normalised(re.split(r"[=\s]", block)[0]) == name]


def fetch(name: str) -> Path:
    """Put the locked wheel of a project into debian/wheels."""
    blocks = locked(LOCK.read_text(), name)
    if not blocks:
        sys.exit(f"chainlift: {LOCK.name} has no {name}; run script/lock")
    before = set(WHEELS.iterdir())
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    wanted = WHEELS / "wanted.txt"
    wanted.write_text("\n".join(blocks) + "\n")
    subprocess.run(
        [*pip, "--require-hashes", "--only-binary", ":all:", "--dest", WHEELS, "--requirement", wanted], check=True
    )
    wanted.unlink()
    (wheel,) = set(WHEELS.iterdir()) - before
    return wheel


def unpack(directory: Path) -> None:
    """Unpack the wheels below the package of what is bundled."""
    found = json.loads(FOUND.read_text())
    for name in found["bundled"]:
        with zipfile.ZipFile(WHEELS / name) as wheel:
            wheel.extractall(directory)
    for file in [*directory.glob("*.dist-info/licenses/*"), *directory.glob("*.dist-info/[LC][IO][CP]*")]:
        (of,) = [part for part in file.parts if part.endswith(".dist-info")]
        licence = directory.parents[1] / "share/doc/chainlift-bundled" / of.removesuffix(".dist-info") / file.name
        licence.parent.mkdir(parents=True, exist_ok=True)
        file.rename(licence)
        if file.parent.name == "licenses" and not any(file.parent.iterdir()):
            file.parent.rmdir()
    if found["bundled"] and found["is_public"]:
        # Debian knows no module of these names: every Python may find them, after all that Debian has.
        public = directory.parent / "python3/dist-packages/chainlift-bundled.pth"
        public.parent.mkdir(parents=True)
        public.write_text("/usr/lib/chainlift-bundled\n")


def substvars() -> None:
    """Tell dpkg-gencontrol."""
    for package, depends in json.loads(FOUND.read_text())["depends"].items():
        with (ROOT / f"debian/{package}.substvars").open("a") as file:
            file.write(f"{package}:Depends={', '.join(depends)}\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["look"]:
            look()
        case ["unpack", where]:
            unpack(Path(where))
        case ["substvars"]:
            substvars()
        case _:
            sys.exit(f"usage: {sys.argv[0]} look | unpack DIRECTORY | substvars")
