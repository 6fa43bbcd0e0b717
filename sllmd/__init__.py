"""sllmd: serve many language models from few machines.

The map of this house. Every room's ``__init__`` is its door plate; a room imports only rooms on lower
floors, rooms on one floor do not know each other, and only ``roles`` and ``daemon`` introduce rooms to
each other. ``tests/test_architecture.py`` holds the code to this table.

========  ==========================  ==============================================================
floor     rooms                       what lives there
========  ==========================  ==============================================================
9         ``cli``, ``__main__``       typer commands; speak HTTP to a daemon, or to the store directly
8         ``daemon``                  builds every room, starts and stops them in order
7         ``config``                  settings of all rooms together, and where each value came from
6         ``api``                     HTTP in, server-sent events out; speaks OpenAI
5         ``roles``                   the coroutines that carry out decisions
5         ``simulator``               a virtual cluster that the same decisions are tried on
4         ``scheduler``               where a model is loaded, and what makes room for it
4         ``migration``               how a running generation changes its place
3         ``engine``, ``loader``      tokens out of weights; bytes up the tiers
3         ``cluster``                 who leads and what a cluster of daemons has agreed on
2         ``store``, ``text``         checkpoints on disk; text to token ids and back
1         ``wire``, ``telemetry``     how processes and nodes talk; metrics and logs
0         ``core``                    ids, units, errors: the words everything is said in
========  ==========================  ==============================================================

A request's life: ``api.server`` parses it, ``roles.router`` tokenises it and offers it to a place: this
node's ``roles.agent``, or another node's through ``roles.relay``. Where no replica is ready,
``roles.leader``, on the node that leads, says by ``scheduler`` where it starts soonest; the agent there has
``loader`` lift the checkpoint into DRAM and hands it to a waiting worker of ``engine.supervisor``; the
worker's engine sends token events back, the router turns them into text and finds stop strings, the API
streams them out. Every token enters the generation's ``migration.ledger``: from it ``roles.carriage`` goes
on elsewhere when a replica is lost, and ``roles.mover`` prepares another place where one is to be left. The
daemon process never imports torch or transformers.

Start reading at ``daemon.py``, then ``roles/router.py``.
"""

__version__ = "0.1.0"
