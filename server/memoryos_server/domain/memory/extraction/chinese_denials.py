"""Plain denials in Chinese: 我不住在罗马, 我对花生不过敏, 我没有狗.

As in English, what is denied only in part or only now and then is not denied: 我不只在谷歌工作, 我平时不住在上海.
"""

from __future__ import annotations

import re

from memoryos_server.domain.memory.extraction.chinese_verbs import Saying
from memoryos_server.domain.memory.extraction.text import words

UNDONE = words("lives_in works_at has_pet has_child has_relative condition allergic_to learning uses owns")
"""What 没 can deny: what is, as it says of most that it did not happen."""
DENIABLE = UNDONE | words(
    "from nationality has_role studies_at studies relationship_status diet trait speaks skill plans wants hobby works_on"
)
"""What 不 can deny. What was done stays done, and a name or number is corrected by the right one."""

NOT_ALL = re.compile(
    "(?:是)?(?:只|仅|光|单单|单纯|不|没|很|太|特别|非常|完全|全|都|总|一直|真|那么|这么|十分|比较|最|一般|经常|"
    "常|怎么|大|因为|说|为了|想|再|有点|有些|所有|每|一定|必|得|该|能|敢|要不|要是|止|止是)"
)
"""Behind the negation: not all of it is denied."""
PARTLY = re.compile(
    "平时|一般|通常|有时|经常|往常|常|主要|总|周末|白天|晚上|今天|当时|以前|曾|过去|小时候|本来|从小|只|大学|"
    "毕业|并非|不是|刚|难道|当|的时候|开始"
)
"""Before the negation: not always."""
DENIED_OF = Saying(
    "allergic_to",
    re.compile(
        "对(?P<v>[^,，]{1,14}?)(?:并|其实|也|都|根本|完全|一点也|一点都|现在|已经)*(?:不再?|没有?)(?:会)?过敏(?:的|了)?$"
    ),
    "list",
    0.95,
)
"""The one that has its negation behind its value."""
TAKES = re.compile("(?:喝|吃|抽|用|玩)(?P<v>[^,，不没]{1,8})$")
"""What somebody takes no more."""
