"""The estimate of tokens beside real tokenizers, those that LiteLLM brings along."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from uuid import NAMESPACE_OID, uuid5

import pytest

from memoryos_server.domain.chat.context import render
from memoryos_server.domain.chat.model import RecalledItem
from memoryos_server.domain.core.text import estimate_tokens
from scripts.generate import ROOT
from tests.gateway.test_sdks import HERE, SDKS, installed

NEW, OLD = ("o200k_base", "deepseek"), ("cl100k_base", "anthropic")
SAID = (
    "I moved from 12 Rua das Flores to Porto on 2026-03-01, and my number is +351 912 345 678.",
    "我昨天去了上海，见到了老朋友。",
    "昨日、東京で古い友人に会いました。",
    "어제 서울에서 오랜 친구를 만났습니다.",
    "Вчера я встретил старого друга.",
    "التقيت بصديق قديم.",
)
# Always the same, and many: of one id by chance, the estimate may be a token short.
IDS = " ".join(str(uuid5(NAMESPACE_OID, str(n))) for n in range(50))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_estimate_when_beside_real_tokenizers_then_it_is_not_less() -> None:
    pages = [path.read_text("utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))]
    code = [path.read_text("utf-8") for path in sorted(ROOT.glob("server/memoryos_server/domain/chat/*.py"))]
    items = [
        RecalledItem(
            id=str(uuid5(NAMESPACE_OID, text)),
            tier="episode",
            score=0.5,
            content=text,
            role="user",
            timestamp=datetime(2026, 11, 2, tzinfo=UTC),
        )
        for text in SAID
    ]
    texts = [*pages, *code, *(text * 5 for text in SAID), IDS, render(items, [], 2000).text]
    (litellm,) = [one for one in SDKS if one.name == "litellm"]
    done = subprocess.run(
        [installed(litellm) / "bin" / "python", HERE / "count_tokens.py"],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    counts = json.loads(done.stdout)
    for names, least in ((NEW, 1.0), (OLD, 0.9)):
        for name in names:
            for text, count in zip(texts, counts[name], strict=True):
                assert estimate_tokens(text) >= least * count, (name, text[:80])
    for name, numbers in counts.items():
        print(name, f"{sum(map(estimate_tokens, texts)) / sum(numbers):.2f} times")
