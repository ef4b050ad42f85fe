"""How the use cases are put together from open stores.

`app` opens what the process is made of, and the modules here make memory, chat and the rooms beside them of it, each in a
function of its own. Nothing else constructs.
"""

from memoryos_server.wiring.chat import open_chat, open_receipts
from memoryos_server.wiring.memory import Memory, SearchStore, open_memory
from memoryos_server.wiring.privacy import open_privacy, untended_privacy
from memoryos_server.wiring.services import servicers
from memoryos_server.wiring.shield import open_shield

__all__ = [
    "Memory",
    "SearchStore",
    "open_chat",
    "open_memory",
    "open_privacy",
    "open_receipts",
    "open_shield",
    "servicers",
    "untended_privacy",
]
