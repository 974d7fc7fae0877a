"""A Python that begins at once: `[quick_python.executable(), "-m", ...]` stands for `[sys.executable, "-m", ...]`.

Two of three seconds of a child would be the imports of torch and Numba. This one is forked from a process that has imported
them, nothing of fpsim, and has started no thread; all else is as in a new process: arguments, environment, folder, path,
standard streams, `__main__`, how it ends. What imports and the interpreter itself read from the environment is read by then:
a child that has it otherwise is a new process after all.
"""

import atexit
import contextlib
import functools
import itertools
import marshal
import os
import runpy
import select
import shlex
import signal
import socket
import sys
import threading
import types
from pathlib import Path
from typing import NoReturn

INTERPRETER = sys.executable
READ_BY_THEN = ("PYTHON", "NUMBA", "OMP", "GOMP", "MKL", "OPENBLAS", "TORCH_", "LD_", "LC_", "LANG")


@functools.cache
def executable() -> str:
    """What stands for `sys.executable`, also as what a child's own children are started with. It ends with this process."""
    if not hasattr(os, "pidfd_open"):
        return sys.executable
    import subprocess
    import tempfile

    folder = tempfile.TemporaryDirectory()
    address, python = (os.path.join(folder.name, name) for name in ("socket", "python"))
    with open(python, "w") as file:
        file.write(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-I", "-S", __file__, "ask", address])} "$@"\n')
    os.chmod(python, 0o700)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, __file__, "serve", address, python], stdin=pipe, stdout=pipe, env=environment)
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"

    def end() -> None:
        server.communicate()
        folder.cleanup()

    atexit.register(end)
    return python


def ask(address: str, arguments: list[str]) -> None:
    """Ends as the child ends, which has this process's arguments, environment, folder and standard streams."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        wanted = marshal.dumps((arguments, dict(os.environ), os.getcwd()))
        socket.send_fds(server, [len(wanted).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(wanted)
        code = int.from_bytes(server.recv(4), "big", signed=True)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(address: str, python: str) -> None:
    """A child for each that asks, until standard input ends."""
    import gc

    import numba.extending
    import numba.np.ufunc  # noqa: F401 - imported to be there in children, as all of these
    import rich.table  # noqa: F401
    import torch._dynamo
    import torch.utils._python_dispatch  # noqa: F401

    gc.freeze()
    sys.executable = python
    sys.dont_write_bytecode, sys.pycache_prefix = False, os.path.dirname(address)  # what one has compiled, the next finds
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while 0 not in select.select([listener, 0], [], [])[0]:
        client = listener.accept()[0]
        if not os.fork():
            listener.close()
            keep(client)
        client.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def keep(client: socket.socket) -> NoReturn:
    """Begin the child, end it where nobody waits for it any more, and say how it ended."""
    length, streams, _, _ = socket.recv_fds(client, 4, 3)
    with client.makefile("rb") as file:
        wanted = marshal.loads(file.read(int.from_bytes(length, "big")))
    child = os.fork()
    if not child:
        client.close()
        become(*wanted, streams)
    for stream in (0, *streams):
        os.close(stream)
    ends = os.pidfd_open(child)
    if ends not in select.select([ends, client], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        client.sendall(code.to_bytes(4, "big", signed=True))
    os._exit(0)


def become(arguments: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> NoReturn:
    """Run what the arguments say as `python` would, wait for its threads and run its exit handlers; no module is taken down."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if threads := environment.get("OMP_NUM_THREADS"):
        sys.modules["torch"].set_num_threads(int(threads))
    heeded = {"PYTHONPATH", "OMP_NUM_THREADS", "PYTHONHASHSEED"}  # the last is set by torch's tests, and by none of ours
    os.chdir(folder)
    for name in {*environment, *os.environ} - heeded:
        if name.startswith(READ_BY_THEN) and environment.get(name) != os.environ.get(name):
            os.execve(INTERPRETER, [INTERPRETER, *arguments], environment)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    code = 0
    try:
        run(*arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code != end.code is not None:
            print(end.code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001  (as the interpreter does)
        code = 1
        sys.excepthook(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(*words: str) -> None:
    options = list(itertools.takewhile(lambda word: word in ("-P", "-B", "-u"), words))
    way, *rest = words[len(options) :]
    folder = "" if way == "-c" else os.getcwd() if way == "-m" else os.path.dirname(os.path.abspath(way))
    sys.path[:0] = [] if "-P" in options else [folder]
    if way == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    if way.endswith(".pyz"):
        sys.argv = [way, *rest]
        runpy.run_path(way, run_name="__main__")
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if way == "-c":
        way, sys.argv, code = "<string>", ["-c", *rest[1:]], rest[0]
    else:
        sys.argv, code, main.__file__ = [way, *rest], Path(way).read_text(), way
    exec(compile(code, way, "exec"), main.__dict__)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        ask(sys.argv[2], sys.argv[3:])
