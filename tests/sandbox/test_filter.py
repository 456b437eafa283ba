"""The filter of system calls, followed step by step for both architectures, whichever this machine has."""

import struct

import pytest

from maskgrpo_plugin.sandbox.inside.confinement import _filter

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = {  # x86-64, AArch64, from the kernel's tables
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "vmsplice": (278, 75),
    "mq_open": (240, 180),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "socket": (41, 198),
    "ptrace": (101, 117),
}
ALLOWED = {
    "read": (0, 63),
    "socketpair": (53, 199),
    "kill": (62, 129),
    "sched_getaffinity": (204, 123),
    "pipe2": (293, 59),
}
PRLIMIT64, MMAP, CLONE, CLONE3 = (302, 261), (9, 222), (56, 220), (435, 435)


def decide(machine, number, *arguments, architecture=None):
    """What the filter returns for a call: classic BPF over struct seccomp_data."""
    data = struct.pack("<iIQ6Q", number, architecture or ARCHITECTURES[machine], 0, *(*arguments, *[0] * 6)[:6])
    code = _filter(machine)
    steps = [struct.unpack_from("=HBBI", code, start) for start in range(0, len(code), 8)]
    at = value = 0
    while True:
        kind, if_true, if_false, operand = steps[at]
        at += 1
        if kind == 0x20:
            (value,) = struct.unpack_from("<I", data, operand)
        elif kind == 0x54:
            value &= operand
        elif kind == 0x06:
            return operand
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[kind]
            at += if_true if holds else if_false


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
class TestFilter:
    @pytest.mark.parametrize("name", NUMBERS)
    def test_denied(self, machine, column, name):
        assert decide(machine, NUMBERS[name][column]) == EPERM

    @pytest.mark.parametrize("name", ALLOWED)
    def test_allowed(self, machine, column, name):
        assert decide(machine, ALLOWED[name][column]) == ALLOW

    def test_limits_of_the_caller_alone(self, machine, column):
        assert decide(machine, PRLIMIT64[column], 0, 7) == ALLOW
        assert decide(machine, PRLIMIT64[column], 1, 7) == decide(machine, PRLIMIT64[column], 99) == EPERM

    def test_no_shared_anonymous_memory(self, machine, column):
        shared, private, validated, anonymous = 1, 2, 3, 0x20
        for flags, decision in (
            (private | anonymous, ALLOW),
            (shared, ALLOW),
            (private, ALLOW),
            (shared | anonymous, EPERM),
            (validated | anonymous | 0x4000, EPERM),
        ):
            assert decide(machine, MMAP[column], 0, 4096, 3, flags, 2**64 - 1, 0) == decision

    def test_no_new_namespaces(self, machine, column):
        assert decide(machine, CLONE[column], 17) == ALLOW
        assert decide(machine, CLONE[column], 0x10000000 | 17) == EPERM
        assert decide(machine, CLONE3[column]) == ENOSYS

    def test_other_architectures(self, machine, column):
        assert decide(machine, 0, architecture=0x40000003) == KILL
        if machine == "x86_64":
            assert decide(machine, 0x40000000 | 319) == KILL
