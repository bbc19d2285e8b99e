"""The files of weights/janus-mini, in transformers' layout.

Owns their names and contents. Knows nothing of training: it is given a model. Invariant:
`from_pretrained` loads the folder without a missing or unexpected key, and nothing in it is larger
than it has to be (half precision).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import JanusForConditionalGeneration

from weights.recipe import chat
from weights.recipe.geometry import IMAGE_PX, NUM_CODES
from weights.recipe.network import build, load_parts
from weights.recipe.photographs import MIN_SIDE_PX
from weights.recipe.resume import write_table
from weights.recipe.tokenizer import SPECIAL_TOKENS, special_ids
from weights.recipe.training import arguments

# The template of the transformers layout: newlines between pictures and text, answers closed by
# EOS.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '<|User|>: ' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '<|Assistant|>: ' }}"
    "{%- else -%}{{ message['role'].capitalize() + ': ' }}{%- endif -%}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if not loop.first -%}{{ '\\n' }}{%- endif -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image_placeholder>' }}"
    "{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{ '\\n\\n' }}"
    "{%- else -%}{{ '" + chat.EOS + "' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|Assistant|>:' }}{%- endif -%}"
)


def export(
    model: JanusForConditionalGeneration,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    drawing: dict[str, float],
) -> None:
    """Write weights, configuration and processors to `folder`; `drawing` holds the defaults of
    pictures: `guidance_scale`, `temperature`, `top_p`."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: t.detach().to(torch.float16) for name, t in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=half)
    (folder / "model.safetensors").chmod(0o644)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float16"
    _write(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    ids = special_ids(tokenizer)
    _write(
        folder / "generation_config.json",
        {
            "_from_model_config": False,
            "bos_token_id": ids["bos"],
            "eos_token_id": ids["eos"],
            "pad_token_id": ids["pad"],
            # Only pictures: answers are greedy.
            **drawing,
            "generation_kwargs": {"boi_token_id": ids["begin_of_image"]},
        },
    )
    _write_processors(folder)


def _write_processors(folder: Path) -> None:
    special = {f"{name}_token": SPECIAL_TOKENS[name] for name in ("bos", "eos", "pad")}
    others = list(SPECIAL_TOKENS.values())[3:]
    images = {
        "image_token": SPECIAL_TOKENS["image_placeholder"],
        "boi_token": SPECIAL_TOKENS["begin_of_image"],
        "eoi_token": SPECIAL_TOKENS["end_of_image"],
    }
    _write(folder / "special_tokens_map.json", {**special, "additional_special_tokens": others})
    _write(
        folder / "tokenizer_config.json",
        {
            **special,
            **images,
            "extra_special_tokens": images,
            "additional_special_tokens": others,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1024,
            "processor_class": "JanusProcessor",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": None,
        },
    )
    _write(
        folder / "preprocessor_config.json",
        {
            "background_color": [127, 127, 127],
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "JanusImageProcessor",
            "image_size": IMAGE_PX,
            "image_std": [0.5, 0.5, 0.5],
            "min_size": MIN_SIDE_PX,
            "processor_class": "JanusProcessor",
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": IMAGE_PX, "width": IMAGE_PX},
        },
    )
    _write(
        folder / "processor_config.json",
        {
            "num_image_tokens": NUM_CODES,
            "processor_class": "JanusProcessor",
            "use_default_system_prompt": True,
        },
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    """Write the trained model `<work>/<start>` to the checkpoint's folder."""
    args = arguments(
        __doc__,
        {
            "start": "joint.pt",
            "folder": str(Path(__file__).parents[1] / "janus-mini"),
            "guidance": "1.1",
            "temperature": "0.5",
            "top_p": "0.9",
        },
    )
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    model = build(tokenizer)
    model.load_state_dict(torch.load(args.work / args.start, weights_only=True))
    settled = torch.load(args.work / "settled.pt", weights_only=True)
    load_parts(model, {"model.vqmodel": settled})
    drawing = {
        "guidance_scale": float(args.guidance),
        "temperature": float(args.temperature),
        "top_p": float(args.top_p),
    }
    export(model, tokenizer, Path(args.folder), drawing=drawing)
    write_table(torch.load(args.work / "table.pt", weights_only=True), Path(args.folder))


if __name__ == "__main__":
    main()
