"""Weights from the training process to a server on the same machine: buckets in shared memory or by CUDA IPC.

Only the description of a bucket travels as a Ray message; verl's own bucketed transfer lies in a package that cannot
be imported where vLLM is not installed.
"""

import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing import resource_tracker, shared_memory
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16


@dataclass
class Bucket:
    """Description of one filled buffer.

    Attributes:
        handle: the shared memory's name, or the (function, arguments) that rebuild a CUDA tensor.
        size: bytes of the buffer.
        entries: (name, shape, dtype, offset in bytes) of each tensor.
        is_last: whether it is the last of its sync.
        sender: process id of the sender.
    """

    handle: Any
    size: int
    entries: list[tuple[str, tuple[int, ...], torch.dtype, int]] = field(default_factory=list)
    is_last: bool = False
    sender: int = field(default_factory=os.getpid)


class _SendBuffer:
    """A byte buffer that another process can open: shared memory for the CPU, device memory for CUDA IPC."""

    def __init__(self, size: int, device: torch.device):
        self.size = size
        self.memory: shared_memory.SharedMemory | None = None
        if device.type == "cpu":
            self.memory = shared_memory.SharedMemory(create=True, size=size)
            self.tensor = torch.frombuffer(self.memory.buf, dtype=torch.uint8)[:size]
            self.handle: Any = self.memory.name
        else:
            from torch.multiprocessing.reductions import reduce_tensor

            self.tensor = torch.empty(size, dtype=torch.uint8, device=device)
            self.handle = reduce_tensor(self.tensor)

    def close(self) -> None:
        """Give the memory back; the receiver must have answered the last bucket."""
        del self.tensor
        if self.memory is not None:
            self.memory.close()
            self.memory.unlink()


def packed_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of a bucket that holds all the tensors."""
    return max(sum(map(_aligned, tensors)), ALIGNMENT)


def _aligned(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


async def send_weights(
    weights: Iterable[tuple[str, Tensor]],
    deliver: Callable[[Bucket], Awaitable[Any]],
    *,
    bucket_bytes: int,
    device: torch.device,
) -> None:
    """Copy tensors into buckets and deliver each; a tensor larger than a bucket gets a bucket of its own size.

    Args:
        weights: names and full tensors, each consumed before the next is drawn.
        deliver: hands a bucket's description over and returns once the receiver has copied it.
        bucket_bytes: size of a bucket.
        device: where the buckets lie: the CPU (shared memory) or the rank's GPU.
    """
    buffer = _SendBuffer(bucket_bytes, device)
    entries: list[tuple[str, tuple[int, ...], torch.dtype, int]] = []
    used = 0

    async def flush(is_last: bool) -> None:
        nonlocal entries, used
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        await deliver(Bucket(buffer.handle, buffer.size, entries, is_last))
        entries, used = [], 0

    try:
        for name, tensor in weights:
            if used + tensor.nbytes > buffer.size:
                if entries:
                    await flush(False)
                if tensor.nbytes > buffer.size:
                    buffer.close()
                    buffer = _SendBuffer(tensor.nbytes, device)
            place = buffer.tensor[used : used + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            place.copy_(tensor, non_blocking=True)
            entries.append((name, tuple(tensor.shape), tensor.dtype, used))
            used += _aligned(tensor)
        await flush(True)
    finally:
        buffer.close()


def read_bucket(bucket: Bucket, copy: Callable[[str, Tensor], None]) -> None:
    """Open a bucket and hand each tensor to `copy`, which must not keep it.

    Args:
        bucket: as delivered.
        copy: called with name and a view into the bucket.
    """
    memory = None
    if isinstance(bucket.handle, str):
        memory = shared_memory.SharedMemory(name=bucket.handle)
        if bucket.sender != os.getpid():
            # The sender owns the memory; without this, this process's tracker would free and report it as leaked.
            resource_tracker.unregister(memory._name, "shared_memory")  # type: ignore[attr-defined]
        buffer = torch.frombuffer(memory.buf, dtype=torch.uint8)[: bucket.size]
    else:
        rebuild, arguments = bucket.handle
        arguments = list(arguments)
        arguments[6] = torch.cuda.current_device()
        buffer = rebuild(*arguments)
    for name, shape, dtype, offset in bucket.entries:
        count = torch.Size(shape).numel() * dtype.itemsize
        copy(name, buffer[offset : offset + count].view(dtype).view(shape))
    if buffer.is_cuda:
        torch.cuda.synchronize()
    del buffer
    if memory is not None:
        memory.close()
