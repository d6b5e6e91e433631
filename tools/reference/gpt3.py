"""GPT-3's shape on transformers' GPT-2: registered as `model_type` `gpt3`.

Query, key and value are layers of their own, and in every second layer (the first is dense) a token sees the
`window_size` nearest tokens only, itself among them. transformers has no such model; everything else is its GPT-2.
"""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.pytorch_utils import Conv1D


class GPT3Config(GPT2Config):
    model_type = "gpt3"
    window_size: int = 256


class Joined(nn.Module):
    """Looks like `c_attn` to GPT-2's attention."""

    def __init__(self, attention):
        super().__init__()
        self.__dict__["attention"] = attention  # not a child: its layers have their names already

    def forward(self, x):
        a = self.attention
        return torch.cat([a.q_proj(x), a.k_proj(x), a.v_proj(x)], -1)


class GPT3Attention(GPT2Attention):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx=layer_idx)
        width = config.n_embd
        self.q_proj, self.k_proj, self.v_proj = (Conv1D(width, width) for _ in range(3))
        self.c_attn = Joined(self)
        self.window = config.window_size if layer_idx % 2 == 1 else None

    def forward(self, hidden_states, cache=None, attention_mask=None, **kwargs):
        if self.window is not None:
            at = torch.arange(hidden_states.shape[1])
            far = at[:, None] - at[None, :] >= self.window
            band = torch.zeros(far.shape).masked_fill(far, torch.finfo(torch.float32).min)
            later = torch.zeros(far.shape).masked_fill(at[None, :] > at[:, None], torch.finfo(torch.float32).min)
            mask = (band + later).clamp(min=torch.finfo(torch.float32).min).to(hidden_states.dtype)
            attention_mask = mask if attention_mask is None else torch.minimum(attention_mask, mask)
        return super().forward(hidden_states, cache, attention_mask, **kwargs)


class GPT3LMHeadModel(GPT2LMHeadModel):
    config_class = GPT3Config

    def __init__(self, config):
        super().__init__(config)
        for i, block in enumerate(self.transformer.h):
            block.attn = GPT3Attention(config, i)
        self.post_init()


AutoConfig.register("gpt3", GPT3Config)
AutoModelForCausalLM.register(GPT3Config, GPT3LMHeadModel)
