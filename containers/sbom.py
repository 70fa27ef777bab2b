"""Lists what an image holds, the packages of Python and of Debian, as CycloneDX JSON on stdout."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from urllib.parse import quote


def component(name: str, version: str, purl: str, license_name: str | None = None) -> dict[str, object]:
    """One package."""
    told = {"licenses": [{"license": {"name": license_name}}]} if license_name else {}
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, **told}


def of_python(found: Distribution) -> dict[str, object]:
    """A package of Python, with its licence where it says so in a line."""
    told = found.metadata.json
    licence = str(told.get("license_expression") or told.get("license") or "")
    name = found.metadata["Name"]
    purl = f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(found.version)}"
    return component(name, found.version, purl, licence if 0 < len(licence) < 100 and "\n" not in licence else None)


def of_debian() -> Iterator[dict[str, object]]:
    """The packages of Debian."""
    asked = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"]
    for line in subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines():
        name, version, architecture = line.split("\t")
        yield component(name, version, f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}")


def bill(now: datetime) -> dict[str, object]:
    """All of it."""
    packages = {str(each["purl"]): each for each in [*map(of_python, distributions()), *of_debian()]}
    of_ours = [each for each in packages.values() if each["name"] == "deeplense"]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {"timestamp": now.isoformat(), "component": {**of_ours[0], "type": "application"}},
        "components": [packages[purl] for purl in sorted(packages) if packages[purl] not in of_ours],
    }


if __name__ == "__main__":
    print(json.dumps(bill(datetime.now(UTC)), indent=1))
