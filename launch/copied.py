"""Check that a process runs the complete copy of the code that was made for its run: `python -m launch.copied FOLDER`.

This module imports no other module of deeplense: it is used when other modules fail, perhaps because files are missing.
"""

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

PACKAGES = ("deeplense", "jobs", "launch")
RECORD, DIFF = "snapshot.json", "snapshot.diff"
WHERE = "DEEPLENSE_CODE"
"""Environment variable with the folder of the copy of the code that a job runs."""
REMEDY = "`deeplense resume --update_code RUN` resumes it with the current code"
EXIT_REFUSED, EXIT_AWAY = 2, 75


def files_in(folder: Path) -> Iterator[Path]:
    """Yield all files and links below a folder, sorted, without compiled ones."""
    for path in sorted(folder.rglob("*")):
        # NFS gives such a name to a file that is removed while a process has it open.
        if is_file(path) and "__pycache__" not in path.parts and not path.name.startswith(".nfs"):
            yield path


def is_file(path: Path) -> bool:
    """Whether the path is a file or a link."""
    return path.is_symlink() or path.is_file()


def hash_files(folder: Path) -> str:
    """Return the SHA-256 of names and contents of the code in a snapshot, without its record. A link's content is its
    target."""
    digest = hashlib.sha256()
    for path in files_in(folder):
        name = os.fsencode(path.relative_to(folder))
        if name not in (RECORD.encode(), DIFF.encode()):
            content = (
                b"link " + os.fsencode(os.readlink(path))
                if path.is_symlink()
                else xxhash.xxh3_128(path.read_bytes()).hexdigest().encode()
            )
            digest.update(b"%s\0%s\0" % (name, content))
    return digest.hexdigest()


def refuse_changed(code: Path) -> None:
    """Raise ValueError if a copy of the code has changed since it was made."""
    gone = [package for package in PACKAGES if not (code / package).is_dir()]
    lacks = f" ({gone[0]} is missing)" if gone and code.is_dir() else ""
    if gone:
        raise ValueError(f"the copy of the code of this run, {code}, is gone{lacks}; {REMEDY}.")
    if (code / RECORD).exists() and json.loads((code / RECORD).read_text()).get("hash") != hash_files(code):
        told = f"the copy of the code of this run, {code}, has changed: files were modified, added or removed"
        raise ValueError(f"{told}; {REMEDY}.")


def refuse_other_code(code: Path) -> None:
    """Raise ValueError if this process does not run the copy of the code that was made for its run. If the copy is gone
    or not mounted in the image, Python imports the installed code. Raises OSError if the copy may become available."""
    origins = {package: origin_of(package) for package in PACKAGES}
    others = {package: origin for package, origin in origins.items() if not origin.is_relative_to(code.resolve())}
    if others:
        os.stat(code.parent)
        refuse_changed(code)
        package, origin = others.popitem()
        raise OSError(f"{code} exists, but Python imports {package} from {origin}")


def origin_of(package: str) -> Path:
    """Return the file from which Python imports a package."""
    found = importlib.util.find_spec(package)
    return Path(found.origin or ".").resolve() if found else Path()


def main(words: Sequence[str]) -> int:
    """Report what is wrong with a copy of the code. The exit code says whether the problem may be temporary."""
    try:
        refuse_changed(Path(words[0]))
        refuse_other_code(Path(words[0]))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"deeplense: {error}\n")
        return EXIT_REFUSED if isinstance(error, ValueError) else EXIT_AWAY
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
