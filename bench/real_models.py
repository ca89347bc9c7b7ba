"""Try discovery on models that others wrote: one line per family, with random weights in tiny configurations.

    python bench/real_models.py [--page] [part of a name ...]

Families whose package is missing are skipped (transformers, timm, vit_pytorch, torch_geometric). A line says which share
of the elements is dealt out, which heads, whether by itself or adapted, whether ``verify`` passes, whether narrow nets of
2 and 3 workers equal the masked full model (float64 where it runs, both modes, outputs and gradients; "right"), and the
seconds of ``discover``. ``--page`` writes the lines to docs/real-models.md, too.
"""

# ruff: noqa: C408, E501
import copy
import importlib
import importlib.util
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from equivalence import assert_narrow_equals_masked, dealt_to, doubled

from skerry import discover, verify
from skerry.discovery.forward_contexts import WithoutDropout
from skerry.model.inputs import call as call_

IDS, MASK = torch.randint(3, 60, (2, 7)), torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
IMAGES = torch.randn(2, 3, 32, 32)
FAMILIES: dict[str, tuple[str, bool, Callable[[], tuple[nn.Module, Any]]]] = {}
"""name -> (package, whether an expert would deal out its heads, builder)"""

TEXT = dict(vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, intermediate_size=88)


def hf(name: str, base: str, inputs: Any = None, heads: bool = True, **config: Any) -> None:
    def build() -> tuple[nn.Module, Any]:
        library = importlib.import_module("transformers")
        settings = getattr(library, base.split(":")[0] + "Config")(**config)
        settings.use_cache = False
        if any("expert" in key for key in config):  # grouped products refuse widths of narrow experts (docs/plans.md)
            settings._experts_implementation = "eager"
        given = inputs() if callable(inputs) else (inputs or {"input_ids": IDS, "attention_mask": MASK})
        return getattr(library, base.replace(":", ""))(settings), given

    FAMILIES[name] = "transformers", heads, build


def call(name: str, package: str, make: str, inputs: Any, heads: bool, arguments: dict[str, Any]) -> None:
    def build() -> tuple[nn.Module, Any]:
        module, _, function = make.rpartition(".")
        return getattr(importlib.import_module(module), function)(**arguments), inputs

    FAMILIES[name] = package, heads, build


def timm(name: str, heads: bool = True, size: int = 32, **arguments: Any) -> None:
    call(
        f"timm {name}",
        "timm",
        "timm.create_model",
        torch.randn(2, 3, size, size),
        heads,
        {"model_name": name, **arguments},
    )


def vit(module: str, kind: str = "ViT", inputs: Any = IMAGES, all_heads: bool = False, **arguments: Any) -> None:
    """``all_heads``: each head depends on all others, so none can be dealt out."""
    given = {**dict(image_size=32, patch_size=8, num_classes=5, dim=48, depth=2, heads=6, mlp_dim=88), **arguments}
    given = {key: value for key, value in given.items() if value is not None}
    call(f"vit-pytorch {module}", "vit_pytorch", f"vit_pytorch.{module}.{kind}", inputs, not all_heads, given)


def graph(name: str, heads: bool, **arguments: Any) -> None:
    def build() -> tuple[nn.Module, Any]:
        layers = importlib.import_module("torch_geometric.nn")

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = getattr(layers, name)(10, 4, heads=6, **arguments)
                self.b = getattr(layers, name)(24, 5, **arguments)

            def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
                return self.b(torch.relu(self.a(x, edges)), edges)

        return Net(), (torch.randn(11, 10), torch.randint(11, (2, 40)))

    FAMILIES[f"pyg {name}"] = "torch_geometric", heads, build


def plain(name: str, build: Callable[[], tuple[nn.Module, Any]], heads: bool = True) -> None:
    FAMILIES[f"torch {name}"] = "torch", heads, build


GROUPED = {**TEXT, "num_key_value_heads": 3}
ONE = {**TEXT, "num_key_value_heads": 1}
SEQ2SEQ = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": IDS[:, :4]}
BART = dict(vocab_size=64, d_model=48, encoder_layers=1, decoder_layers=1, encoder_attention_heads=6, pad_token_id=0,
            decoder_attention_heads=6, encoder_ffn_dim=88, decoder_ffn_dim=88, max_position_embeddings=64)  # fmt: skip
VISION = dict(
    image_size=32, patch_size=8, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, intermediate_size=88
)
T5 = dict(vocab_size=64, d_model=48, d_kv=8, d_ff=88, num_layers=2, num_decoder_layers=2, num_heads=6)
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
WAVES = {"input_values": torch.randn(2, 800)}
WAV = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=6, intermediate_size=88, conv_dim=(16, 16), vocab_size=32,
           conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
           num_conv_pos_embedding_groups=4, mask_time_prob=0.0, layerdrop=0.0)  # fmt: skip

hf("GPT-2", "GPT2:LMHeadModel", vocab_size=64, n_embd=48, n_layer=2, n_head=6)
hf("Llama grouped", "Llama:ForCausalLM", **GROUPED)
hf("Llama one key head", "Llama:ForCausalLM", **ONE)
hf("Mistral", "Mistral:ForCausalLM", **GROUPED)
hf("Qwen2", "Qwen2:ForCausalLM", **GROUPED)
hf("Qwen3", "Qwen3:ForCausalLM", head_dim=8, **GROUPED)
hf("Gemma", "Gemma:ForCausalLM", head_dim=8, **ONE)
hf("Gemma2", "Gemma2:ForCausalLM", head_dim=8, **GROUPED)
hf("Phi", "Phi:ForCausalLM", **TEXT)
hf("Phi-3", "Phi3:ForCausalLM", pad_token_id=0, **GROUPED)
hf("GPT-NeoX", "GPTNeoX:ForCausalLM", **TEXT)
hf("GPT-J", "GPTJ:ForCausalLM", vocab_size=64, n_embd=48, n_layer=2, n_head=6, rotary_dim=4)
hf("GPT-Neo", "GPTNeo:ForCausalLM", vocab_size=64, hidden_size=48, num_layers=2, num_heads=6, intermediate_size=88,
   attention_types=[[["global", "local"], 1]])  # fmt: skip
hf("OPT", "OPT:ForCausalLM", vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, ffn_dim=88,
   word_embed_proj_dim=48, max_position_embeddings=64)  # fmt: skip
hf("Falcon 7B", "Falcon:ForCausalLM", vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=6)
hf("Falcon 40B", "Falcon:ForCausalLM", vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
   new_decoder_architecture=True, num_kv_heads=3)  # fmt: skip
hf("Falcon RW", "Falcon:ForCausalLM", vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
   multi_query=False, parallel_attn=False, bias=True, alibi=True)  # fmt: skip
hf("StarCoder", "GPTBigCode:ForCausalLM", vocab_size=64, n_embd=48, n_layer=2, n_head=6)
hf("Bloom", "Bloom:ForCausalLM", vocab_size=64, hidden_size=48, n_layer=2, n_head=6)
hf("MPT", "Mpt:ForCausalLM", vocab_size=64, d_model=48, n_layers=2, n_heads=6, max_seq_len=32)
hf("StableLM", "StableLm:ForCausalLM", **GROUPED)
hf("OLMo2", "Olmo2:ForCausalLM", **TEXT)
hf("Cohere", "Cohere:ForCausalLM", **GROUPED)
hf("Granite", "Granite:ForCausalLM", **GROUPED)
hf("CodeGen", "CodeGen:ForCausalLM", vocab_size=64, n_embd=48, n_layer=2, n_head=4, rotary_dim=4, n_inner=88)
hf("XGLM", "XGLM:ForCausalLM", vocab_size=64, d_model=48, num_layers=2, attention_heads=6, ffn_dim=88)
hf("BERT", "Bert:ForMaskedLM", **TEXT)
hf("RoBERTa", "Roberta:ForMaskedLM", pad_token_id=1, **TEXT)
hf("DeBERTa", "Deberta:ForMaskedLM", relative_attention=True, pos_att_type=["c2p", "p2c"], **TEXT)
hf("DeBERTa-v2", "DebertaV2:ForMaskedLM", relative_attention=True, pos_att_type=["c2p", "p2c"], **TEXT)
hf("DistilBERT", "DistilBert:ForMaskedLM", vocab_size=64, dim=48, n_layers=2, n_heads=6, hidden_dim=88)
hf("ELECTRA", "Electra:ForMaskedLM", embedding_size=48, **TEXT)
hf("ALBERT", "Albert:ForMaskedLM", embedding_size=24, **TEXT)
hf("RoFormer", "RoFormer:ForMaskedLM", **TEXT)
hf(
    "ModernBERT",
    "ModernBert:ForMaskedLM",
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
    **TEXT,
)
hf("MPNet", "MPNet:ForMaskedLM", **TEXT)
hf("XLM", "XLM:WithLMHeadModel", vocab_size=64, emb_dim=48, n_layers=2, n_heads=6)
hf("SqueezeBERT", "SqueezeBert:ForMaskedLM", embedding_size=48, q_groups=1, k_groups=1, v_groups=1, post_attention_groups=1,
   intermediate_groups=1, output_groups=1, **TEXT)  # fmt: skip
hf("T5", "T5:ForConditionalGeneration", SEQ2SEQ, **T5)
hf("mT5", "MT5:ForConditionalGeneration", SEQ2SEQ, **T5)
hf("BART", "Bart:ForConditionalGeneration", SEQ2SEQ, **BART)
hf("Pegasus", "Pegasus:ForConditionalGeneration", SEQ2SEQ, **BART)
hf("Marian", "Marian:MTModel", SEQ2SEQ, decoder_start_token_id=0, **BART)
hf("Whisper", "Whisper:ForConditionalGeneration", {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": IDS[:, :4]},
   vocab_size=64, num_mel_bins=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=6, decoder_attention_heads=6,
   d_model=48, encoder_ffn_dim=88, decoder_ffn_dim=88, max_source_positions=20, max_target_positions=20, pad_token_id=0,
   decoder_start_token_id=1, bos_token_id=1, eos_token_id=2, suppress_tokens=None, begin_suppress_tokens=None)  # fmt: skip
hf("wav2vec 2", "Wav2Vec2:ForCTC", WAVES, **WAV)
hf("HuBERT", "Hubert:ForCTC", WAVES, **WAV)
hf("WavLM", "WavLM:ForCTC", WAVES, num_buckets=8, max_bucket_distance=10, **WAV)
hf("ViT", "ViT:ForImageClassification", {"pixel_values": IMAGES}, **VISION)
hf("DeiT", "DeiT:ForImageClassification", {"pixel_values": IMAGES}, **VISION)
hf("BEiT", "Beit:ForImageClassification", {"pixel_values": IMAGES}, use_relative_position_bias=True, **VISION)
hf("DINOv2", "Dinov2:ForImageClassification", {"pixel_values": IMAGES}, image_size=32, patch_size=8, hidden_size=48,
   num_hidden_layers=2, num_attention_heads=6)  # fmt: skip
hf("Swin", "Swin:ForImageClassification", {"pixel_values": IMAGES}, image_size=32, patch_size=4, embed_dim=24, depths=[2, 2],
   num_heads=[3, 6], window_size=4)  # fmt: skip
hf("SegFormer", "Segformer:ForImageClassification", {"pixel_values": IMAGES}, depths=[1, 1], hidden_sizes=[24, 48],
   num_attention_heads=[3, 6], num_encoder_blocks=2, sr_ratios=[2, 1], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2])  # fmt: skip
hf("CLIP", "CLIP:Model", {"input_ids": IDS, "pixel_values": IMAGES}, projection_dim=16,
   text_config=dict(TEXT, max_position_embeddings=64), vision_config=dict(VISION))  # fmt: skip
hf("SigLIP", "Siglip:Model", {"input_ids": IDS, "pixel_values": IMAGES},
   text_config=dict(TEXT, max_position_embeddings=64), vision_config=dict(VISION))  # fmt: skip
hf("MobileViT", "MobileViT:ForImageClassification", {"pixel_values": torch.randn(2, 3, 64, 64)}, image_size=64,
   hidden_sizes=[48, 48, 48], neck_hidden_sizes=[8, 12, 16, 20, 24, 28, 32], num_attention_heads=6)  # fmt: skip
hf(
    "ConvNeXt",
    "ConvNext:ForImageClassification",
    {"pixel_values": IMAGES},
    heads=False,
    hidden_sizes=[8, 16, 20, 24],
    depths=[1, 1, 1, 1],
)
hf(
    "ResNet",
    "ResNet:ForImageClassification",
    {"pixel_values": IMAGES},
    heads=False,
    hidden_sizes=[16, 24],
    depths=[1, 1],
    embedding_size=8,
)
hf("Mixtral", "Mixtral:ForCausalLM", **GROUPED, **EXPERTS)
hf("Qwen2-MoE", "Qwen2Moe:ForCausalLM", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=40,
   shared_expert_intermediate_size=56, **GROUPED)  # fmt: skip
hf("DeepSeek-V3", "DeepseekV3:ForCausalLM", n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
   moe_intermediate_size=40, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8,
   v_head_dim=8, **TEXT)  # fmt: skip
hf("GPT-OSS", "GptOss:ForCausalLM", head_dim=8, pad_token_id=0, **GROUPED, **EXPERTS)
hf(
    "Mamba",
    "Mamba:ForCausalLM",
    {"input_ids": IDS},
    heads=False,
    vocab_size=64,
    hidden_size=24,
    num_hidden_layers=2,
    state_size=4,
)
hf(
    "RWKV",
    "Rwkv:ForCausalLM",
    {"input_ids": IDS},
    heads=False,
    vocab_size=64,
    hidden_size=24,
    num_hidden_layers=2,
    attention_hidden_size=24,
)

SMALL = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=6, num_classes=5)
timm("vit_tiny_patch16_224", **SMALL)
timm("vit_base_patch16_clip_224", **SMALL)
timm("vit_small_patch14_reg4_dinov2", **SMALL)
timm("deit_tiny_distilled_patch16_224", **SMALL)
timm("deit3_small_patch16_224", **SMALL)
timm("beit_base_patch16_224", **SMALL)
timm("beitv2_base_patch16_224", **SMALL)
timm("eva02_tiny_patch14_224", **SMALL)
timm("cait_xxs24_224", **SMALL)
timm("xcit_nano_12_p8_224", **SMALL)
timm("naflexvit_base_patch16_gap", embed_dim=48, depth=2, num_heads=6, num_classes=5, patch_size=8)
timm(
    "swin_tiny_patch4_window7_224",
    img_size=32,
    window_size=4,
    embed_dim=24,
    depths=(2, 2),
    num_heads=(3, 6),
    num_classes=5,
)
timm(
    "swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(3, 6), num_classes=5
)
timm("pvt_v2_b0", size=64, embed_dims=(12, 24, 36, 48), num_heads=(2, 3, 4, 6), depths=(1, 1, 1, 1), num_classes=5)
timm(
    "twins_svt_small",
    size=64,
    img_size=64,
    embed_dims=(12, 24, 36, 48),
    num_heads=(2, 3, 4, 6),
    depths=(1, 1, 1, 1),
    num_classes=5,
)
timm("coat_lite_tiny", size=64, img_size=64, num_classes=5)
timm("crossvit_9_240", size=240, num_classes=5)
timm("levit_128s", size=64, img_size=64, num_classes=5)
timm("mobilevit_xxs", size=64, num_classes=5)
timm("mobilevitv2_050", size=64, num_classes=5, heads=False)
timm("pit_ti_224", size=64, img_size=64, num_classes=5)
timm("tnt_s_patch16_224", size=32, img_size=32, num_classes=5, depth=2)
timm("volo_d1_224", size=64, img_size=64, num_classes=5)
timm("maxvit_pico_rw_256", size=64, img_size=64, num_classes=5)
timm("coatnet_nano_rw_224", size=64, img_size=64, num_classes=5)
timm("poolformer_s12", heads=False, num_classes=5)
timm("efficientformer_l1", size=224, num_classes=5)
timm("edgenext_xx_small", size=64, num_classes=5)
timm("fastvit_t8", size=64, num_classes=5, heads=False)
timm("davit_tiny", size=64, num_classes=5, depths=(1, 1, 1, 1), embed_dims=(24, 48, 48, 48), num_heads=(3, 6, 6, 6))
timm("hiera_tiny_224", size=64, img_size=64, num_classes=5)
timm("resnet18", heads=False, num_classes=5)
timm("efficientnet_b0", heads=False, num_classes=5)
timm("regnety_002", heads=False, num_classes=5)
timm("res2net50_14w_8s", heads=False, num_classes=5)
timm("convnext_atto", heads=False, num_classes=5)
timm("inception_v4", heads=False, size=96, num_classes=5)
timm("dpn48b", heads=False, num_classes=5)
timm("cspresnet50", heads=False, num_classes=5)
timm("mixer_s32_224", heads=False, size=224, num_classes=5)

vit("vit")
vit("simple_vit", kind="SimpleViT")
vit("deepvit", kind="DeepViT", all_heads=True)
vit("cait", kind="CaiT", depth=2, cls_depth=1)
vit("learnable_memory_vit")
vit("vit_for_small_dataset")
vit("vit_with_patch_merger", depth=4, patch_merge_layer=1)
vit("vit_with_patch_dropout", patch_dropout=0.25)
vit("simple_vit_with_qk_norm", kind="SimpleViT")
vit("simple_vit_with_register_tokens", kind="SimpleViT")
vit("simple_flash_attn_vit", kind="SimpleViT", use_flash=True)
vit("simple_vit_with_value_residual", kind="SimpleViT")
vit("parallel_vit", kind="ViT")
vit("normalized_vit", kind="nViT")
vit("rvt", kind="RvT")
vit("ats_vit", all_heads=True, max_tokens_per_depth=(9, 5))
vit("vivit", kind="ViViT", image_patch_size=8, patch_size=None, frames=4, frame_patch_size=2, spatial_depth=1, temporal_depth=1, depth=None,
    inputs=torch.randn(2, 3, 4, 32, 32))  # fmt: skip
vit("vit_1d", seq_len=32, image_size=None, channels=3, inputs=torch.randn(2, 3, 32))
vit("cct", kind="CCT", img_size=(32, 32), image_size=None, patch_size=None, dim=None, depth=None, heads=None, mlp_dim=None,
    embedding_dim=48, n_conv_layers=1, num_layers=2, num_heads=6, mlp_ratio=2, positional_embedding="learnable")  # fmt: skip
vit("cvt", kind="CvT", image_size=None, patch_size=None, dim=None, depth=None, heads=None, mlp_dim=None, s1_emb_dim=24,
    s2_emb_dim=24, s3_emb_dim=24, s1_depth=1, s2_depth=1, s3_depth=1, s1_heads=3, s2_heads=3, s3_heads=3)  # fmt: skip
vit("twins_svt", kind="TwinsSVT", image_size=None, patch_size=None, dim=None, depth=None, heads=None, mlp_dim=None, s1_emb_dim=24,
    s1_patch_size=2, s1_local_patch_size=4, s1_global_k=4, s2_emb_dim=24, s2_patch_size=2, s2_local_patch_size=2, s2_global_k=2,
    s3_emb_dim=24, s3_patch_size=2, s3_local_patch_size=2, s3_global_k=2, s4_emb_dim=24, s4_patch_size=2, s4_local_patch_size=2,
    s4_global_k=2, s1_depth=1, s2_depth=1, s3_depth=1, s4_depth=1)  # fmt: skip
vit("nest", kind="NesT", dim=24, heads=3, num_hierarchies=2, block_repeats=1, depth=None, mlp_dim=None)
vit("xcit", kind="XCiT", cls_depth=1)
vit("max_vit", kind="MaxViT", image_size=None, patch_size=None, mlp_dim=None, dim_conv_stem=16, dim=24, dim_head=8, depth=(1, 1),
    heads=None, window_size=4)  # fmt: skip
vit("mobile_vit", kind="MobileViT", image_size=(64, 64), patch_size=None, dim=None, depth=None, heads=None, mlp_dim=None,
    dims=[24, 32, 40], channels=[8, 8, 12, 12, 16, 16, 20, 20, 24, 24], inputs=torch.randn(2, 3, 64, 64))  # fmt: skip

graph("GATConv", True)
graph("GATv2Conv", True)
graph("TransformerConv", True)
graph("SuperGATConv", True)


def _encoder(**arguments: Any) -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(24, 6, 44, batch_first=True, **arguments), 2, enable_nested_tensor=False
    )


class _Call(nn.Module):
    """A module, called with keyword arguments."""

    def __init__(self, inner: nn.Module, **arguments: Any) -> None:
        super().__init__()
        self.inner, self.arguments = inner, arguments

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(*inputs, **self.arguments)


X, PAD = torch.randn(2, 9, 24), torch.tensor([[False] * 9, [False] * 6 + [True] * 3])
CAUSAL = torch.triu(torch.full((9, 9), float("-inf")), 1)
plain("TransformerEncoder", lambda: (_encoder(), X))
plain("TransformerEncoder padding", lambda: (_Call(_encoder(), src_key_padding_mask=PAD), (X,)))
plain("TransformerEncoder causal", lambda: (_Call(_encoder(), mask=CAUSAL, is_causal=True), (X,)))
plain(
    "TransformerEncoder both",
    lambda: (_Call(_encoder(norm_first=True), mask=CAUSAL.isinf(), src_key_padding_mask=PAD), (X,)),
)
plain("Transformer", lambda: (nn.Transformer(24, 6, 1, 1, 44, batch_first=True), (X, X[:, :4])))
plain("Transformer masks", lambda: (_Call(nn.Transformer(24, 6, 1, 1, 44, batch_first=True), tgt_mask=CAUSAL[:4, :4],
      src_key_padding_mask=PAD, memory_key_padding_mask=PAD, tgt_key_padding_mask=PAD[:, 5:]), (X, X[:, :4])))  # fmt: skip
plain("MultiheadAttention cross", lambda: (_Call(nn.MultiheadAttention(24, 6, batch_first=True), need_weights=False),
      (X[:, :4], X, X)))  # fmt: skip


def line(build: Callable[[], tuple[nn.Module, Any]]) -> tuple[str, bool, bool]:
    """The line for a model; whether heads are dealt out; whether all is well."""
    torch.manual_seed(0)
    model, inputs = build()
    began = time.process_time()
    try:
        plan = discover(model, inputs)
    except Exception as error:
        return f"CRASH {type(error).__name__}: {str(error)[:90]}", False, False
    seconds = time.process_time() - began
    numel = {name: shape.numel() for name, shape in plan.shapes.items()}
    share = sum(numel[name] for name in plan.dims) / sum(numel.values())
    heads = Counter(axis.num_units for axis in plan.axes if axis.kind == "heads")
    words = " ".join(f"{times}x{n}" for n, times in heads.items()) or "no"
    said = ["verified", "right"]
    try:
        verify(model, plan, inputs)
    except Exception as error:
        said[0] = f"NOT VERIFIED {str(error)[:90]}"
    single = copy.deepcopy(model), inputs
    model, inputs = doubled(model, inputs)
    tolerance = 1e-8
    try:
        with torch.no_grad():
            call_(model, inputs)
    except Exception:  # grouped products have no float64
        (model, inputs), tolerance = single, 1e-3
    for workers in (2, 3) if plan.axes else ():
        some = plan.only(*(axis.name for axis in plan.axes if axis.num_units >= workers))
        for training in (False, True):
            for units in dealt_to(some, workers)[:1]:
                try:
                    torch.manual_seed(1)
                    with WithoutDropout():
                        assert_narrow_equals_masked(model, some, inputs, units, training=training, tolerance=tolerance)
                except Exception as error:
                    said[1] = f"WRONG ({workers} workers, training={training}): {str(error)[:90]}".replace("\n", " ")
    how = "adapted" if plan.numbers else "by itself"
    return (
        f"{share:4.0%} | heads {words:8} | {how:9} | {' '.join(said)} | {seconds:.1f} s",
        bool(heads),
        said == ["verified", "right"],
    )


HEAD = """# Models that others wrote

*Written by `python bench/real_models.py --page`, last on {date}; do not edit.*

Models of public packages, in tiny configurations with random weights. For each: the share of its elements that
`skerry.discover` deals out without any help, the layers whose heads are dealt out and how many heads these have ("2x6":
two layers of six heads), and how: *by itself*, or *adapted* (numbers that its modules keep are scaled in a subnet;
`print(plan)` shows them). *verified*: `skerry.verify` passes, with 2 of 11 units of each axis (at least two). *right*: all
axes dealt to 2 and to 3 workers, a narrow net equals the masked full model in both modes, in outputs and gradients.

What this page does not list, or does not call right, is not promised. {total}

Mixtures of experts run with `config._experts_implementation = "eager"`: torch's grouped product, which transformers takes by
itself, refuses hidden widths that are not a multiple of 16 bytes, and narrow experts often have those.

| model | dealt out | heads | how | checked |
|---|---:|---|---|---|
"""


def main() -> None:
    warnings.simplefilter("ignore")
    wanted = [word.lower() for word in sys.argv[1:] if word != "--page"]
    dealt = expected = bad = 0
    lines = []
    for name, (package, heads, build) in FAMILIES.items():
        if importlib.util.find_spec(package) is None or not all(word in name.lower() for word in wanted):
            continue
        try:
            said, has_heads, good = line(build)
        except Exception as error:
            said, has_heads, good = f"NOT BUILT {type(error).__name__}: {str(error)[:200]}", False, True
        expected, dealt, bad = expected + heads, dealt + (heads and has_heads), bad + (not good)
        cells = [cell.strip() for cell in said.split("|")]
        shown = cells[:4] if len(cells) > 3 else ["-", "-", "-", cells[0]]
        shown[1] = shown[1].removeprefix("heads ")
        lines.append(f"| {package}: {name.removeprefix(package + ' ')} | {' | '.join(shown)} |")
        print(f"{name:45} | {said}" + (" | LOST HEADS" if heads and not has_heads else ""), flush=True)
    total = f"Heads are dealt out in {dealt} of {expected} models that have them; {bad} crashed or {'is' if bad == 1 else 'are'} not right."
    print(total)
    if "--page" in sys.argv:
        page = HEAD.format(date=time.strftime("%Y-%m-%d"), total=total) + "\n".join(lines) + "\n"
        (Path(__file__).parents[1] / "docs" / "real-models.md").write_text(page)


if __name__ == "__main__":
    main()
