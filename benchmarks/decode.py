"""One token at a time: the compiled step beside other libraries, and beside reading the weights.

python benchmarks/decode.py [OUT.json [mamba] [gated_delta_net] [small]]

Models of 130M parameters with random weights, one row, as many threads as torch takes, all cases
of a table interleaved in one process; medians. The floor of a case is the time that its weights
take at the read bandwidth measured in the same rounds. transformers and llama-cpp-python (with
gguf) are timed where they are installed. `small` is a table of small models, before and after.
Tables that are not asked for stay as they are in OUT.json.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from stepscan.generate import compile_decoder
from stepscan.generate.compiled.weights import FORMATS
from stepscan.kernels.limits import limit_reads
from stepscan.mixers import MIXERS
from stepscan.models import ModelConfig, NextToken, SequenceModel

LAYERS, WIDTH, VOCABULARY = 24, 768, 50280
ROUNDS = 9
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
READ = torch.zeros(40_000_000)


def model_of(name: str) -> SequenceModel:
    """24 layers of one mixer, with the output map tied to the embedding."""
    config = ModelConfig(
        head=NextToken(vocab=VOCABULARY),
        layers=tuple(MIXERS[name]() for _ in range(LAYERS)),
        width=WIDTH,
        tokens=(VOCABULARY,),
        mlp_ratio=0.0,
    )
    return SequenceModel(config).eval()


def interleaved(cases: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each case."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(rounds + 1):
        for name, case in cases.items():
            start = perf_counter()
            case()
            if round_:  # the first warms up
                times[name].append(perf_counter() - start)
    return {name: median(found) for name, found in times.items()}


def reading() -> dict[str, Callable[[], Any]]:
    """Ways to read a large tensor."""
    READ.uniform_()
    return {"read, torch.sum": READ.sum, "read, four streams": lambda: limit_reads(READ, 4)}


def ours(model: SequenceModel) -> dict[str, Callable[[], Any]]:
    """A decoder for each dtype."""
    decoders = {dtype: compile_decoder(model, dtype=dtype) for dtype in FORMATS}
    steps = {f"stepscan {dtype}": lambda d=d: d.step(5) for dtype, d in decoders.items()}
    return steps


def transformers_of(name: str, dtype: torch.dtype) -> Callable[[], Any]:
    """The same sizes there, after a prompt of one token."""
    import transformers  # noqa: PLC0415

    if name == "mamba":
        config = transformers.MambaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS
        )
        theirs = transformers.MambaForCausalLM(config)
    else:
        config = transformers.Qwen3NextConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            intermediate_size=8,  # as good as none
            mlp_only_layers=list(range(LAYERS)),
            layer_types=["linear_attention"] * (LAYERS - 1) + ["full_attention"],  # it wants one,
            num_attention_heads=4,
            num_key_value_heads=4,
            linear_num_key_heads=4,
            linear_num_value_heads=4,
            linear_key_head_dim=144,
            linear_value_head_dim=288,
            tie_word_embeddings=True,
        )
        theirs = transformers.Qwen3NextForCausalLM(config)
    theirs = theirs.to(dtype).eval()
    token = torch.tensor([[5]])
    out = theirs(token, use_cache=True)
    key = "cache_params" if name == "mamba" else "past_key_values"
    held = {key: out[key]}
    if name == "mamba":
        held["cache_position"] = torch.tensor([4])

    def step() -> None:
        theirs(token, use_cache=True, **held)

    return step


def llama_of(model: SequenceModel, dtype: str, folder: str) -> Callable[[], Any]:
    """Mamba with the same weights in llama.cpp."""
    import gguf  # noqa: PLC0415
    import llama_cpp  # noqa: PLC0415

    kinds = gguf.GGMLQuantizationType
    kind = {"fp32": kinds.F32, "bf16": kinds.BF16, "int8": kinds.Q8_0}[dtype]
    path = Path(folder) / f"{dtype}.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    inner, states, rank = 2 * WIDTH, 16, WIDTH // 16
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(LAYERS)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(states)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, tensor: torch.Tensor, *, product: bool = False) -> None:
        data = tensor.detach().float().contiguous().numpy()
        fits = product and not (dtype == "int8" and data.shape[1] % 32)
        if fits and kind != kinds.F32:
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)

    add("token_embd.weight", model.embed.tables[0].weight, product=True)
    add("output_norm.weight", model.norm.weight)
    for i, block in enumerate(model.blocks):
        mixer: Any = block.mixer
        add(f"blk.{i}.attn_norm.weight", block.norm.weight)
        add(f"blk.{i}.ssm_in.weight", mixer.inputs.weight, product=True)
        add(f"blk.{i}.ssm_conv1d.weight", mixer.conv.weight)
        add(f"blk.{i}.ssm_conv1d.bias", mixer.conv.bias)
        add(f"blk.{i}.ssm_x.weight", mixer.selection.weight, product=True)
        add(f"blk.{i}.ssm_dt.weight", mixer.step.weight, product=True)
        add(f"blk.{i}.ssm_dt.bias", mixer.step_bias)
        add(f"blk.{i}.ssm_a", -mixer.A_log.exp())
        add(f"blk.{i}.ssm_d", mixer.D)
        add(f"blk.{i}.ssm_out.weight", mixer.out.weight, product=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    threads = torch.get_num_threads()
    llama = llama_cpp.Llama(
        str(path), n_ctx=4096, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    llama.eval([5])
    return lambda: llama.eval([5])


@torch.no_grad()
def large(name: str) -> dict[str, Any]:
    """Everything about one model of 130M."""
    model = model_of(name)
    weights = sum(p.numel() for p in model.parameters())
    cases = reading() | ours(model)
    with tempfile.TemporaryDirectory() as folder:
        for dtype, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            _try(cases, f"transformers {dtype}", lambda k=kind: transformers_of(name, k))
        if name == "mamba":
            for dtype in FORMATS:
                _try(cases, f"llama.cpp {dtype}", lambda d=dtype: llama_of(model, d, folder))
        times = interleaved(cases)
    best = max(READ.nbytes / times[way] for way in times if way.startswith("read"))
    rows = {n: {"ms": 1e3 * t} for n, t in times.items()}
    for dtype, size in BYTES.items():
        own, floor = times[f"stepscan {dtype}"], weights * size / best
        rows[f"stepscan {dtype}"]["of the floor"] = own / floor
        for peer in ("transformers", "llama.cpp"):
            if f"{peer} {dtype}" in times:
                rows[f"{peer} {dtype}"]["of stepscan"] = times[f"{peer} {dtype}"] / own
    return {"parameters": weights, "read GB/s": best / 1e9, "times": rows}


def _try(cases: dict[str, Any], name: str, make: Callable[[], Callable[[], Any]]) -> None:
    try:
        cases[name] = make()
    except ImportError as error:
        print(f"  {name}: not timed, {error}")


@torch.no_grad()
def small(name: str) -> dict[str, float]:
    """Tokens a second of 4 layers of width 128, by the model itself and compiled."""
    layers = tuple(MIXERS[name]() for _ in range(4))
    config = ModelConfig(head=NextToken(vocab=257), layers=layers, tokens=(257,))
    model = SequenceModel(config).eval()
    token = torch.tensor([[5]])
    held = [model(token)[1]]

    def ordinary() -> None:
        _, held[0] = model(token, held[0])

    cases: dict[str, Callable[[], Any]] = {"before": ordinary}
    try:
        decoder = compile_decoder(model)
        cases["after"] = lambda: decoder.step(5)
    except ValueError as error:
        print(f"  {name}: {error}")
    return {case: 1 / t for case, t in interleaved(cases, 40).items()}


def show(name: str, found: dict[str, Any]) -> None:
    """Print a table."""
    if name == "small":
        print("width 128, 4 layers: tokens a second before, after")
        for mixer, speeds in found.items():
            print(f"  {mixer:24}" + "".join(f"{speed:12,.0f}" for speed in speeds.values()))
        return
    print(f"{name}, {found['parameters']:,} parameters, {found['read GB/s']:.1f} GB/s read")
    for case, row in found["times"].items():
        extra = "".join(f"  {value:.2f} {key}" for key, value in list(row.items())[1:])
        print(f"  {case:24}{row['ms']:9.2f} ms{extra}")


def main() -> None:
    """Print the tables asked for; write them where asked to."""
    torch.manual_seed(0)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    result = json.loads(path.read_text()) if path and path.is_file() else {}
    result |= {
        "command": "python benchmarks/decode.py benchmarks/results/decode.json",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    for name in sys.argv[2:] or ("mamba", "gated_delta_net", "small"):
        result[name] = {m: small(m) for m in MIXERS} if name == "small" else large(name)
        show(name, result[name])
    if path:
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        part.replace(path)


if __name__ == "__main__":
    main()
