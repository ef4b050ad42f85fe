"""Counts the tokens of texts (a JSON array on standard input) with the tokenizers that LiteLLM brings along, without a network."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

spec = find_spec("litellm")
assert spec is not None
assert spec.origin is not None
folder = Path(spec.origin).parent / "litellm_core_utils" / "tokenizers"
os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)

import tiktoken  # noqa: E402  # it looks at the variable
from tokenizers import Tokenizer  # noqa: E402

texts = json.load(sys.stdin)
counts = {}
for name in ("cl100k_base", "o200k_base"):
    encoding = tiktoken.get_encoding(name)
    counts[name] = [len(encoding.encode(text, disallowed_special=())) for text in texts]
for name in ("deepseek", "anthropic"):
    tokenizer = Tokenizer.from_file(str(folder / f"{name}_tokenizer.json"))
    counts[name] = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
print(json.dumps(counts))
