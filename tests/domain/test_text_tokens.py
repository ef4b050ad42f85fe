"""The estimate of tokens beside counts of real tokenizers, taken once (`tests/gateway/test_token_estimate.py` counts anew)."""

from __future__ import annotations

import pytest

from memoryos_server.domain.core.text import estimate_tokens


@pytest.mark.parametrize(
    ("text", "counted"),  # by o200k_base or by DeepSeek's, whichever is more
    [
        ("", 0),
        ("Hi", 1),
        ("0196f3a2-7c1e-7b8a-9f00-1234567890ab " * 20, 540),
        ('{"id": "0196f3a2-7c1e", "tier": "episode", "at": "2026-11-29T23:50Z", "text": "I like tea."}' * 10, 490),
        ("3.14159 2,000,000 42 17:30 " * 10, 170),
        ("我昨天去了上海，见到了老朋友，他现在在一家公司做工程师。" * 5, 86),
        ("التقيت بصديق قديم. " * 5, 45),
        ("😀🎉" * 20, 80),
        ("I went to the market, bought three apples, and ate them on the way home. " * 5, 86),
    ],
)  # fmt: skip
def test_estimate_when_beside_what_a_tokenizer_counts_then_not_less_and_not_far_more(text: str, counted: int) -> None:
    assert counted <= estimate_tokens(text) <= 3 * counted + 5
