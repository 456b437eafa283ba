"""Python processes that are forked from one which has the libraries of a run imported.

    python -S -E forked_python.py FILE.py ARGUMENT…   # as `python FILE.py ARGUMENT…`; so with -c CODE and -m MODULE

A process imports Ray, verl and the plugin for itself, as always. What these import, torch and transformers among it,
takes 10 of the 13 s of CPU that `import verl` takes, and a run of verl has nine processes.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import sys

LIBRARIES = (
    "tensordict",
    "transformers.models.auto",
    "transformers.generation",
    "datasets",
    "fastapi",
    "hydra",
    "peft",
)
VARIABLE = "MASKGRPO_TESTS_FORKED_PYTHON"
COMMAND = (sys.executable, "-S", "-E", os.path.abspath(__file__))
PR_SET_PDEATHSIG = 1


def command():
    """What takes the place of `sys.executable` in a command. The first call starts the process that forks, which ends
    with the calling one.
    """
    import atexit
    import shutil
    import subprocess
    import tempfile

    if VARIABLE in os.environ:
        return COMMAND
    folder = tempfile.mkdtemp(prefix="forked_python_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = os.path.join(folder, "socket")
    server = subprocess.Popen(
        [sys.executable, __file__, "serve", address], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    if server.stdout.readline() != "ready\n":
        raise RuntimeError("the process that forks Python processes did not start")
    os.environ[VARIABLE] = address
    return COMMAND


def for_ray():
    """The same for Ray's workers: the value of `runtime_env.py_executable`."""
    return shlex.join(command())


def serve(address):
    """Import the libraries, then fork a process for each that asks; returns in each, the asker's socket."""
    import gc
    import importlib
    import warnings

    end_with_parent()
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            asker, _ = listener.accept()
            with warnings.catch_warnings():  # of a thread of the allocator
                warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
                is_child = os.fork() == 0
            if is_child:
                return asker
            asker.close()


def become(asker):
    """Run what is asked for in a child, with the asker's files, folder and environment; the asker hears the exit code,
    and the child does not outlive it.
    """
    import threading

    end_with_parent()
    own_path = {os.path.dirname(COMMAND[-1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    sys.path[:] = [place for place in sys.path if place not in own_path]
    files = socket.recv_fds(asker, 1, 3)[1]
    with asker.makefile() as lines:
        asked = json.loads(lines.readline())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if process:
        for file in files:
            os.close(file)
        asker.sendall(f"{process}\n".encode())
        threading.Thread(target=kill_at_end, args=(asker, process), daemon=True).start()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        asker.sendall(f"{code}\n".encode())
        os._exit(0)
    asker.close()
    end_with_parent()
    os.setsid()  # Ray kills the process group of a worker that has ended
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    run(asked["arguments"])


def kill_at_end(asker, process):
    """End the process when its asker is no more."""
    asker.recv(1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def run(arguments):
    """What `python ARGUMENT…` does."""
    import random
    import runpy
    import tempfile
    import warnings

    import numpy as np

    random.seed()
    np.random.seed()
    tempfile.tempdir = None  # of this environment
    while arguments[0] == "-W":
        sys.warnoptions.append(arguments[1])
        warnings.simplefilter(arguments[1])
        arguments = arguments[2:]
    first, *others = arguments
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if first in ("-c", "-m"):
        target, *others = others
    sys.argv = [first, *others]
    if first == "-c":
        sys.path.insert(0, "")
        exec(compile(target, "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.path.insert(0, os.getcwd())
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(first))
        runpy.run_path(first, run_name="__main__")


def end_with_parent():
    """Have the kernel end this process when its parent ends."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def ask(arguments):
    """Have a process forked, hand on the signals that come, and end as it does."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[VARIABLE])
        socket.send_fds(server, [b"f"], [0, 1, 2])
        asked = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        server.sendall(json.dumps(asked).encode() + b"\n")
        with server.makefile() as lines:
            process = int(lines.readline())
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda number, _: os.kill(process, number))
            code = lines.readline()
    code = int(code or 1)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        become(serve(sys.argv[2]))
    else:
        ask(sys.argv[1:])
