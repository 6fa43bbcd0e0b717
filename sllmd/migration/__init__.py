"""How a running generation changes its place: what is true of it, when it moves, and what is tried again.

Owns: the ``ledger`` of a generation (every token once, in order, from one source at a time), the ``mover``
(one planned move, from the target's first sign of life to the switch), and ``failover`` (what a lost source
means). Knows nothing of replicas, nodes, sockets, clocks or tasks. Pure: it imports only ``core`` and the
words of ``engine.protocol``, and time arrives as a value.

Invariants: before the switch the source owns the generation, after it the target: there is no instant when
both or neither do; nothing on this way needs a leader, nor anything of the source; a move that fails costs
its generation nothing.

What a change of place leaves as it was, whatever the model's type: tokens that are in the ledger, each once
and in order; counts and usage; the draw of every position, keyed by (seed, index); and the rules by which a
generation ends, which look at its tokens alone: stop tokens and strings, ``max_tokens``, the context.
What it need not leave as it was is the tokens that follow. The target computes keys and values in one pass,
the source did so step by step, in another batch, and sums rounded in another order differ:

=========  ==============================================================================================
float32    in the seventh digit: tokens are those of the unmoved run, but where two are as good as equal:
           the best two scores for a greedy text, the best two with their noise for a drawn one
bfloat16   in the third digit, as any two batches' do: the distribution is the same within the type's own
           error. A greedy text rarely goes another way, a drawn one mostly does, within some dozens of
           tokens, as it may in another batch unmoved
=========  ==============================================================================================

Start at ``ledger``, then ``mover``.
"""
