"""Mid-term memory as its owner manages it: tags, versions, export, import."""
