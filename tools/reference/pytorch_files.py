"""Small files of torch.save in its formats: `crates/lowrank-models/tests/fixtures/pytorch/`."""

from collections import OrderedDict
from pathlib import Path

import torch

OUT = Path(__file__).parents[2] / "crates/lowrank-models/tests/fixtures/pytorch"
OUT.mkdir(parents=True, exist_ok=True)

ramp = torch.arange(12, dtype=torch.float32)
state = OrderedDict(
    matrix=ramp[:6].view(2, 3),
    half=torch.tensor([1.0, -2.5, 65504.0], dtype=torch.float16),
    bfloat=torch.tensor([[0.5], [-3.0]], dtype=torch.bfloat16),
    count=torch.tensor(3),
    slice=ramp[4:9],
    tied=ramp[:6].view(2, 3),
    parameter=torch.nn.Parameter(torch.full((2, 1, 2), 7.0)),
    empty=torch.zeros(0, 4),
)
state._metadata = OrderedDict({"": {"version": 1}})
torch.save(state, OUT / "zip.bin")
torch.save(state, OUT / "old.bin", _use_new_zipfile_serialization=False)
torch.save({"epoch": 3, "lr": 0.1, "parts": [1, (2, "x")], "model_state_dict": dict(state)}, OUT / "wrapped.pt")
torch.save({"transposed": ramp.view(3, 4).T}, OUT / "strided.bin")


class Attack:
    def __reduce__(self):
        import os

        return os.system, ("echo executed",)


torch.save({"matrix": ramp, "attack": Attack()}, OUT / "attack.bin")
