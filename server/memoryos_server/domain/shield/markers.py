"""Attempts that are no sentence: forged marks of who speaks, and characters that nobody sees."""

from __future__ import annotations

import re

from memoryos_server.domain.shield.model import pattern

PATTERNS = (
    pattern(
        "forge.template",
        "<|im_start|>|<|start_header_id|>|<|system|>|<<sys>>|[/inst]|<|assistant|>|<start_of_turn>|<|endoftext|>",
        r"<\|im\x5fstart\|>_?(?:system|assistant|developer|user)\b|<\|start\x5fheader\x5fid\|>_"
        r"?(?:system|assistant)|<\|(?:system|assistant)\|>_?\w"
        r"|<<sys>>|\[/inst\]_?\S|<start\x5fof\x5fturn>_?(?:model|system)|<\|endoftext\|>_?\S",
    ),
    pattern(
        "forge.role",
        "system:|system :|system message|system prompt|system override|system notice|system update|"
        "system alert|system instruction|system note|system command|developer:|"
        "developer message|developer note|developer command|admin:|administrator:|admin note|admin "
        "message|admin override|system]|system>|system)|system*|message]|prompt]|of user |of system "
        "|of assistant |begin user|"
        "begin system|start system|end system|end user|end assistant|begin developer|end developer|of developer ",
        r"(?:^|[\n.!?\"'>\])}*#-]_?|\b(?:_))\W{0,4}(?:system|developer|admin(?:istrator)?)(?:_"
        r"(?:message|prompt|override|notice|update|alert|instructions?|note|command))?_?[\]>*})]{0,3}_"
        r"?:"
        r"[^.!?]{0,24}?\b(?:you_(?:are_now|must|will_now|shall|have_to|are_authori[sz]ed|can_now)|"
        r"ignore|disregard|override|forget|new_(?:rules|instructions|task))\b"
        r"|\b(?:begin|start|end)(?:_of)?_(?:system|developer|user|assistant)_(?:prompt|messages?|"
        r"input|instructions?|query|turn)\b\W{0,4}(?=[a-z<\[#*=-]|$)(?!of_the_(?:chapter|manual|"
        r"book))",
    ),
    pattern(
        "forge.block",
        "memoryos-context",
        r"<_?/?_?memoryos-context",
    ),
)

FLAGS = re.compile("\U0001f3f4[\U000e0030-\U000e007a]{1,8}\U000e007f")
"""The flags of England, Scotland, Wales: the one use of tag characters."""

TAGS = re.compile("[\U000e0000-\U000e007f]")
UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\u180e\ufeff\U000e0000-\U000e007f]")
"""Characters without a look, which may part the letters of a word."""

UNSEEN_RUN = re.compile("[\u200b\u200c\u200d\u2060-\u2064\ufeff]{8}")
OVERRIDES = re.compile("[\u202d\u202e]")
ENCODED = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
