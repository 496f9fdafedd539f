"""Multi-modal causal attention (MMCA, https://arxiv.org/abs/2309.14327) as an attention function of transformers.

For query row i, after rotary embedding, every set restricted to the sample that i belongs to:

    image token   out_i = v_i
    text token    out_i = softmax over text keys j <= i . V  +  softmax over image keys j < i . V   (0 without any)

No row reads padding; padding rows output v_i too. Only text rows need attention, and no kernel needs a mask: among
themselves the text rows of a sample are plain causal, and all text rows between two images see the same image keys. So
memory is linear in T, and CPU and CUDA run the same code on the flash kernels of scaled_dot_product_attention.

    MMCA.register()
    model.set_attn_implementation(MMCA.name)
    model(input_ids, position_ids=..., attention_layout=build_layout(is_image, segment_ids), use_cache=False)

The layout defines padding and samples; the model's `attention_mask` is not read. The caller passes positions, which
restart with each sample. Sliding windows, soft caps, sinks and position biases are refused.
"""

from __future__ import annotations

from trainer.attention.by_layout import LayoutAttention

MMCA = LayoutAttention(
    "mmca", "MMCA attention", "use shorter samples, another model, or causal attention (model.attention: causal)"
)
