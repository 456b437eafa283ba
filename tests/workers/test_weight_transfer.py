"""Weights arrive in another process exactly, in buckets of shared memory, and leave nothing behind."""

import asyncio
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import ranks

from maskgrpo_plugin.workers.rollout.weight_transfer import Bucket, read_bucket, send_weights


def tensors():
    g = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(7, 3, generator=g),
        "b": torch.randn(5, generator=g).to(torch.bfloat16),
        "large": torch.randn(4000, generator=g),
        "scalar": torch.tensor(3, dtype=torch.int64),
    }


def receive(queue, answers):
    received = {}
    while True:
        bucket = queue.get()
        read_bucket(bucket, lambda name, tensor: received.update({name: tensor.clone()}))
        answers.put("copied")
        if bucket.is_last:
            answers.put({name: tensor.float().tolist() for name, tensor in received.items()})
            return


def test_tensors_cross_to_another_process():
    context = ranks.forking()
    queue, answers = context.Queue(), context.Queue()
    process = context.Process(target=receive, args=(queue, answers))
    process.start()
    buckets: list[Bucket] = []

    async def deliver(bucket):
        buckets.append(bucket)
        queue.put(bucket)
        assert answers.get(timeout=60) == "copied"

    sent = tensors()
    asyncio.run(send_weights(sent.items(), deliver, bucket_bytes=128, device=torch.device("cpu")))
    received = answers.get(timeout=60)
    process.join(60)
    assert received == {name: tensor.float().tolist() for name, tensor in sent.items()}
    assert len(buckets) > 1
    assert [bucket.is_last for bucket in buckets] == [False] * (len(buckets) - 1) + [True]
    assert not any(os.path.exists(f"/dev/shm/{bucket.handle.lstrip('/')}") for bucket in buckets)
