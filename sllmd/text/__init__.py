"""Text to token ids and back.

Owns: tokenizers, incremental detokenisation, stop strings, chat templates. Uses ``tokenizers`` and a
sandboxed jinja2 in a process of its own; never transformers. Knows nothing of HTTP or engines.
Invariants: text is never emitted that could still change: no half code points, no start of a stop string.
Start at ``tokenizer``.
"""
