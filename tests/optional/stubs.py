"""No-op stand-ins for the vendor's C libraries, so that its torch package can be imported here.

What they are: shared objects that define every C function which the package leaves undefined and
nothing else supplies; each does nothing and returns 0 (success), but the count of devices, which
is one. What they are not: a simulator. Nothing can be computed; shapes can be traced.
"""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

# Functions whose caller looks at what they write: one device, number 0; handles that are not null.
_BODIES = {
    "aclrtGetDeviceCount": "(uint32_t *count) { *count = 1; return 0; }",
    "aclrtGetDevice": "(int32_t *device) { *device = 0; return 0; }",
    "aclrtCreateStream": "(void **stream) { *stream = &here; return 0; }",
    "aclrtCreateStreamWithConfig": "(void **stream) { *stream = &here; return 0; }",
    "aclrtCreateEventExWithFlag": "(void **event) { *event = &here; return 0; }",
    "aclrtGetCurrentContext": "(void **context) { *context = &here; return 0; }",
}
# Functions that the package looks up by name while it runs, and cannot do without.
LOOKED_UP = ("aclrtSetStreamOverflowSwitch",)

_SYMBOL = re.compile(r"^\s*[0-9a-f]*\s+(?P<kind>[A-Za-z])\s+(?P<name>\S+)$")


def symbols(library: Path, *, undefined: bool) -> set[str]:
    """Names in a library's dynamic table: those it wants (strongly), or those it has."""
    which = "--undefined-only" if undefined else "--defined-only"
    done = subprocess.run(
        ["nm", "-D", which, str(library)], capture_output=True, text=True, check=True
    )
    found = (_SYMBOL.match(line) for line in done.stdout.splitlines())
    wanted = (m for m in found if m and (not undefined or m["kind"] == "U"))
    return {m["name"].split("@")[0] if not undefined else m["name"] for m in wanted}


def needed(library: Path) -> set[str]:
    """File names of the libraries that a library asks the loader for."""
    done = subprocess.run(
        ["readelf", "-d", str(library)], capture_output=True, text=True, check=True
    )
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", done.stdout))


def system_libraries(names: Iterable[str]) -> list[Path]:
    """Where the compiler finds those of the named libraries that the system has."""
    found = []
    for name in names:
        done = subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        path = Path(done.stdout.strip())
        if path.is_absolute():
            found.append(path)
    return found


def missing_functions(package: Iterable[Path], suppliers: Iterable[Path]) -> list[str]:
    """C functions that the package's libraries want and none of the suppliers has, sorted.

    Versioned names (name@GLIBC_2.17) belong to the system, Python's to the interpreter. The
    system's libraries supply too, also where the package wants a name of theirs unversioned.
    """
    libraries = list(package)
    suppliers = [*suppliers, *system_libraries(set().union(*map(needed, libraries)))]
    wanted: set[str] = set().union(*(symbols(path, undefined=True) for path in libraries))
    had: set[str] = set().union(
        *(symbols(path, undefined=False) for path in [*libraries, *suppliers])
    )
    plain = {name for name in wanted if "@" not in name}
    return sorted(name for name in plain - had if not name.startswith(("Py", "_Py", "_Z", "__")))


def build(folder: Path, *, functions: Iterable[str], names: Iterable[str]) -> None:
    """Compile the stubs once and give them every name: some are looked up in one library only."""
    lines = ["#include <stdint.h>", "static int here;"]
    for function in sorted({*functions, *LOOKED_UP}):
        lines.append(f"long {function}{_BODIES.get(function, '(void) { return 0; }')}")
    source = folder / "stubs.c"
    source.write_text("\n".join(lines) + "\n")
    for name in names:
        command = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}"]
        command += ["-o", str(folder / name), str(source)]
        subprocess.run(command, check=True, capture_output=True, text=True)
