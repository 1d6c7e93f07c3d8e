"""The other side of evaluation.code_sandbox: run as a program, it limits itself and then executes the code on stdin.

Reads JSON {"code", "nonce", "cpu_seconds", "memory_bytes", "file_bytes", "result"} and writes the nonce to the file
descriptor ``result`` once the code has run to its end. Guards against accidents of a model, not against an attacker.
"""

import json
import os
import resource
import sys

_FORBIDDEN = (
    "subprocess.", "socket.", "ctypes.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill",
    "os.putenv", "pty.", "webbrowser.", "urllib.", "ftplib.", "smtplib.", "http.",
)  # fmt: skip
_CHANGES_PATHS = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "os.setxattr", "os.removexattr", "shutil.",
)  # fmt: skip


def guard(folder: str) -> None:
    """Refuse, from here on, to start processes, open sockets, or change files outside ``folder``."""
    inside = folder + os.sep

    def within(path: object) -> bool:
        if isinstance(path, int):  # an open file
            return True
        return isinstance(path, (str, bytes)) and os.path.realpath(os.fsdecode(path)).startswith(inside)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _mode, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) and not within(path):
                raise PermissionError(f"writing {path} is not allowed here")
        elif event.startswith(_FORBIDDEN):
            raise PermissionError(f"{event} is not allowed here")
        elif event.startswith(_CHANGES_PATHS):
            paths = [a for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
            if not all(within(os.fspath(path)) for path in paths):
                raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(hook)


def main() -> None:
    request = json.load(sys.stdin)
    folder = os.path.realpath(os.getcwd())
    for limit, value in (
        (resource.RLIMIT_CPU, request["cpu_seconds"]),
        (resource.RLIMIT_AS, request["memory_bytes"]),
        (resource.RLIMIT_FSIZE, request["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    program = compile(request["code"], "answer.py", "exec")
    nonce, result = request["nonce"].encode(), request["result"]
    del request
    guard(folder)
    exec(program, {"__name__": "__main__", "__builtins__": __builtins__})
    os.write(result, nonce)


if __name__ == "__main__":
    main()
