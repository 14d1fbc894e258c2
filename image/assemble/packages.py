"""Fetches Debian packages of any architecture with their dependencies into a private apt root, and unpacks them."""
import os
import pathlib
import re
import subprocess
import time

RELEASE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCES = f"""\
deb [signed-by={KEYRING}] http://deb.debian.org/debian {RELEASE} main
deb [signed-by={KEYRING}] http://deb.debian.org/debian-security {RELEASE}-security main
"""
# Maximum age of the package lists.
LISTS_AGE_SECONDS = 7 * 86400


class Packages:
    """A private apt root for one architecture, independent of the host's packages."""

    def __init__(self, cache: pathlib.Path, architecture: str):
        self.root = cache / "apt" / architecture
        self.architecture = architecture
        self.archives = self.root / "archives"
        for directory in (self.root / "lists/partial", self.archives / "partial"):
            directory.mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        (self.root / "sources.list").write_text(SOURCES)
        (self.root / "apt.conf").write_text(f"""\
Dir::Etc::SourceList "{self.root}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "{self.root}";
Dir::State::Lists "{self.root}/lists";
Dir::State::status "{self.root}/status";
Dir::Cache "{self.root}";
Dir::Cache::archives "{self.archives}";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "0";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "1";
""")
        for stale in (self.root / "pkgcache.bin", self.root / "srcpkgcache.bin"):
            stale.unlink(missing_ok=True)

    def _apt(self, *arguments, check=True):
        environment = dict(os.environ, APT_CONFIG=str(self.root / "apt.conf"), LC_ALL="C", DEBIAN_FRONTEND="noninteractive")
        return subprocess.run(["apt-get", "-qq", "-y", *arguments], env=environment, check=check, capture_output=True, text=True)

    def update(self):
        """Fetches the package lists if they are missing or old. A failure is not an error here: packages that the present lists cannot
        resolve fail later, by name."""
        lists = [p for p in (self.root / "lists").glob("*_Packages*")]
        newest = max((p.stat().st_mtime for p in lists), default=0)
        stamp = self.root / "updated"
        age = (time.time() - stamp.stat().st_mtime) if stamp.exists() else LISTS_AGE_SECONDS + 1
        if not newest or age > LISTS_AGE_SECONDS:
            self._apt("update", check=False)
            stamp.touch()

    def fetch(self, names):
        """Downloads `names` and their dependencies; returns {package: (version, path of the .deb)}."""
        self.update()
        plan = self._apt("install", "-s", *names, check=False)
        if plan.returncode:
            (self.root / "updated").unlink(missing_ok=True)
            self.update()
            plan = self._apt("install", "-s", *names, check=False)
        if plan.returncode:
            raise SystemExit(f"packages for {self.architecture} cannot be resolved:\n{plan.stdout}{plan.stderr}")
        self._apt("install", "--download-only", *names)
        found = {}
        for line in plan.stdout.splitlines():
            match = re.match(r"Inst (\S+) \((\S+) .*\[(\S+)\]\)", line)
            if match:
                package, version, architecture = match.groups()
                package = package.split(":")[0]
                path = self.archives / f"{package}_{version.replace(':', '%3a')}_{architecture}.deb"
                if not path.exists():
                    raise SystemExit(f"{path.name} was not downloaded")
                found[package] = (version, path)
        return found


def unpack(deb: pathlib.Path, into: pathlib.Path):
    """Unpacks one package, following links of the existing directory skeleton; returns its paths."""
    into.mkdir(parents=True, exist_ok=True)
    archive = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
    tar = subprocess.run(
        ["tar", "-x", "-v", "-C", str(into), "--no-same-owner", "--keep-directory-symlink"],
        stdin=archive.stdout, check=False, capture_output=True, text=True)
    if tar.returncode or archive.wait():
        raise SystemExit(f"{deb.name} cannot be unpacked: {tar.stderr}")
    paths = [line.removeprefix("./") for line in tar.stdout.splitlines()]
    # Some packages have files below the pre-usrmerge directories.
    return [re.sub(r"^(bin|sbin|lib|lib64)/", r"usr/\1/", path) for path in paths]
