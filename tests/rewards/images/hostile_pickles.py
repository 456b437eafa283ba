"""Run as a script, with limits of its own: reads hostile pickles and prints a line of JSON for each of them.

`hostile_pickles.py bombs` reads those made by hand, `hostile_pickles.py mutants N` N that random changes of good ones
give. Memory is limited to what the imports take and `MEMORY` more, CPU time to `SECONDS`.
"""

import collections
import json
import os
import pickle
import random
import resource
import struct
import sys
import time
import warnings

import numpy as np

from maskgrpo_plugin.rewards.images.restricted_pickle import UnsafePickleError, loads

MEMORY, SECONDS = 400 * 2**20, 60
COLLISION = 2**61 - 1


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def bombs() -> dict[str, bytes]:
    """By name; each took the process, gigabytes or seconds when Python's unpickler read it."""
    raw = b"B" + struct.pack("<I", 2**20) + bytes(2**20) + b"q\x010"
    encode = b"\x80\x02c_codecs\nencode\nq\x00" + text("a" * 2**20) + b"q\x01" + text("latin1") + b"q\x02" + b"000"
    array = (
        b"cnumpy._core.numeric\n_frombuffer\n(h\x01cnumpy\ndtype\n"
        + text("u1")
        + b"\x85RJ"
        + struct.pack("<i", 2**20)
        + b"\x85"
        + text("C")
        + b"tR"
    )
    colliding = [b"\x8a\x0a" + (COLLISION * n).to_bytes(10, "little") for n in range(1, 20_001)]
    return {
        "doubling tuple as a key": b"\x80\x02}(" + b")" + b"2\x86" * 40 + b"K\x01u.",
        "doubling tuple as a member": b"\x80\x04\x8f(" + b")" + b"2\x86" * 40 + b"\x90.",
        "doubling tuple as a dtype": b"\x80\x02cnumpy\ndtype\n)" + b"2\x86" * 40 + b"\x85R.",
        "deep tuple as a key": b"\x80\x02}(" + b")" + b"\x85" * 1_000_000 + b"K\x01u.",
        "deep list": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "memo index": b"\x80\x02Nr" + struct.pack("<I", 2**27) + b".",
        "many arrays over one buffer": b"\x80\x03" + raw + b"(" + array * 2000 + b"l.",
        "many encodings of one text": encode + b"(" + b"h\x00h\x01h\x02\x86R" * 2500 + b"l.",
        "colliding keys": b"\x80\x04}(" + b"".join(number + b"K\x01" for number in colliding) + b"u.",
        "colliding members": b"\x80\x04\x8f(" + b"".join(colliding) + b"\x90.",
        "colliding members of a list": b"\x80\x02cbuiltins\nset\n](" + b"".join(colliding) + b"e\x85R.",
        "many opcodes": b"\x80\x02" + b"N0" * 2_000_000 + b"N.",
        "many containers": b"\x80\x04(" + b"\x8f" * 400_000 + b"l.",
    }


def mutants(count: int) -> dict[str, bytes]:
    """Good pickles of all protocols with one to four bytes changed, put in, taken out or repeated."""
    values = [
        {"scores": [0.5, 1.0, None], "group_rewards": collections.defaultdict(list, {"color": [1.0]})},
        {"scores": np.arange(6.0).reshape(2, 3), "one": np.float32(0.25)},
        {"images": [bytes(range(64))] * 2, "prompts": ["a cat", "ä dog"], "meta_datas": [{"n": {1, 2}, "t": (1, ())}]},
        collections.OrderedDict(a=bytearray(b"ab"), b=2**70, c=-1.5, d=frozenset({"x"})),
    ]
    good = [pickle.dumps(value, protocol) for value in values for protocol in range(6)]
    draw = random.Random(0)
    found = {}
    for number in range(count):
        data = bytearray(draw.choice(good))
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(data))
            change = draw.randrange(4)
            if change == 0:
                data[place] = draw.randrange(256)
            elif change == 1:
                data.insert(place, draw.randrange(256))
            elif change == 2 and len(data) > 1:
                del data[place]
            else:
                end = min(len(data), place + draw.randint(1, 8))
                data[place:place] = data[place:end] * draw.choice((1, 2, 50))
        found[str(number)] = bytes(data)
    return found


def main() -> None:
    for protocol in range(6):  # codecs and parts of numpy are imported when first used
        loads(pickle.dumps(["ä", b"a", np.arange(2.0), np.float32(1)], protocol))
    cases = bombs() if sys.argv[1] == "bombs" else mutants(int(sys.argv[2]))
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    warnings.simplefilter("ignore")
    sys.addaudithook(refuse)
    for name, data in cases.items():
        start = time.process_time()
        try:
            outcome = f"read {type(loads(data, text_arrays=True)).__name__}"
        except UnsafePickleError as error:
            outcome = f"refused: {error}"
        sys.stdout.write(json.dumps([name, outcome, time.process_time() - start]) + "\n")
    sys.stdout.flush()
    os._exit(0)  # what libraries do at the exit is not looked at


def refuse(event: str, arguments: tuple) -> None:
    """Audit hook that ends the process where anything is run, opened or imported."""
    if event in ("open", "exec", "compile", "os.system", "subprocess.Popen", "os.mkdir", "socket.connect") or (
        event == "import" and not arguments[0].startswith(("encodings", "numpy"))
    ):
        sys.stderr.write(f"{event} was run: {arguments}\n")
        os._exit(1)


if __name__ == "__main__":
    main()
