"""The same random weights for llama.cpp: a GGUF file of the backbone and the head of codes.

Run by the Python of llama.cpp's environment (`gguf`, NumPy): imports nothing of this project.
llama.cpp draws no pictures. What is written is a Llama whose vocabulary are the codes: the
embedding table is made up (`gen_aligner(gen_embed[code])` is in no file, and its values cost
nothing), the head is the last layer of the generation head. The first layer of that head, 0.3 % of
a step's weights at the true shapes, is left out, in llama.cpp's favour.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
BACKBONE = "model.language_model"

Read = Callable[[str], np.ndarray]


def write(directory: Path, target: Path) -> None:
    """Write the F16 file of a checkpoint directory in transformers layout."""
    import gguf  # only the environment of llama.cpp has it

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    text, num_codes = config["text_config"], config["vq_config"]["num_embeddings"]
    read = reader(directory)
    temporary = target.with_suffix(".part")
    writer = gguf.GGUFWriter(str(temporary), "llama")
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_rope_dimension_count(text["head_dim"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base(text.get("rope_theta", 10000.0))
    writer.add_vocab_size(num_codes)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((num_codes, text["hidden_size"]), dtype=np.float32) * 0.02
    writer.add_tensor("token_embd.weight", embeddings.astype(np.float16))
    writer.add_tensor("output_norm.weight", read(f"{BACKBONE}.norm.weight"))
    head = read("model.generation_head.vision_head.weight")
    writer.add_tensor("output.weight", head.astype(np.float16))
    for layer in range(text["num_hidden_layers"]):
        for source, name in LAYER.items():
            tensor = read(f"{BACKBONE}.layers.{layer}.{source}.weight")
            if name in ("attn_q", "attn_k"):
                heads = "num_attention_heads" if name == "attn_q" else "num_key_value_heads"
                tensor = interleaved(tensor, text[heads])
            matrix = tensor if tensor.ndim == 1 else tensor.astype(np.float16)
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.rename(target)


def interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """The rows of a projection in the order of llama.cpp's rotary positions: a rotated pair is
    neighbours there, and half a head apart in transformers."""
    halves = weight.reshape(num_heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def reader(directory: Path) -> Read:
    """Reads a tensor by name from the safetensors files of a directory, as fp32.

    By hand: the format is a length, a JSON header and bytes, and NumPy has no bf16.
    """
    places: dict[str, tuple[Path, int, dict]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                places[name] = (path, 8 + size, entry)

    def read(name: str) -> np.ndarray:
        path, offset, entry = places[name]
        first, last = entry["data_offsets"]
        dtype = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}[entry["dtype"]]
        flat = np.fromfile(
            path, dtype, (last - first) // np.dtype(dtype).itemsize, "", offset + first
        )
        if entry["dtype"] == "BF16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        return flat.reshape(entry["shape"]).astype(np.float32)

    return read


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    write(arguments.directory, arguments.target)


if __name__ == "__main__":
    main()
