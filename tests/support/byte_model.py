"""Small text models of one token per byte: with random weights, or taught a few answers by heart."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from promptmill.system.state import cache_folder


def save(folder: Path, kind: str = "Llama", template: str | None = None, *, pad: bool = True, **config: Any) -> None:
    """Write a model with random weights into `folder`; `config` goes into its configuration."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.set_num_threads(1)  # in the tests' own process: several wait for each other where others compute
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    padding = {"pad_token": "<pad>"} if pad else {}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", **padding
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 4, "bos_token_id": 1, "eos_token_id": 2}
    if kind != "Mamba":
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "head_dim": 16}
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(**{**sizes, "max_position_embeddings": 512, **config})
    model = getattr(transformers, f"{kind}ForCausalLM")(made).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)  # far enough apart that rounding never decides
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0 if pad else None
    model.save_pretrained(folder)


def taught(template: str, lessons: list[tuple[str, str]], marks: list[str]) -> Path:
    """Return the folder, in promptmill's cache, of a model that learnt what to answer to each prompt.

    `marks` are special tokens of it.
    """
    import transformers

    lesson = json.dumps([transformers.__version__, template, lessons, marks])
    recipe = hashlib.sha256(Path(__file__).read_bytes() + lesson.encode()).hexdigest()[:16]
    folder = cache_folder() / f"byte-model-{recipe}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="byte-model-") as scratch:
            made = Path(scratch, "model")
            save(made, template=template, head_dim=32)
            _teach(made, lessons, marks)
            with contextlib.suppress(OSError):  # another process was faster: its model is the same
                made.rename(folder)
    return folder


def _teach(folder: Path, lessons: list[tuple[str, str]], marks: list[str]) -> None:
    """Have the small model in `folder` learn what to answer to each prompt; `marks` become special tokens."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([transformers.AddedToken(mark, special=True) for mark in marks])
    tokenizer.save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)

    def tokens(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    read = [(tokens(prompt), tokens(f"{answer}</s>")) for prompt, answer in lessons]
    longest = max(len(prompt) + len(answer) for prompt, answer in read)
    lesson = torch.tensor([prompt + answer + [0] * (longest - len(prompt) - len(answer)) for prompt, answer in read])
    labels = torch.full_like(lesson, -100)
    for row, (prompt, answer) in enumerate(read):
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.05)
    learning = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(900):
        found = model(input_ids=lesson, labels=labels)
        if found.loss < 0.005:
            break
        learning.zero_grad()
        found.loss.backward()
        learning.step()
    told = labels[:, 1:] != -100
    assert (found.logits[:, :-1].argmax(-1)[told] == labels[:, 1:][told]).all(), found.loss
    model.save_pretrained(folder)
