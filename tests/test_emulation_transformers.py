"""Small random models of the transformers package: training, generation, and torch's own bits under fp32."""

import contextlib
import copy

import numpy as np
import pytest
import torch

import fpsim
from tests.frequency import often

transformers = pytest.importorskip("transformers", reason="needs the package transformers")

SIZE = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
TOKENS = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=16, n_embd=16, n_layer=2, n_head=2, **TOKENS))


def bert():
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, **SIZE)
    return transformers.BertForSequenceClassification(config)


def vit():
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, **SIZE)
    return transformers.ViTForImageClassification(config)


def llama():
    config = transformers.LlamaConfig(max_position_embeddings=16, num_key_value_heads=1, **SIZE, **TOKENS)
    return transformers.LlamaForCausalLM(config)


def t5():
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0, **TOKENS)
    return transformers.T5ForConditionalGeneration(config)


def whisper():
    config = transformers.WhisperConfig(
        num_mel_bins=4, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=8, max_target_positions=16, decoder_start_token_id=0,
        suppress_tokens=None, begin_suppress_tokens=None, **TOKENS,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def mamba():
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=2, use_mambapy=False, **TOKENS)
    )


MODELS = {"gpt2": gpt2, "bert": bert, "vit": vit, "llama": llama, "t5": t5, "whisper": whisper, "mamba": mamba}
ATTENTION = [(name, kind) for name in MODELS for kind in ("eager", "sdpa") if (name, kind) != ("mamba", "sdpa")]
QUICK = {("gpt2", "eager"), ("llama", "sdpa"), ("mamba", "eager")}
CASES = often(ATTENTION, QUICK)


def model_of(name, attention):
    torch.manual_seed(0)
    model = MODELS[name]()
    if name != "mamba":
        model.set_attn_implementation(attention)
    return model.eval()


def inputs_of(name, cast=None):
    torch.manual_seed(1)
    tokens, answers = torch.randint(2, 20, (3, 6)), torch.tensor([0, 1, 1])
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0  # padded on the left
    if name == "vit":
        inputs = {"pixel_values": torch.randn(3, 1, 8, 8), "labels": answers}
    elif name == "whisper":
        inputs = {"input_features": torch.randn(3, 4, 16), "labels": tokens}
    else:
        inputs = {"input_ids": tokens, "attention_mask": mask, "labels": answers if name == "bert" else tokens}
    return {key: value.to(cast) if cast and value.is_floating_point() else value for key, value in inputs.items()}


def step(model, inputs, context):
    """(loss, logits, gradients, parameters) of one training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)
    with context:
        outputs = model(**inputs)
        outputs.loss.backward()
        optimizer.step()
    parameters = list(model.parameters())
    return outputs.loss, outputs.logits, [p.grad for p in parameters if p.grad is not None], parameters


def is_finite(results):
    loss, logits, gradients, parameters = results
    return all(bool(torch.isfinite(tensor).all()) for tensor in (loss, logits, *gradients, *parameters))


@pytest.mark.parametrize(("fmt", "accumulate", "dtype"), [("fp16", "fp16", torch.float16), ("bf16", None, torch.bfloat16)])
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_a_training_step(name, attention, fmt, accumulate, dtype):
    """Values of the format, finite wherever the model in 16 bits is."""
    model = model_of(name, attention)
    sim = fpsim.run(model, fmt, accumulate)
    results = step(sim, inputs_of(name), sim)
    loss, logits, gradients, parameters = results
    for tensor in (loss, logits, *gradients, *parameters):
        values = tensor.detach().numpy()
        assert np.array_equal(values, fpsim.round(values, fmt), equal_nan=True)
    sim = fpsim.run(copy.deepcopy(model).to(dtype), "native", accumulate)
    native = step(sim, inputs_of(name, dtype), sim)
    assert is_finite(native) and is_finite(results)


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_fp32_in_the_librarys_order_is_torch(name, attention):
    model = model_of(name, attention)
    sim = fpsim.run(model, "fp32", "native")
    emulated = step(sim, inputs_of(name), sim)
    plain = step(model, inputs_of(name), contextlib.nullcontext())
    for a, b in zip((*emulated[:2], *emulated[2], *emulated[3]), (*plain[:2], *plain[2], *plain[3]), strict=True):
        assert torch.equal(a, b)


GENERATES = [case for case in CASES if case.values[0] not in ("bert", "vit")]


HOW = {"greedy": {}, "sample": {"do_sample": True}, "beams": {"num_beams": 2}}


@pytest.mark.parametrize(("name", "attention"), GENERATES)
@pytest.mark.parametrize(
    "how", [pytest.param(how, id=name, marks=pytest.mark.exhaustive if how else ()) for name, how in HOW.items()]
)
def test_generation(name, attention, how):
    model = model_of(name, attention)
    inputs = {key: value for key, value in inputs_of(name).items() if key != "labels"}

    def generate(model, context):
        torch.manual_seed(2)
        with context:
            return model.generate(**inputs, max_new_tokens=4, **how)

    sim = fpsim.run(model, "fp16", "fp16")
    tokens = generate(sim, sim)
    assert tokens.shape[0] == 3
    assert torch.equal(tokens, generate(sim, sim))
    assert any("mm" in operation for operation in sim.report().by_operation())
    sim = fpsim.run(model, "fp32", "native")
    assert torch.equal(generate(sim, sim), generate(model, contextlib.nullcontext()))
