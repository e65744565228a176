# SPDX-License-Identifier: Apache-2.0
"""A real Linux guest under QEMU, made from Debian's packages alone: no disk image, no root.

How it works. `build_image` packs an initramfs (cpio "newc", gzip; written here, no tool is called) out of a
static busybox, the virtio modules of a Debian kernel and the init script below. `Machine` starts QEMU on it
with two serial ports: the first carries the kernel's console into a log, the second is a command channel. One
line goes in per command (`ID SECONDS BASE64`), one frame comes out (`ID STATUS LENGTH`, newline, LENGTH bytes
of output). A guest that nobody commands has its script in `run=BASE64` on the kernel's command line; what it prints
goes to the console.

Who uses it: `pvswitch.demo` and the system tests. It knows nothing of the switch; the lines that attach a NIC
are given by the caller, as `pvswitch port qemu-args` prints them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import lzma
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from pvswitch.errors import PvswitchError

INSTALL_HINT = "run scripts/install-system-packages as root, or apt-get install"
SYSTEM_ROOT = Path("/")
DEFAULT_MODULES = ("virtio_pci", "virtio_net")
# IPv6 is off on every interface that was given no such address, for silence on the wire: neither router
# solicitations nor address detection between the frames.
KERNEL_WORDS = ("console=ttyS0", "panic=-1", "quiet", "ipv6.disable_ipv6=1")
# What a guest may take to answer after its own limit for a command has passed, before it counts as dead.
ANSWER_GRACE = 15.0

INIT = """\
#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done < /modules/order
ip link set lo up
for word in $(cat /proc/cmdline); do
    case $word in
    nic=*)
        IFS=, read -r name address mtu address6 <<END
${word#nic=}
END
        [ -z "$mtu" ] || ip link set "$name" mtu "$mtu"
        [ -z "$address" ] || ip address add "$address" dev "$name"
        if [ -n "$address6" ]; then
            for setting in disable_ipv6 accept_dad router_solicitations; do
                echo 0 > "/proc/sys/net/ipv6/conf/$name/$setting"
            done
            ip address add "$address6" dev "$name"
        fi
        ip link set "$name" up
        ;;
    run=*) echo "${word#run=}" | base64 -d > /tmp/run ;;
    esac
done
[ ! -f /tmp/run ] || sh /tmp/run > /dev/console 2>&1
# In a process of its own: pid 1 inherits orphans, and SIGCHLD makes a waiting `read` drop what it has of a line.
(
    stty raw -echo
    echo "0 0 0"
    while read -r id seconds command; do
        rm -f /tmp/.output
        timeout -k 1 "$seconds" sh -c "$(echo "$command" | base64 -d)" > /tmp/.output 2>&1 < /dev/null
        echo "$id $? $(stat -c %s /tmp/.output)"
        cat /tmp/.output
    done
) < /dev/ttyS1 > /dev/ttyS1
poweroff -f
"""


class MachineError(PvswitchError):
    """A guest could not be built, started or spoken to; the message says why and what to do."""


class MissingTool(MachineError):
    """This host lacks something that guests need; the message names the package to install."""


@dataclass(frozen=True)
class Kernel:
    """A kernel image and the folder of its modules (`lib/modules/RELEASE`)."""

    image: Path
    modules: Path


@dataclass(frozen=True)
class Image:
    """What QEMU boots: a kernel and an initramfs."""

    kernel: Path
    initramfs: Path


@dataclass(frozen=True)
class Nic:
    """How the guest sets up one of its interfaces (`eth0`, ... in the order of the devices) at boot.

    Addresses come with their prefix length; without an IPv6 one the interface has no IPv6 at all.
    """

    name: str
    address: str = ""
    mtu: int | None = None
    address6: str = ""

    def word(self) -> str:
        """Return the word of the kernel's command line that the init script understands."""
        return f"nic={self.name},{self.address},{self.mtu or ''},{self.address6}"


def cache_dir() -> Path:
    """Return the folder into which `scripts/install-system-packages` extracts a kernel and a newer QEMU."""
    if given := os.environ.get("PVSWITCH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pvswitch"


def find_qemu() -> str:
    """Return the QEMU to use: `$PVSWITCH_QEMU`, else the one on the path. Raises `MissingTool` without."""
    found = shutil.which(os.environ.get("PVSWITCH_QEMU", "qemu-system-x86_64"))
    if found is None:
        raise MissingTool(f"QEMU not found: {INSTALL_HINT} qemu-system-x86")
    return found


def qemu_version(program: str) -> tuple[int, int]:
    """Return the version of a QEMU as (major, minor)."""
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\d+)\.(\d+)", answer.stdout)
    if found is None:
        raise MachineError(f"{program} doesn't say its version, so it isn't QEMU: set PVSWITCH_QEMU")
    return int(found[1]), int(found[2])


def accelerator() -> str:
    """Return what executes the guest's code, for QEMU's `-accel`: `$PVSWITCH_ACCEL`, else TCG, which works anywhere."""
    return os.environ.get("PVSWITCH_ACCEL", "tcg,thread=multi")


def find_kernel(minimum: tuple[int, int] = (0, 0)) -> Kernel:
    """Return a Debian cloud kernel of version `minimum` or later. Raises `MissingTool` without.

    The newest one installed, else that of the cache, else the one from backports there. A kernel that only root
    may read (as some distributions install them) is passed over.
    """
    for root in (SYSTEM_ROOT, cache_dir() / "kernel", cache_dir() / "kernel-backports"):
        for image in sorted(root.glob("boot/vmlinuz-*-cloud-amd64"), key=_version_key, reverse=True):
            release = image.name.removeprefix("vmlinuz-")
            for modules in (root / "lib/modules" / release, root / "usr/lib/modules" / release):
                if _version_key(image) >= [*minimum] and modules.is_dir() and os.access(image, os.R_OK):
                    return Kernel(image, modules)
    wanted = "no Debian cloud kernel" + (" of {}.{} or later".format(*minimum) if any(minimum) else "")
    raise MissingTool(f"{wanted} in /boot or {cache_dir()}: {INSTALL_HINT} linux-image-cloud-amd64")


def find_busybox() -> Path:
    """Return a statically linked busybox. Raises `MissingTool` if there is none."""
    found = shutil.which("busybox")
    if found is None or list(shared_libraries(Path(found))):
        raise MissingTool(f"no static busybox found: {INSTALL_HINT} busybox-static")
    return Path(found)


def build_image(
    directory: Path,
    *,
    kernel: Kernel | None = None,
    modules: Sequence[str] = DEFAULT_MODULES,
    extra_binaries: Sequence[str | Path] = (),
) -> Image:
    """Write an initramfs into `directory` and return it with its kernel, by default what `find_kernel` finds.

    `modules` are loaded in order, each after what it depends on. `extra_binaries` are programs of the host,
    by name or path, which go to `/bin` of the guest together with their shared libraries.
    """
    kernel = kernel or find_kernel()
    archive = _Cpio()
    archive.add("init", INIT.encode(), executable=True)
    # tcpdump looks up the user that it is told to be.
    archive.add("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
    archive.add("bin/busybox", find_busybox().read_bytes(), executable=True)
    order = []
    for name, content in _resolve_modules(kernel.modules, modules):
        order.append(f"{name}.ko")
        archive.add(f"modules/{name}.ko", content)
    archive.add("modules/order", "".join(f"{line}\n" for line in order).encode())
    for binary in extra_binaries:
        found = shutil.which(binary)
        if found is None:
            raise MissingTool(f"{binary} not found on this host: install the package that holds it")
        archive.add(f"bin/{Path(found).name}", Path(found).read_bytes(), executable=True)
        for library in shared_libraries(Path(found)):
            archive.add(str(library).lstrip("/"), library.read_bytes(), executable=True)
    target = directory / "initramfs.gz"
    target.write_bytes(gzip.compress(archive.finish(), compresslevel=1))
    return Image(kernel.image, target)


def shared_libraries(binary: Path) -> Iterator[Path]:
    """Yield the libraries and the loader that `binary` needs, as ldd(1) finds them; none if it is static."""
    answer = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False)
    for found in re.finditer(r"(?:=> |^\s+)(/\S+) \(0x", answer.stdout, re.MULTILINE):
        yield Path(found[1])


def _version_key(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _resolve_modules(root: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of modules, dependencies first.

    The dependencies come from each module's own `.modinfo` section, because a kernel package that was only
    extracted has no modules.dep. A name that isn't a file is built into the kernel.
    """
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in root.rglob("*.ko*")}
    done: set[str] = set()

    def visit(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done or name not in files:
            return
        done.add(name)
        content = _read_module(files[name])
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in depends[1].decode().split(",") if depends else ():
            yield from visit(needed.replace("-", "_"))
        yield name, content

    for name in names:
        yield from visit(name.replace("-", "_"))


def _read_module(path: Path) -> bytes:
    match path.suffix:
        case ".ko":
            return path.read_bytes()
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case other:
            raise MachineError(f"{path} is compressed in an unknown way ({other}): use Debian's cloud kernel")


class _Cpio:
    """A cpio archive in the "newc" format, which the kernel unpacks as its first root."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._names: set[str] = set()

    def add(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """Add a regular file and the folders above it; a name already there is left as it is."""
        if name in self._names:
            return
        for folder in reversed(Path(name).parents[:-1]):
            if str(folder) not in self._names:
                self._entry(str(folder), stat.S_IFDIR | 0o755, b"")
        self._entry(name, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def finish(self) -> bytes:
        """Return the archive with its trailer."""
        self._entry("TRAILER!!!", 0, b"")
        return bytes(self._data)

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._names.add(name)
        path = name.encode() + b"\0"
        inode = len(self._names)
        links = 1
        fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(path), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)


class Machine:
    """One guest: a QEMU process and the command channel into it. Use it as `async with`, or call `close`.

    `devices` is the list of QEMU arguments that give the guest its memory and NICs. QEMU dies with the thread
    that called `boot`, however that ends. Every method raises `MachineError` with the end of the console's
    log when the guest doesn't do what was asked in time.
    """

    def __init__(
        self,
        name: str,
        image: Image,
        devices: Sequence[str],
        *,
        nics: Sequence[Nic] = (),
        cpus: int = 1,
        qemu: str | None = None,
        append: str = "",
        launcher: Sequence[str] = (),
    ) -> None:
        """Prepare the command line; nothing runs yet.

        `append` is added to the kernel's command line. `launcher` are words that start QEMU by exec, such as
        `nsenter --net=...`.
        """
        self.name = name
        self.qemu = qemu or find_qemu()
        self._launcher = launcher
        words = [
            *KERNEL_WORDS,
            *(nic.word() for nic in nics),
            append,
        ]
        self._arguments = [
            *("-name", name, "-accel", accelerator(), "-cpu", "max", "-smp", str(cpus)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-chardev", "file,id=console,path=/dev/fd/2,append=on", "-serial", "chardev:console"),
            *("-chardev", "stdio,id=commands,signal=off", "-serial", "chardev:commands"),
            *(
                "-kernel",
                str(image.kernel),
                "-initrd",
                str(image.initramfs),
                "-append",
                " ".join(words),
            ),
            *devices,
        ]
        self._process: asyncio.subprocess.Process | None = None
        self._log: IO[bytes] | None = None
        self._lock = asyncio.Lock()
        self._last_id = 0

    async def __aenter__(self) -> Self:
        """Give the machine, not yet booted."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill the machine."""
        await self.close()

    @property
    def pid(self) -> int:
        """The process id of QEMU; only while it runs."""
        if self._process is None:
            raise MachineError(f"guest {self.name} is not running: boot it first")
        return self._process.pid

    @property
    def command_line(self) -> str:
        """QEMU's command line, quoted for a shell."""
        return shlex.join([*self._launcher, self.qemu, *self._arguments])

    def console(self, lines: int = 20) -> str:
        """Return the last lines of what QEMU and the guest's kernel have printed."""
        if self._log is None:
            return ""
        text = Path(f"/proc/self/fd/{self._log.fileno()}").read_text(errors="replace")
        return "\n".join(text.replace("\r", "").splitlines()[-lines:])

    async def boot(self, seconds: float = 60.0) -> None:
        """Start QEMU and wait until the guest takes commands, at most `seconds`."""
        await self.close()
        self._log = tempfile.TemporaryFile(prefix=f"pvswitch-{self.name}-")  # noqa: SIM115 (closed by close())
        # setpriv execs QEMU in place: the same process, killed by the kernel if the parent thread dies.
        self._process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--", *self._launcher, self.qemu, *self._arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self._last_id = 0
        try:
            await self._answer(0, seconds)
        except MachineError:
            await self.kill()
            raise

    async def run(self, command: str, seconds: float = 30.0) -> tuple[int, str]:
        """Run a shell command in the guest; return its exit status and its output (both streams, as text).

        After `seconds` the guest ends the command (status 143), and stays usable. A process left
        behind with `&` lives on. Commands of one guest run one after the other.
        """
        async with self._lock:
            process = self._process
            if process is None or process.stdin is None:
                raise MachineError(f"guest {self.name} is not running: boot it first")
            self._last_id += 1
            encoded = base64.b64encode(command.encode()).decode()
            with contextlib.suppress(ConnectionError):  # a QEMU that died shows in the answer
                process.stdin.write(f"{self._last_id} {max(1, round(seconds))} {encoded}\n".encode())
                await process.stdin.drain()
            status, output = await self._answer(self._last_id, seconds + ANSWER_GRACE)
            return status, output.decode(errors="replace")

    async def check(self, command: str, seconds: float = 30.0) -> str:
        """Run a command that must succeed; return its output. Raises `MachineError` if it fails."""
        status, output = await self.run(command, seconds)
        if status != 0:
            raise MachineError(f"guest {self.name}: `{command}` ended with status {status}: {output.strip()}")
        return output

    async def kill(self) -> None:
        """Kill QEMU as `kill -9` does and wait for its end; the log stays readable."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        # Reads to the end of the pipe as well, without which asyncio reports an unclosed transport.
        await self._process.communicate()
        self._process = None

    async def close(self) -> None:
        """Kill QEMU if it runs and drop the log. May be called again."""
        await self.kill()
        if self._log is not None:
            self._log.close()
            self._log = None

    async def _answer(self, expected: int, seconds: float) -> tuple[int, bytes]:
        """Read frames up to the one with the expected id; an earlier one belongs to a cancelled call."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        head = b""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    head = await process.stdout.readuntil(b"\n")
                    number, status, length = (int(field) for field in head.split())
                    output = await process.stdout.readexactly(length)
                    if number == expected:
                        return status, output
        except TimeoutError:
            reason = f"did not answer within {seconds:.0f} s"
        except asyncio.IncompleteReadError:
            reason = "ended: QEMU is gone"
        except (ValueError, asyncio.LimitOverrunError):
            reason = f"wrote something else than answers to its command channel: {head!r}"
        raise MachineError(f"guest {self.name} {reason}; the end of its console:\n{self.console()}")
