"""A LLaVA model in transformers' format → the folder of graphs that OpenVINO GenAI reads.

What `optimum-cli export openvino` makes, in float32 and without optimum-intel, which needs an older transformers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import filelock


def kept(source: Path) -> Path:
    """Return the converted model of `source`, a folder in promptmill's cache that this module's text belongs to."""
    import openvino

    recipe = hashlib.sha256(Path(__file__).read_bytes() + openvino.__version__.encode()).hexdigest()[:16]
    folder = source.with_name(f"{source.name}-openvino-{recipe}")
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=source.parent, prefix="openvino-vlm-") as made:
                convert(source, Path(made, "model")).rename(folder)
    return folder


def convert(source: Path, target: Path) -> Path:
    """Write the model of `source` to `target`."""
    import openvino
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    target.mkdir(parents=True)
    model = AutoModelForImageTextToText.from_pretrained(source).float().eval().requires_grad_(False)
    parts = {
        "text_embeddings": _text_embeddings(model),
        "vision_embeddings": _vision_embeddings(model),
        "language": _language(model),
    }
    for name, graph in parts.items():
        openvino.save_model(graph, target / f"openvino_{name}_model.xml", compress_to_fp16=False)
    _write_tokenizer(AutoTokenizer.from_pretrained(source), target)
    for file in ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / file).is_file():
            shutil.copy(source / file, target)
    processor = json.loads((source / "processor_config.json").read_text(encoding="utf-8"))
    (target / "preprocessor_config.json").write_text(json.dumps(processor["image_processor"]), encoding="utf-8")
    return target


def _text_embeddings(model: Any) -> Any:
    import openvino
    import torch

    graph = openvino.convert_model(model.get_input_embeddings(), example_input=torch.ones((1, 3), dtype=torch.int64))
    return _named(graph, ["input"], ["inputs_embeds"])


def _vision_embeddings(model: Any) -> Any:
    import openvino
    import torch

    class Eyes(torch.nn.Module):  # type: ignore[misc]
        def forward(self, pixel_values: Any) -> Any:
            seen = model.get_image_features(pixel_values, return_dict=True).pooler_output
            return seen[0][None] if isinstance(seen, (tuple, list)) else seen

    side = model.config.vision_config.image_size
    graph = openvino.convert_model(Eyes(), example_input=torch.zeros((1, 3, side, side)))
    return _named(graph, ["pixel_values"], ["last_hidden_state"])


def _language(model: Any) -> Any:
    """Return the language model with its cache as state, as the pipeline's own rewriting of attention expects it."""
    import openvino
    import torch
    from openvino import opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    words, head, config = model.model.language_model, model.lm_head, model.config.text_config
    layers, heads, size = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    past = [(f"past_key_values.{n}.{kind}", f"present.{n}.{kind}") for n in range(layers) for kind in ("key", "value")]

    class Decoder(torch.nn.Module):  # type: ignore[misc]
        def forward(self, attention_mask: Any, position_ids: Any, inputs_embeds: Any, *cache: Any) -> Any:
            hidden, present = inputs_embeds, []
            turns = words.rotary_emb(hidden, position_ids)
            seen, new = attention_mask.shape[1], hidden.shape[1]
            below = torch.arange(seen)[None] <= (torch.arange(new) + seen - new)[:, None]
            mask = below[None, None] & attention_mask[:, None, None].bool()
            for number, layer in enumerate(words.layers):
                key, value = cache[2 * number : 2 * number + 2]
                found, key, value = _attention(layer.self_attn, layer.input_layernorm(hidden), turns, mask, key, value)
                hidden = hidden + found
                hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
                present += [key, value]
            return head(words.norm(hidden)), *present

    empty = torch.zeros((1, heads, 2, size))
    example = (
        torch.ones((1, 5), dtype=torch.int64),
        torch.arange(2, 5)[None],
        torch.zeros((1, 3, config.hidden_size)),
        *(empty for _ in past),
    )
    graph = openvino.convert_model(Decoder(), example_input=example)
    names = ["attention_mask", "position_ids", "inputs_embeds", *(before for before, _ in past)]
    _named(graph, names, ["logits", *(after for _, after in past)])
    shapes = {"attention_mask": [-1, -1], "position_ids": [-1, -1], "inputs_embeds": [-1, -1, config.hidden_size]}
    graph.reshape(shapes | {before: [-1, heads, -1, size] for before, _ in past})
    beam = opset13.parameter([-1], openvino.Type.i32, name="beam_idx")
    beam.output(0).get_tensor().add_names({"beam_idx"})
    graph.add_parameters([beam])
    for before, _ in past:
        port = graph.input(before)
        readers = port.get_target_inputs()
        chosen = opset13.gather(port, beam, opset13.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    graph.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(graph, dict(past))
    rows = opset13.gather(opset13.shape_of(graph.input("inputs_embeds")), opset13.constant([0]), opset13.constant(0))
    shape = opset13.concat([rows, opset13.constant([heads]), opset13.constant([0]), opset13.constant([size])], axis=0)
    for operation in graph.get_ops():
        if operation.get_type_name() == "ReadValue":
            operation.set_arguments([opset13.broadcast(opset13.constant(0.0, openvino.Type.f32), shape)])
    graph.validate_nodes_and_infer_types()
    return graph


def _attention(layer: Any, hidden: Any, turns: Any, mask: Any, key: Any, value: Any) -> Any:
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

    shape = (*hidden.shape[:-1], -1, layer.head_dim)
    asked, new_key, new_value = (
        part(hidden).view(shape).transpose(1, 2) for part in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    asked, new_key = apply_rotary_pos_emb(asked, new_key, *turns)
    key, value = torch.cat([key, new_key], dim=2), torch.cat([value, new_value], dim=2)
    many = layer.num_key_value_groups
    found = torch.nn.functional.scaled_dot_product_attention(
        asked, repeat_kv(key, many), repeat_kv(value, many), attn_mask=mask
    )
    return layer.o_proj(found.transpose(1, 2).reshape(*hidden.shape[:-1], -1)), key, value


def _named(graph: Any, inputs: list[str], outputs: list[str]) -> Any:
    for port, name in zip([*graph.inputs, *graph.outputs], inputs + outputs, strict=True):
        port.get_tensor().set_names({name})
    return graph


def _write_tokenizer(tokenizer: Any, target: Path) -> None:
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AddedToken

    # the pipeline puts a line's end behind each image, and takes images for one that nothing parts
    if not tokenizer("\n", add_special_tokens=False)["input_ids"]:
        tokenizer.add_tokens([AddedToken("\n", normalized=False)])

    for graph, name in zip(
        convert_tokenizer(tokenizer, with_detokenizer=True), ("tokenizer", "detokenizer"), strict=True
    ):
        openvino.save_model(graph, target / f"openvino_{name}.xml")
