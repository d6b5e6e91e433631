"""Trains with PyTorch's processes:  torchrun --nproc-per-node 2 gloo.py MODEL DATA.jsonl OUT"""

import sys

import lowrank
import torch.distributed as dist


def all_gather(message):
    messages = [None] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    return messages


model, data, out = sys.argv[1:]
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
model = lowrank.Model.from_pretrained(model, rank=rank, world_size=size, all_gather=all_gather)
model.train(data, out=out, max_steps=4, batch_size=64, force=True, progress=rank == 0)
dist.destroy_process_group()
