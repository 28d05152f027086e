"""Program: `pipeline` under an audit hook that notes sockets bound or connected, names resolved and classes unpickled.

    python -m tests.faults.trapped LOG ARGS… [-- ARGS…]…

Runs one command line after the other in this process and writes what was noted to LOG, one event a line.
"""

import sys
from pathlib import Path

NOTED = (
    *("socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"),
    *("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "pty.spawn"),
)
# What our own decode processes answer with, and NumPy's own way to make arrays of them.
OUR_CLASSES = ("stages.images.prepare", "stages.images.decode", "stages.images.crops", "stages.images.preprocess")


def main() -> None:
    log = Path(sys.argv[1])

    def note(event: str, args: tuple[object, ...]) -> None:
        if event in NOTED and not (event == "pickle.find_class" and str(args[0]) in OUR_CLASSES):
            with open(log, "a") as file:
                file.write(f"{event} {args!r}\n")

    sys.addaudithook(note)
    from pipeline.cli import run

    log.write_text("")
    command: list[str] = []
    for arg in [*sys.argv[2:], "--"]:
        if arg != "--":
            command.append(arg)
            continue
        print(f"exit {run(command)}", flush=True)
        command = []


if __name__ == "__main__":
    main()
